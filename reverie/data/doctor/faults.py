"""What is wrong with a dataset, in plain words: one check a fault, over what ``look`` saw of every episode.

A check that needs to know what is normal takes it from the other episodes, so that a game with black levels, a hundred
keys or a still camera is healthy. Thresholds are chosen so that clean simulators have no fault at all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from reverie.data.copying import Store
from reverie.data.doctor.alike import copies, near_copies
from reverie.data.doctor.lag import lag_of
from reverie.data.doctor.look import THUMBS, Looked, look
from reverie.data.held_out import leak
from reverie.data.store import open_dataset
from reverie.errors import ReverieError

STILL, STILL_PIXEL = 0.25, 8  # mean and largest change, of 255, of frames that show the same (but for noise)
FROZEN, FROZEN_SHARE, WHOLE = 16, 0.4, 0.9  # frames; share of an episode that is frozen in part, and as a whole
BLACK, BLANK, DARK_SHARE = 24, 6, 0.5  # brightest pixel of black frames, contrast of blank ones, share of an episode
LIKE_A_CUT = 0.7  # share of a cut's change from which on other changes are like it
JITTER, JITTER_LEAST = 0.12, 3  # share of single repeats amid motion, and how many
MOVING = 0.4  # an action that moves things leaves fewer frames as they are
ONE_ACTION, LONG = 0.9, 48  # share of one action in all steps; steps of an episode with one action only
ENOUGH = 50  # steps for each action, after which one that never occurs is unused
ONE_SOURCE, SOURCES = 0.5, 8  # share of frames from one recording, of so many
SWAPPED = 0.2  # by how much colours fit better with red and blue exchanged; elsewhere they fit worse by as much
SAME = 0.6  # share of colours that two episodes of one place have in common, at least
BORDER, BORDER_BLACK = 0.04, 12  # share of a side, and brightest pixel, of a black border
LEAK = 0.05  # share of held-out frames that occur in training
TOGETHER = 3  # recordings that a line names


class Fault(NamedTuple):
    """A fault: its name, a line for people, and the episodes it concerns, by split and number.

    ``aside``: those that ``--quarantine`` sets aside; none where the fault is one of the whole dataset.
    """

    fault: str
    text: str
    episodes: tuple[tuple[str, int], ...] = ()
    aside: tuple[tuple[str, int], ...] = ()


def examine(store: Store) -> list[Fault]:
    """Return the faults of a store."""
    total = sum(int(dataset.lengths.sum()) for dataset in store.splits.values())
    every = -(-total // THUMBS)
    seen = [
        look(dataset, split, episode, dataset.sources[episode], every)
        for split, dataset in store.splits.items()
        for episode in range(len(dataset.lengths))
    ]
    return [fault for check in CHECKS for fault in check(store, seen)]


def _episodes(seen: Sequence[Looked], bad: Callable[[Looked], bool]) -> list[Looked]:
    return [one for one in seen if not one.damage and bad(one)]


def _of(found: Sequence[Looked]) -> tuple[tuple[str, int], ...]:
    return tuple((one.split, one.episode) for one in found)


def _each(fault: str, found: Sequence[Looked], text: str) -> Iterator[Fault]:
    """Yield a fault of single episodes, if there are any; ``text`` follows their number."""
    if found:
        names = ", ".join(f"{one.split} {one.episode}" for one in found[:TOGETHER])
        more = f" and {len(found) - TOGETHER} more" if len(found) > TOGETHER else ""
        yield Fault(fault, f"{len(found)} episodes {text} ({names}{more})", _of(found), _of(found))


def _damaged(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    found = [one for one in seen if one.damage]
    yield from _each("damaged", found, "cannot be read" + (f": {found[0].damage.rstrip('.')}" if found else ""))
    if not found:
        for split in store.splits:
            try:
                open_dataset(store.path, split, checksums=True)
            except ReverieError as error:
                yield Fault("damaged", f"a file is not what was written: {str(error).rstrip('.')}")


def _copies(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    groups = copies(seen)
    inside = [[seen[place] for place in group] for group in groups]
    # one of each split stays; that the same frames are in two splits is another fault
    extra = [one for group in inside for at, one in enumerate(group) if one.split in {o.split for o in group[:at]}]
    yield from _each("duplicates", extra, "are copies of others, frame by frame")
    yield from _both_sides(inside, "are in training as well")


def _near_copies(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    pairs = [(seen[a], seen[b]) for a, b in near_copies(seen)]
    extra = list({(b.split, b.episode): b for a, b in pairs if a.split == b.split}.values())
    yield from _each("near duplicates", extra, "show what others show, nearly frame by frame")
    yield from _both_sides([list(pair) for pair in pairs], "are nearly alike to episodes of training")


def _both_sides(groups: Sequence[Sequence[Looked]], text: str) -> Iterator[Fault]:
    """Yield leaks: groups with episodes in training and held out; those of training are what can be set aside."""
    mixed = [group for group in groups if len({one.split for one in group}) > 1]
    held = [one for group in mixed for one in group if one.split != "train"]
    if mixed:
        train = [one for group in mixed for one in group if one.split == "train"]
        yield Fault("leak", f"{len(held)} held-out episodes {text}", _of(held), _of(train))


def _leaking_frames(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    if "train" not in store.splits or any(one.damage for one in seen):
        return
    for split, dataset in store.splits.items():
        share = leak(store.splits["train"], dataset) if split != "train" else 0.0
        if share > LEAK:
            text = f"{share:.0%} of the frames of '{split}' occur in training, or nearly so: write it with more sources"
            yield Fault("leak", text)


def _frozen(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    def bad(one: Looked) -> bool:
        run = _longest(_still(one))
        whole = one.length >= FROZEN // 2 and run >= WHOLE * (one.length - 1)
        return whole or run >= max(2 * FROZEN, FROZEN_SHARE * one.length)

    yield from _each("frozen", _episodes(seen, lambda one: bad(one) and not _is_dark(one)), "stand still for long")


def _still(one: Looked) -> np.ndarray:
    """Return (T - 1,) whether each frame but the first shows what the one before it shows."""
    return ((one.change < STILL) & (one.largest <= STILL_PIXEL))[1:]


def _longest(flags: np.ndarray) -> int:
    """Return the length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _is_dark(one: Looked) -> bool:
    return bool(((one.bright <= BLACK) | (one.spread <= BLANK)).mean() >= DARK_SHARE)


def _black(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    yield from _each("black", _episodes(seen, _is_dark), "are black or of one colour for half of their time or more")


def _cuts(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    def bad(one: Looked) -> bool:
        """Whether its cuts stand out: some games change as much in many frames."""
        cuts = list(one.cuts)
        return bool(cuts) and (np.delete(one.change, cuts) > LIKE_A_CUT * one.change[cuts].min()).sum() <= len(cuts)

    yield from _each("cuts", _episodes(seen, bad), "change to another scene in their middle")


def _jitter(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    """A frame repeated once amid motion: frames were shown twice to fill a rate, or others were lost.

    A step counts if its action is one that moves things, or nothing is known about actions.
    """
    space, steps = store.any.spec.actions, {}
    usable = [one for one in seen if not one.damage and one.length > FROZEN]
    labels = {id(one): [action.tobytes() for action in one.actions[1:]] for one in usable}
    for one in usable:
        for label, still in zip(labels[id(one)], _still(one), strict=True):
            found = steps.setdefault(label, [0, 0])
            found[0], found[1] = found[0] + int(still), found[1] + 1
    moves = {label for label, (still, count) in steps.items() if still <= MOVING * count}

    def bad(one: Looked) -> bool:
        still = _still(one)
        amid = ~still[:-2] & ~still[2:]
        if space.kind != "none":
            amid &= np.array([label in moves for label in labels[id(one)][1:-1]])
        single = amid & still[1:-1]
        return bool(single.sum() >= JITTER_LEAST and single.sum() > JITTER * amid.sum())

    yield from _each(
        "rate", [one for one in usable if bad(one)], "repeat single frames amid motion, as at an uneven rate"
    )


def _alignment(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    lag, scores, odd = lag_of(seen, store.any.spec.actions)
    if lag:
        when, side = ("early", "before") if lag < 0 else ("late", "after")
        shares = f"{scores[lag]:.0%} of the action {abs(lag)} rows {side} them, {max(scores[0], 0):.0%} of their own"
        text = f"actions seem to be stored {abs(lag)} frames too {when}: frames tell {shares}; see --alignment"
        yield Fault("misaligned", text)
    yield from _each("misaligned", [seen[place] for place in odd], "have actions at another lag than the others")


def _actions(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    space = store.any.spec.actions
    usable = [one for one in seen if not one.damage]
    if space.kind == "none" or not usable:
        return
    taken = [one.actions[space.is_action(one.actions)] for one in usable]
    rows = np.concatenate(taken)
    columns = rows.reshape(len(rows), -1)
    if len(rows) < FROZEN:
        return
    constant = [a for a in range(columns.shape[1]) if (columns[:, a] == columns[0, a]).all()]
    keys = space.kind == "binary" or (space.kind == "multi" and len(space.sizes) > 4)  # keyboards have idle keys
    if constant and not (keys and len(constant) < columns.shape[1]):
        which = (
            "every action is the same" if len(constant) == columns.shape[1] else f"components {constant} never change"
        )
        yield Fault("constant actions", f"{which} in all episodes")
    elif space.kind == "discrete":
        counts = np.bincount(rows, minlength=space.size)
        unused = np.flatnonzero(counts == 0)
        if len(unused) and len(rows) >= ENOUGH * space.size:
            names = ", ".join(space.label(int(index)) for index in unused[:TOGETHER])
            yield Fault("unused actions", f"{len(unused)} of {space.size} actions never occur ({names})")
        if counts.max() > ONE_ACTION * len(rows):
            constant = [0]  # episodes of one action only are part of this
            name, share = space.label(int(counts.argmax())), counts.max() / len(rows)
            yield Fault("imbalance", f"{share:.0%} of all actions are '{name}': the others are hardly learned")
    if not constant:
        dull = [one for one, part in zip(usable, taken, strict=True) if len(part) >= LONG and (part == part[0]).all()]
        if not keys and len(dull) < len(usable) / 2:
            yield from _each("constant actions", dull, "have one and the same action throughout")


def _sources(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    frames: dict[str, int] = {}
    for one in seen:
        frames[one.source or f"\0{one.split} {one.episode}"] = frames.get(one.source, 0) + one.length
    largest, total = max(frames, key=frames.__getitem__), sum(frames.values())
    if len(frames) >= SOURCES and frames[largest] > ONE_SOURCE * total:
        name = largest.lstrip("\0")
        yield Fault(
            "imbalance",
            f"{frames[largest] / total:.0%} of all frames come from one recording of {len(frames)} ({name})",
        )


def _swapped(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    usable = [one for one in seen if not one.damage and not _is_dark(one)]
    if len(usable) < SOURCES // 2:
        return
    every = np.stack([one.colours for one in usable])
    likeness = np.stack([np.minimum(every, colours).sum((1, 2, 3)) for colours in every])
    exchanged = np.stack([np.minimum(every, colours.transpose(2, 1, 0)).sum((1, 2, 3)) for colours in every])
    for table in (likeness, exchanged):
        np.fill_diagonal(table, 0)
    if np.median(exchanged.mean(1) - likeness.mean(1)) > -SWAPPED / 2:
        return  # colours differ between episodes anyway, or are grey
    swapped = (exchanged.max(1) > SAME) & (exchanged.max(1) > likeness.max(1) + SWAPPED)
    swapped &= exchanged.mean(1) > likeness.mean(1)
    found = [one for one, is_swapped in zip(usable, swapped, strict=True) if is_swapped]
    yield from _each("swapped colours", found, "seem to have red and blue exchanged")


def _sizes(store: Store, seen: Sequence[Looked]) -> Iterator[Fault]:
    usable = [one for one in seen if not one.damage and not _is_dark(one)]
    boxes = [_border(one.brightest) for one in usable]
    common = max(set(boxes), key=boxes.count, default=(0, 0))
    framed = [one for one, box in zip(usable, boxes, strict=True) if box != common and max(box) > 0]
    if boxes.count(common) > len(boxes) / 2:
        yield from _each("mixed sizes", framed, "have black borders, as pictures of another shape")
    resized = [note for note in store.any.notes if " are brought to " in note]
    if resized:
        more = f" and {len(resized) - 1} more" if len(resized) > 1 else ""
        yield Fault("mixed sizes", f"pictures of other sizes were resized ({resized[0]}{more})")


def _border(brightest: np.ndarray) -> tuple[int, int]:
    """Return the height and width of black borders on both sides; 0 where there are none on both."""
    found = []
    for axis in (1, 0):
        lit = np.flatnonzero(brightest.max(axis) > BORDER_BLACK)
        size = brightest.shape[1 - axis]
        both = min(lit[0], size - 1 - lit[-1]) if len(lit) else 0
        even = len(lit) and abs(lit[0] - (size - 1 - lit[-1])) <= 2
        found.append(int(both) if even and both >= BORDER * size else 0)
    return found[0], found[1]


CHECKS = (
    *(_damaged, _copies, _near_copies, _leaking_frames, _frozen, _black, _cuts, _jitter, _alignment, _actions),
    *(_sources, _swapped, _sizes),
)
