"""Batches as a pure function of (seed, step).

Nothing about the stream is ever saved: resuming at step k, on any number of hosts, gives the batches an uninterrupted
run would have had. Frames stay uint8; scaling them is the device's work. Windows keep the actions the recording had.
"""

from collections.abc import Iterator

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
) -> Iterator[dict[str, np.ndarray]]:
    """Return an endless iterator of batches ``start``, ``start + 1``, ...: each array is (batch / shards, length, ...).

    Windows are drawn uniformly from all places where ``length`` frames fit. shard: (i, n) yields rows i * batch / n up
    to (i + 1) * batch / n of the same global batch, whatever n is. prefetch: batches read ahead, in threads; 0, and any
    dataset in memory, reads when asked. Raises ReverieError at once if the numbers cannot work.
    """
    index, count = shard
    if batch < 1 or count < 1 or batch % count or not 0 <= index < count:
        raise ReverieError(f"a batch of {batch} cannot be divided among {count} processes; use a multiple of {count}.")
    if seed < 0 or start < 0:
        raise ReverieError(f"seed {seed} and start {start} must not be negative.")
    places = _places(dataset, length)
    rows = batch // count

    def draw(step: int) -> np.ndarray:
        drawn = np.random.default_rng((seed, step)).integers(places[-1], size=batch)
        return drawn[index * rows : (index + 1) * rows]

    if prefetch == 0 or isinstance(dataset, ArrayDataset):
        return _read_here(dataset, places, length, draw, start)
    return _read_ahead(dataset, places, length, draw, start, rows, prefetch)


def clips(dataset: Dataset, *, length: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Return ``count`` distinct windows spread over the whole dataset, (count, length, ...) each; for evaluation.

    The same seed gives the same windows. Raises ReverieError if there are not so many.
    """
    places = _places(dataset, length)
    if not 1 <= count <= places[-1]:
        raise ReverieError(f"there are {places[-1]} different clips of {length} frames; {count} were asked for.")
    edges = np.arange(count + 1) * int(places[-1]) // count
    chosen = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return _stack([_window(dataset, places, length, int(place)) for place in chosen])


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


def _read_here(dataset, places, length, draw, start) -> Iterator[dict[str, np.ndarray]]:
    step = start
    while True:
        yield _stack([_window(dataset, places, length, int(place)) for place in draw(step)])
        step += 1


def _read_ahead(dataset, places, length, draw, start, rows, prefetch) -> Iterator[dict[str, np.ndarray]]:
    import grain  # here, so that data in memory needs no grain

    def read(row: int) -> dict[str, np.ndarray]:
        return _window(dataset, places, length, int(draw(row // rows)[row % rows]))

    options = grain.ReadOptions(num_threads=min(THREADS, prefetch * rows), prefetch_buffer_size=prefetch * rows)
    ahead = grain.MapDataset.range(start * rows, 2**62).map(read).to_iter_dataset(options)
    return iter(ahead.batch(rows, batch_fn=_stack))
