"""Batches as a pure function of (seed, step).

The stream has no saved state: a run that resumes at step k, on any number of hosts, reads the same batches as an
uninterrupted one. Frames stay uint8 until the device scales them. Windows keep the recorded actions. ``data.order``
says which windows are drawn.
"""

import importlib.util
import itertools
from collections.abc import Collection, Iterator

import numpy as np

from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset
from reverie.data.order import Order, Window, check_lengths, order_of
from reverie.errors import ReverieError

RELEVANT = "relevant"  # the array of a batch that marks relevant clips
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
    order: Order | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Return an endless iterator of batches ``start``, ``start + 1``, ...: each array is (batch / shards, length, ...).

    shard: (i, n) yields rows i * batch / n up to (i + 1) * batch / n of the global batch, which does not depend on n.
    prefetch: batches read ahead in threads; 0 reads on demand, as do datasets in memory. names: arrays to read; None:
    all. order: in which windows of ``length`` are drawn; by default uniformly. Where it draws relevant ones too, and
    names have "relevant", this array (batch / shards,) bool says which they are. Raises ReverieError at once if no
    episode is long enough or the numbers are inconsistent.
    """
    index, count = shard
    if batch < 1 or count < 1 or batch % count or not 0 <= index < count:
        raise ReverieError(f"a batch of {batch} cannot be divided among {count} processes; use a multiple of {count}.")
    if seed < 0 or start < 0:
        raise ReverieError(f"seed {seed} and start {start} must not be negative.")
    order, rows = order or order_of(dataset, length, seed), batch // count
    marked = RELEVANT in (names or ()) and order.window(0).relevant is not None

    def window(row: int) -> Window:
        """Return the window of a row of this shard, counted from step 0."""
        return order.window(row // rows * batch + index * rows + row % rows)

    def read(row: int) -> dict[str, np.ndarray]:
        episode, first, relevant = window(row)
        found = dataset.read(episode, first, length, names)
        return found | {RELEVANT: np.asarray(relevant)} if marked else found

    def read_each(step: int) -> dict[str, np.ndarray]:
        return _stack([read(row) for row in range(step * rows, (step + 1) * rows)])

    if isinstance(dataset, ArrayDataset):

        def read_at_once(step: int) -> dict[str, np.ndarray]:
            episodes, starts, relevant = zip(*map(window, range(step * rows, (step + 1) * rows)), strict=True)
            found = dataset.clips(np.array(episodes), np.array(starts), length, names)
            return found | {RELEVANT: np.array(relevant)} if marked else found

        return map(read_at_once, itertools.count(start))
    # Windows has no Grain: there the same batches are read when they are needed.
    if prefetch == 0 or importlib.util.find_spec("grain") is None:
        return map(read_each, itertools.count(start))
    return _read_ahead(read, start, rows, prefetch)


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
    check_lengths(dataset.lengths, length)
    return np.cumsum(np.maximum(dataset.lengths - length + 1, 0))


def _window(dataset: Dataset, places: np.ndarray, length: int, place: int) -> dict[str, np.ndarray]:
    episode = int(np.searchsorted(places, place, side="right"))
    return dataset.read(episode, place - (int(places[episode - 1]) if episode else 0), length)


def _stack(windows) -> dict[str, np.ndarray]:
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def _read_ahead(read, start: int, rows: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    import grain  # imported here, so that data in memory need no grain

    options = grain.ReadOptions(num_threads=min(THREADS, prefetch * rows), prefetch_buffer_size=prefetch * rows)
    ahead = grain.MapDataset.range(start * rows, 2**62).map(read).to_iter_dataset(options)
    return iter(ahead.batch(rows, batch_fn=_stack))
