"""Which windows a training draws: a pure function of the seed and the number of a row, counted from step 0.

An epoch covers every frame of every episode that is long enough. Windows tile each episode from an offset that changes
from epoch to epoch. Windows that would stick out at an end are moved inside, so first and last frames are drawn as
often as others. A permutation orders the windows of all episodes, without repetition.

The datasets of a mixture take turns by their weights, and each has epochs of its own. So do windows drawn uniformly and
*relevant* ones, which contain a reward, an end or a task (Dreamer 4, arXiv 2509.24527, appendix: half of each), and
windows of episodes with and without recorded actions.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from reverie.data.episode import CHUNK, Dataset, windows
from reverie.data.splits import labelled as with_actions
from reverie.errors import ReverieError

PIECE = 64 * CHUNK  # frames whose rewards are read at once: a store decompresses their pictures too
EXACT = 10**6  # weights are fractions with at most this denominator


class Window(NamedTuple):
    """Where a clip lies. relevant: whether it was drawn as a relevant one; None if no such clips are drawn."""

    episode: int
    first: int
    relevant: bool | None


class Order(Protocol):
    """An endless order of windows."""

    def window(self, number: int) -> Window:
        """Return the window of row ``number``."""
        ...


def order_of(dataset: Dataset, length: int, seed: int, relevant: float = 0.0, labelled: float = 0.0) -> Order:
    """Return the order in which windows of ``length`` frames are drawn, of which a share ``relevant`` is relevant.

    ``labelled``: the share that is drawn from episodes with recorded actions, if only some have them; 0: uniformly. A
    dataset may have ``groups`` (see ``data.mixture``). Raises ReverieError if no episode of a group is long enough, or
    if no window is relevant, or labelled.
    """
    for kind, share in (("relevant", relevant), ("labelled", labelled)):
        if not 0 <= share <= 1:
            raise ReverieError(f"the share of {kind} clips is 0 to 1, not {share}.")
    number, weights = _groups_of(dataset)
    for group in range(len(weights)):
        check_lengths(dataset.lengths[number == group], length)
    if labelled:
        known = np.array(with_actions(dataset))
        long = dataset.lengths >= length
        if not (known & long).any():
            raise ReverieError(f"no episode of {length} frames has recorded actions: let 'labelled' be 0.")
        if not known[long].all():
            both = [(known, labelled), (~known, 1 - labelled)]
            shares = [(np.where(those, dataset.lengths, 0), share) for those, share in both if share]
            orders = [_order_of(dataset, lengths, length, seed, relevant) for lengths, _ in shares]
            return Turns.of(orders, [share for _, share in shares])
    return _order_of(dataset, dataset.lengths, length, seed, relevant)


def _groups_of(dataset: Dataset) -> tuple[np.ndarray, Sequence[float]]:
    """Return the number of each episode's group, (episodes,), and the weight of each group."""
    return getattr(dataset, "groups", None) or (np.zeros(len(dataset.lengths), int), (1.0,))


def _order_of(dataset: Dataset, lengths: np.ndarray, length: int, seed: int, relevant: float) -> Order:
    """Return the order for the episodes of a dataset whose ``lengths`` are not 0."""
    number, weights = _groups_of(dataset)
    parts = {group: np.where(number == group, lengths, 0) for group in range(len(weights))}
    parts = {group: part for group, part in parts.items() if part.max() >= length}
    weights = [weights[group] for group in parts]
    uniform = Turns.of([Tiles.of(each, length, seed, False if relevant else None) for each in parts.values()], weights)
    if not relevant:
        return uniform
    found = [Chosen.of(dataset, each, length, seed) for each in parts.values()]
    some = [(order, weight) for order, weight in zip(found, weights, strict=True) if len(order.ends)]
    if not some:
        raise ReverieError(
            f"no clip of {length} frames contains a reward, an end or a task, so none is relevant: let 'relevant' be 0."
        )
    return Turns.of([Turns.of(*zip(*some, strict=True)), uniform], (relevant, 1 - relevant))


def check_lengths(lengths: np.ndarray, length: int) -> None:
    """Raise ReverieError unless some episode has ``length`` frames."""
    if length < 1:
        raise ReverieError(f"a clip has at least 1 frame, not {length}.")
    if not (lengths >= length).any():
        longest = int(lengths.max(initial=0))
        raise ReverieError(
            f"no episode is long enough for clips of {length} frames: the longest has {longest}. "
            f"Use clips of at most {longest} frames, or record longer episodes."
        )


_relevant: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # found once for all stages of a training


def relevant_frames(dataset: Dataset) -> np.ndarray:
    """Return which frames of a dataset, episode after episode, are relevant: bool (sum of lengths,).

    These are frames with a reward other than 0 or an end. If only some episodes have a task, all frames of those are.
    """
    if dataset not in _relevant:
        tasks = list(getattr(dataset, "tasks", ()))
        some, found = any(tasks) and not all(tasks), [np.zeros(0, np.bool_)]
        for episode, length in enumerate(dataset.lengths.tolist()):
            for start, stop in windows(length, PIECE):
                read = dataset.read(episode, start, stop - start, ("rewards", "ends"))
                found.append((read["rewards"] != 0) | read["ends"] | bool(some and tasks[episode]))
        _relevant[dataset] = np.concatenate(found)
    return _relevant[dataset]


@dataclass(frozen=True)
class Turns:
    """Orders that take turns by their weights: of any first n rows each gives its share, to within one row."""

    orders: tuple[Order, ...]
    shares: tuple[tuple[int, int], ...]  # of each but the last: its share of what those before it leave, a fraction

    @classmethod
    def of(cls, orders: Sequence[Order], weights: Sequence[float]) -> Order:
        """Return the only order whose weight is above 0, or several that take turns."""
        total, given = sum(weights), zip(orders, weights, strict=True)
        used = [(order, Fraction(w / total).limit_denominator(EXACT)) for order, w in given if w]
        rest = [sum(weight for _, weight in used[place:]) for place in range(len(used))]
        shares = [(weight / left).as_integer_ratio() for (_, weight), left in zip(used[:-1], rest, strict=False)]
        return used[0][0] if len(used) == 1 else cls(tuple(order for order, _ in used), tuple(shares))

    def window(self, number: int) -> Window:
        """Return the window of row ``number``."""
        for order, (part, whole) in zip(self.orders, self.shares, strict=False):
            before = number * part // whole
            if (number + 1) * part // whole > before:
                return order.window(before)
            number -= before
        return self.orders[-1].window(number)


@dataclass(frozen=True)
class Chosen:
    """The order of all windows with a relevant frame in them.

    Starts of such windows follow each other in runs. episodes, firsts: of each run; ends: starts in it and all before.
    """

    episodes: np.ndarray
    firsts: np.ndarray
    ends: np.ndarray
    seed: int

    @classmethod
    def of(cls, dataset: Dataset, lengths: np.ndarray, length: int, seed: int) -> "Chosen":
        """Return the order for the episodes of a dataset whose ``lengths`` are not 0."""
        relevant, found = relevant_frames(dataset), [np.zeros((3, 0), np.int64)]
        begins = np.cumsum(dataset.lengths) - dataset.lengths
        for episode in np.flatnonzero(lengths >= length):
            frames = relevant[begins[episode] : begins[episode] + lengths[episode]]
            total = np.concatenate([[0], np.cumsum(frames)])
            holds = np.concatenate([[False], total[length:] > total[:-length], [False]])
            firsts, stops = np.flatnonzero(np.diff(holds)).reshape(-1, 2).T
            found.append(np.stack([np.full_like(firsts, episode), firsts, stops - firsts]))
        episodes, firsts, counts = np.concatenate(found, axis=1)
        return cls(episodes, firsts, np.cumsum(counts), seed)

    def window(self, number: int) -> Window:
        """Return the window of row ``number``."""
        count = int(self.ends[-1])
        epoch, place = divmod(number, count)
        place = shuffled(place, count, _known(self.seed, epoch, 1))
        run = int(np.searchsorted(self.ends, place, side="right"))
        start = int(self.firsts[run]) + place - (int(self.ends[run - 1]) if run else 0)
        return Window(int(self.episodes[run]), start, True)


@dataclass(frozen=True)
class Tiles:
    """The order of windows that tile all episodes. ends: windows of an epoch in each episode and all earlier ones.

    relevant: what its windows are marked as.
    """

    lengths: np.ndarray
    length: int
    seed: int
    ends: np.ndarray
    relevant: bool | None

    @classmethod
    def of(cls, lengths: np.ndarray, length: int, seed: int, relevant: bool | None = None) -> "Tiles":
        """Return the order for the episodes of at least ``length`` frames."""
        last = lengths - length  # the last start of a window
        count = np.where(last < 0, 0, np.minimum(last + 1, 2 + -(-(last - 1) // length)))
        return cls(lengths, length, seed, np.cumsum(count), relevant)

    def window(self, number: int) -> Window:
        """Return the window of row ``number``."""
        epoch, place = divmod(number, int(self.ends[-1]))
        key = _known(self.seed, epoch)
        place = shuffled(place, int(self.ends[-1]), key)
        episode = int(np.searchsorted(self.ends, place, side="right"))
        which = place - (int(self.ends[episode - 1]) if episode else 0)
        return Window(episode, self._first(episode, which, mixed(episode, state=key)), self.relevant)

    def _first(self, episode: int, which: int, drawn: int) -> int:
        """Return the start of the ``which``-th window of an episode: 0, every ``length`` from an offset, the end."""
        last = int(self.lengths[episode]) - self.length
        phase = 1 + drawn % self.length
        if which == 0 or phase + (which - 2) * self.length < last:
            return min(which and phase + (which - 1) * self.length, last)
        # Late offsets leave room for one window less: one starts elsewhere, where no other does.
        place = 1 + (drawn >> 20) % (last - 1)
        if place >= phase and (place - phase) % self.length == 0:
            place += 1 if place + 1 < last else -1
        return place


def mixed(*numbers: int, state: int = 0) -> int:
    """Return a 64-bit hash of some numbers (the finaliser of splitmix64, applied repeatedly).

    state: the hash of the numbers before them.
    """
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


_known = lru_cache(1024)(mixed)  # hashes of what many rows share: two thirds of the work of drawing a window


def shuffled(place: int, count: int, key: int) -> int:
    """Return ``place`` under a permutation of 0..count-1: a Feistel network, applied until the result is in range."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask, states = (1 << half) - 1, [_known(key, turn) for turn in range(4)]
    while True:
        left, right = place >> half, place & mask
        for state in states:
            left, right = right, left ^ (mixed(right, state=state) & mask)
        place = left << half | right
        if place < count:
            return place
