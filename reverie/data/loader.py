"""Batches as a pure function of (seed, step).

Nothing about the stream is ever saved: resuming at step k, on any number of hosts, gives the batches an uninterrupted
run would have had. Frames stay uint8; scaling them is the device's work. Windows keep the actions the recording had.

An epoch shows every frame of every episode that is long enough. Each episode is laid out with windows end to end, from
a phase that changes from epoch to epoch; what sticks out at either end is moved in, so its first and last frames are
seen as often as others. The windows of all episodes come in the order of a permutation, none twice.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset
from reverie.errors import ReverieError

THREADS = 8  # reading and zstd release Python's lock


def batches(
    dataset: Dataset,
    *,
    batch: int,
    length: int,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    prefetch: int = 2,
    names: Collection[str] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Return an endless iterator of batches ``start``, ``start + 1``, ...: each array is (batch / shards, length, ...).

    shard: (i, n) yields rows i * batch / n up to (i + 1) * batch / n of the same global batch, whatever n is. prefetch:
    batches read ahead, in threads; 0, and any dataset in memory, reads when asked. names: the arrays wanted, all if
    None. Raises ReverieError at once if the numbers cannot work.
    """
    index, count = shard
    if batch < 1 or count < 1 or batch % count or not 0 <= index < count:
        raise ReverieError(f"a batch of {batch} cannot be divided among {count} processes; use a multiple of {count}.")
    if seed < 0 or start < 0:
        raise ReverieError(f"seed {seed} and start {start} must not be negative.")
    _places(dataset, length)  # says at once if no episode is long enough
    order, rows = _Order.of(dataset.lengths, length, seed), batch // count

    def read(row: int) -> dict[str, np.ndarray]:
        """Row of this shard, counted from step 0."""
        episode, first = order.window(row // rows * batch + index * rows + row % rows)
        return dataset.read(episode, first, length, names)

    if prefetch == 0 or isinstance(dataset, ArrayDataset):
        return _read_here(read, start, rows)
    return _read_ahead(read, start, rows, prefetch)


@dataclass(frozen=True)
class _Order:
    """Which window is the n-th ever drawn. ends: windows an epoch has of each episode and those before it."""

    lengths: np.ndarray
    length: int
    seed: int
    ends: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, length: int, seed: int) -> "_Order":
        last = lengths - length  # the last place where a window fits
        count = np.where(last < 0, 0, np.minimum(last + 1, 2 + -(-(last - 1) // length)))
        return cls(lengths, length, seed, np.cumsum(count))

    def window(self, number: int) -> tuple[int, int]:
        """Return (episode, first frame)."""
        epoch, place = divmod(number, int(self.ends[-1]))
        place = _shuffled(place, int(self.ends[-1]), _mixed(self.seed, epoch))
        episode = int(np.searchsorted(self.ends, place, side="right"))
        which = place - (int(self.ends[episode - 1]) if episode else 0)
        return episode, self._first(episode, which, _mixed(self.seed, epoch, episode))

    def _first(self, episode: int, which: int, drawn: int) -> int:
        """Return where the ``which``-th window of an episode begins: 0, a phase and every length after it, the end."""
        last = int(self.lengths[episode]) - self.length
        phase = 1 + drawn % self.length
        if which == 0 or phase + (which - 2) * self.length < last:
            return min(which and phase + (which - 1) * self.length, last)
        # Late phases leave room for one window less than early ones: instead, one anywhere that none begins yet.
        place = 1 + (drawn >> 20) % (last - 1)
        if place >= phase and (place - phase) % self.length == 0:
            place += 1 if place + 1 < last else -1
        return place


def _mixed(*numbers: int) -> int:
    """Return 64 bits that follow from some numbers and look random (the finaliser of splitmix64, again and again)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


def _shuffled(place: int, count: int, key: int) -> int:
    """Return where a permutation of 0..count-1 takes ``place``: a Feistel network, walked until it lands inside."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for turn in range(4):
            left, right = right, left ^ (_mixed(key, turn, right) & ((1 << half) - 1))
        place = left << half | right
        if place < count:
            return place


def clips(dataset: Dataset, *, length: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Return ``count`` distinct windows spread over the whole dataset, (count, length, ...) each; for evaluation.

    The same seed gives the same windows. Raises ReverieError if there are not so many.
    """
    places = _places(dataset, length)
    return _stack([_window(dataset, places, length, int(place)) for place in _spread(places, length, count, seed)])


def episodes_of_clips(dataset: Dataset, *, length: int, count: int, seed: int) -> np.ndarray:
    """Return from which episode each of those ``clips`` is, (count,), in ascending order."""
    places = _places(dataset, length)
    return np.searchsorted(places, _spread(places, length, count, seed), side="right")


def _spread(places: np.ndarray, length: int, count: int, seed: int) -> np.ndarray:
    if not 1 <= count <= places[-1]:
        raise ReverieError(f"there are {places[-1]} different clips of {length} frames; {count} were asked for.")
    edges = np.arange(count + 1) * int(places[-1]) // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _places(dataset: Dataset, length: int) -> np.ndarray:
    """Return, for each episode, how many windows of ``length`` frames it and those before it have."""
    if length < 1:
        raise ReverieError(f"a clip has at least 1 frame, not {length}.")
    places = np.cumsum(np.maximum(dataset.lengths - length + 1, 0))
    if not len(places) or not places[-1]:
        longest = int(dataset.lengths.max(initial=0))
        raise ReverieError(
            f"no episode is long enough for clips of {length} frames: the longest has {longest}. "
            f"Use clips of at most {longest} frames, or record longer episodes."
        )
    return places


def _window(dataset: Dataset, places: np.ndarray, length: int, place: int) -> dict[str, np.ndarray]:
    episode = int(np.searchsorted(places, place, side="right"))
    return dataset.read(episode, place - (int(places[episode - 1]) if episode else 0), length)


def _stack(windows) -> dict[str, np.ndarray]:
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def _read_here(read, start: int, rows: int) -> Iterator[dict[str, np.ndarray]]:
    step = start
    while True:
        yield _stack([read(row) for row in range(step * rows, (step + 1) * rows)])
        step += 1


def _read_ahead(read, start: int, rows: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    import grain  # here, so that data in memory needs no grain

    options = grain.ReadOptions(num_threads=min(THREADS, prefetch * rows), prefetch_buffer_size=prefetch * rows)
    ahead = grain.MapDataset.range(start * rows, 2**62).map(read).to_iter_dataset(options)
    return iter(ahead.batch(rows, batch_fn=_stack))
