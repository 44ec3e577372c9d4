"""Batches as a pure function of (seed, step).

The stream has no saved state: a run that resumes at step k, on any number of hosts, reads the same batches as an
uninterrupted one. Frames stay uint8 until the device scales them. Windows keep the recorded actions.

An epoch covers every frame of every episode that is long enough. Windows tile each episode from an offset that changes
from epoch to epoch. Windows that would stick out at an end are moved inside, so first and last frames are drawn as
often as others. A permutation orders the windows of all episodes, without repetition.
"""

import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset
from reverie.errors import ReverieError

THREADS = 8  # reading and zstd release Python's GIL


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

    shard: (i, n) yields rows i * batch / n up to (i + 1) * batch / n of the global batch, which does not depend on n.
    prefetch: batches read ahead in threads; 0 reads on demand, as do datasets in memory. names: arrays to read; None:
    all. Raises ReverieError at once if no episode is long enough or the numbers are inconsistent.
    """
    index, count = shard
    if batch < 1 or count < 1 or batch % count or not 0 <= index < count:
        raise ReverieError(f"a batch of {batch} cannot be divided among {count} processes; use a multiple of {count}.")
    if seed < 0 or start < 0:
        raise ReverieError(f"seed {seed} and start {start} must not be negative.")
    _places(dataset, length)  # raises at once if no episode is long enough
    order, rows = _Order.of(dataset.lengths, length, seed), batch // count

    def read(row: int) -> dict[str, np.ndarray]:
        """Return a row of this shard, counted from step 0."""
        episode, first = order.window(row // rows * batch + index * rows + row % rows)
        return dataset.read(episode, first, length, names)

    # Windows has no Grain: there the same batches are read when they are needed.
    if prefetch == 0 or isinstance(dataset, ArrayDataset) or importlib.util.find_spec("grain") is None:
        return _read_here(read, start, rows)
    return _read_ahead(read, start, rows, prefetch)


@dataclass(frozen=True)
class _Order:
    """The order of windows. ends: for each episode, the windows of an epoch in it and all earlier episodes."""

    lengths: np.ndarray
    length: int
    seed: int
    ends: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, length: int, seed: int) -> "_Order":
        last = lengths - length  # the last start of a window
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


def _mixed(*numbers: int) -> int:
    """Return a 64-bit hash of some numbers (the finaliser of splitmix64, applied repeatedly)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


def _shuffled(place: int, count: int, key: int) -> int:
    """Return ``place`` under a permutation of 0..count-1: a Feistel network, applied until the result is in range."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for turn in range(4):
            left, right = right, left ^ (_mixed(key, turn, right) & ((1 << half) - 1))
        place = left << half | right
        if place < count:
            return place


def clips(dataset: Dataset, *, length: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Return ``count`` distinct windows spread over the whole dataset, (count, length, ...) each, for evaluation.

    The same seed gives the same windows. Raises ReverieError if there are fewer.
    """
    places = _places(dataset, length)
    return _stack([_window(dataset, places, length, int(place)) for place in _spread(places, length, count, seed)])


def episodes_of_clips(dataset: Dataset, *, length: int, count: int, seed: int) -> np.ndarray:
    """Return the episode of each of these ``clips``, (count,), ascending."""
    places = _places(dataset, length)
    return np.searchsorted(places, _spread(places, length, count, seed), side="right")


def _spread(places: np.ndarray, length: int, count: int, seed: int) -> np.ndarray:
    if not 1 <= count <= places[-1]:
        raise ReverieError(f"there are {places[-1]} different clips of {length} frames; {count} were asked for.")
    edges = np.arange(count + 1) * int(places[-1]) // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _places(dataset: Dataset, length: int) -> np.ndarray:
    """Return, for each episode, the number of windows of ``length`` frames in it and all earlier episodes."""
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
    import grain  # imported here, so that data in memory need no grain

    options = grain.ReadOptions(num_threads=min(THREADS, prefetch * rows), prefetch_buffer_size=prefetch * rows)
    ahead = grain.MapDataset.range(start * rows, 2**62).map(read).to_iter_dataset(options)
    return iter(ahead.batch(rows, batch_fn=_stack))
