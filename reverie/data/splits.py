"""The split into training and held-out frames, which keeps the episodes of a source together.

Episodes of one source (one film, one level) look alike. If some were held out and others trained on, a model that
memorised its training data would seem to generalise.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from reverie.data.episode import CHUNK, Dataset, windows
from reverie.errors import ReverieError

log = logging.getLogger(__name__)

FEW = 5  # sources; with fewer, the end of each is held out instead of whole sources
BLOCK = 32  # the fewest held-out frames at the end of a source, for clips and rollouts
PARTS = 3  # a source is cut only if it has at least so many times BLOCK frames


class NoSplit(ReverieError):
    """The dataset has no split of this name. known: those that it has."""

    def __init__(self, text: str, known: Iterable[str]):
        super().__init__(text)
        self.known = list(known)


class Piece(NamedTuple):
    """Frames ``start .. stop`` of an episode, and the split they belong to."""

    split: str
    episode: int
    start: int
    stop: int


def labelled(dataset: Dataset, episodes: Sequence[int] | None = None) -> list[bool]:
    """Return whether each episode (or each of some) has recorded actions, judged by that of its second frame."""
    space, chosen = dataset.spec.actions, range(len(dataset.lengths)) if episodes is None else episodes

    def has_actions(episode: int) -> bool:
        if space.kind == "none" or dataset.lengths[episode] < 2:
            return False
        return not space.is_unlabelled(dataset.read(episode, 1, 1, ("actions",))["actions"])[0]

    return [has_actions(episode) for episode in chosen]


def division(dataset: Dataset, sources: Sequence[str], val: float) -> list[Piece]:
    """Return the pieces of a dataset as ``divided`` does; sources that share an episode count as one."""
    lengths = dataset.lengths.tolist()
    contents = contents_of([(dataset, episode, length) for episode, length in enumerate(lengths)], ("frames",))
    if len(contents) > 1 == len(set(contents)):
        log.warning("all episodes are copies of one: what is held out is in training as well")
    return divided(joined(sources, contents), lengths, val, labelled(dataset))


def contents_of(episodes: Sequence[tuple[Dataset, int, int]], names: Sequence[str]) -> list[tuple[int, bytes]]:
    """Return a key for each episode (dataset, number, length), equal where some arrays are equal.

    Only episodes that begin alike are read whole.
    """
    begins = [(length, _content(dataset, episode, min(length, CHUNK), names)) for dataset, episode, length in episodes]
    times = Counter(begins)
    return [
        (length, _content(dataset, episode, length, names)) if times[begin] > 1 and length > CHUNK else begin
        for begin, (dataset, episode, length) in zip(begins, episodes, strict=True)
    ]


def _content(dataset: Dataset, episode: int, length: int, names: Sequence[str]) -> bytes:
    """Return a hash of some arrays of the first ``length`` frames of an episode."""
    digest = hashlib.sha256()
    for start, stop in windows(length, CHUNK):
        arrays = dataset.read(episode, start, stop - start, names)
        for name in names:
            digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.digest()


def joined(sources: Sequence[str], contents: Sequence[object]) -> list[str]:
    """Return the episodes' sources, with one name for sources that share an episode (with the same content).

    If that left no source to hold out, the names are returned unchanged.
    """
    names = _named(sources)
    first: dict[object, str] = {}
    same: dict[str, str] = {}

    def root(name: str) -> str:
        while name in same:
            name = same[name]
        return name

    for name, content in zip(names, contents, strict=True):
        one, other = root(first.setdefault(content, name)), root(name)
        if one != other:
            same[other] = one
    found = [root(name) for name in names]
    return found if len(set(found)) > 1 else names


def divided(
    sources: Sequence[str], lengths: Sequence[int], val: float, labels: Sequence[bool] | None = None
) -> list[Piece]:
    """Return the pieces of all episodes, in order: about a share ``val`` of the frames in "val", the rest in "train".

    sources, lengths: of each episode; an episode whose source is "" is a source of its own, and is never cut. With
    ``FEW`` sources or more, whole sources are held out, evenly spread. With fewer, the last frames of each source that
    is long enough are held out, and half as many before them belong to neither split, since neighbouring frames are
    nearly identical. If no source is long enough, one whole source is held out; a single source stays in "train".
    ``labels``: which episodes have actions; sources with and without actions are held out in proportion.
    """
    names = _named(sources)
    frames: dict[str, int] = {}
    longest: dict[str, int] = {}
    for name, length in zip(names, lengths, strict=True):
        frames[name] = frames.get(name, 0) + int(length)
        longest[name] = max(longest.get(name, 0), int(length))
    if len(frames) < FEW and val > 0:
        cut = {name for name, total in frames.items() if name[0] != "\0" and total >= PARTS * BLOCK}
        if cut:
            return [
                piece
                for name in dict.fromkeys(names)
                for piece in _cut([i for i, n in enumerate(names) if n == name], lengths, val if name in cut else 0)
            ]
    known = {name for name, label in zip(names, labels or [False] * len(names), strict=True) if label}
    groups = [[name for name in frames if (name in known) == label] for label in (False, True)]
    groups = [group for group in groups if len(group) > 1] or [list(frames)]
    held: set[str] = set()
    for group in groups if val > 0 and len(frames) > 1 else ():
        held |= _chosen(group, {name: frames[name] for name in group}, longest, val)
    return [Piece("val" if name in held else "train", i, 0, int(lengths[i])) for i, name in enumerate(names)]


def _named(sources: Sequence[str]) -> list[str]:
    """Return a name for each episode's source; an episode without one gets a name of its own."""
    return [source or f"\0{index}" for index, source in enumerate(sources)]


def _chosen(names: list[str], frames: dict[str, int], longest: dict[str, int], val: float) -> set[str]:
    """Return the sources to hold out: the second, then each one at which too few of the frames so far are held out.

    A source is chosen by the lengths of those before it, not by its own, unless it exceeds all that may be held out.
    Otherwise short episodes would be held out first, and where a task ends an episode these are the successful ones:
    of 480 solved episodes among 2000, 171 were in the tenth that was held out.
    """
    budget = val * sum(frames.values())
    held: set[str] = set()
    total = before = 0
    for index, name in enumerate(names):
        due = index == 1 or (index > 1 and total + before / index <= val * before + 1e-6)
        if due and total + frames[name] <= budget + 1e-6:
            held.add(name)
            total += frames[name]
        before += frames[name]
    # At least one must be long enough for clips.
    room = [name for name in names if 2 * longest[name] >= max(longest[name] for name in names)]
    if not held & set(room):
        order = {name: (abs(frames[name] - budget), index != 1, index) for index, name in enumerate(names)}
        held.add(min(room, key=order.__getitem__))
    return held if len(held) < len(names) else set(names[1:2])


def _cut(episodes: list[int], lengths: Sequence[int], val: float) -> list[Piece]:
    """Return the pieces of one source: its beginning for training, its end held out, and a gap between the two."""
    starts = np.cumsum([0, *(int(lengths[i]) for i in episodes)])
    total = int(starts[-1])
    if not val:
        return [Piece("train", i, 0, int(lengths[i])) for i in episodes]
    block = min(max(round(val * total), BLOCK), total // 2)
    at = total - block
    inside = int(starts[np.searchsorted(starts, at, side="right") - 1])
    if at - inside <= block:  # avoids needless cuts, and leaves room for clips
        at = max(inside, total // 2)
    gap = max(0, at - max((total - at) // 2, 1))
    pieces = []
    for index, start, stop in zip(episodes, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        for split, first, last in (("train", start, min(stop, gap)), ("val", max(start, at), stop)):
            if last - first > 1 or last - first == stop - start:
                pieces.append(Piece(split, index, first - start, last - start))
    return pieces
