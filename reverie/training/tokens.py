"""What frozen models say about a dataset, computed once and kept beside the run: tokens instead of pixels.

A frozen encoder gives the same codes at every visit of a clip; running it again in every training step is most of what
such a step would cost.

Shapes: B segments at once, T frames of a segment, N tokens per frame.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset
from reverie.nn.compiled import compiled
from reverie.training import sharding

SEGMENT, TOGETHER = 64, 8  # frames encoded at once, and how many such pieces in one call, or more for more devices
KEY = "key.json"


class Joined:
    """A dataset whose windows carry a cache's arrays as well (or instead, where both have a name)."""

    def __init__(self, dataset: Dataset, cache: ArrayDataset):
        self.dataset, self.cache = dataset, cache
        self.spec, self.lengths, self.fingerprint = dataset.spec, dataset.lengths, dataset.fingerprint

    def read(self, episode: int, start: int, length: int) -> dict[str, np.ndarray]:
        """See ``Dataset.read``."""
        return self.dataset.read(episode, start, length) | self.cache.read(episode, start, length)


def cached(
    model: nnx.Module, encode: Callable[[Any, dict], dict], dataset: Dataset, lead: int, folder: Path
) -> ArrayDataset:
    """Return ``encode(model, batch)`` of every frame of a dataset, from ``folder`` if it is there already.

    ``encode`` takes and gives dicts of arrays (B, T, ...) and is causal in T. Episodes are worked through in segments;
    each but an episode's first begins with ``lead`` frames whose results are not kept, so that models which look back
    have something to look back on.
    """
    key = {"data": dataset.fingerprint, "model": _digest(model), "lead": lead, "segment": SEGMENT}
    arrays = _kept(folder, key)
    if arrays is None:
        half = folder.with_name(f".{folder.name}.{os.getpid()}")

        def begin() -> None:
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)

        def end() -> None:
            names = sorted(path.stem for path in half.glob("*.npy"))
            (half / KEY).write_text(json.dumps({**key, "arrays": names}), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(half, folder)

        try:
            sharding.by_first(begin)
            _write(model, encode, dataset, lead, half)
            sharding.by_first(end)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        arrays = _opened(folder)
    return ArrayDataset(dataset.spec, dataset.lengths, arrays, fingerprint=dataset.fingerprint)


def _write(model, encode, dataset: Dataset, lead: int, folder: Path) -> None:
    """All processes encode, rows spread over all devices; the first one writes."""
    call, mesh = compiled(model, encode), sharding.make_mesh()
    files: dict[str, np.memmap] = {}
    total, starts = int(dataset.lengths.sum()), np.cumsum(dataset.lengths) - dataset.lengths
    pieces, together = list(_segments(dataset.lengths, lead)), -(-TOGETHER // mesh.size) * mesh.size
    for first in range(0, len(pieces), together):
        group = pieces[first : first + together]
        windows = [dataset.read(episode, start, stop - start) for episode, start, stop, _ in group]
        windows += windows[:1] * (together - len(group))  # one shape, one program
        names = ("frames", "actions")
        batch = {name: np.stack([_padded(window[name], SEGMENT + lead) for window in windows]) for name in names}
        results = sharding.fetch(call(sharding.put(batch, sharding.rows(mesh))))
        if jax.process_index() > 0:
            continue
        for name, result in results.items():
            if name not in files:
                shape = (total, *result.shape[2:])
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", result.dtype, shape)
            for row, (episode, start, stop, keep) in zip(result, group, strict=False):
                at = int(starts[episode])
                files[name][at + keep : at + stop] = row[keep - start : stop - start]
    for file in files.values():
        file.flush()


def _segments(lengths: np.ndarray, lead: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (episode, start, stop, first frame to keep) so that every frame is kept once."""
    for episode, length in enumerate(lengths.tolist()):
        keep = 0
        while keep < length:
            start = max(0, keep - lead)
            stop = min(length, start + SEGMENT + lead)
            yield episode, start, stop, keep
            keep = stop


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1), mode="edge")


def _digest(model: nnx.Module) -> str:
    digest = hashlib.sha256()
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        digest.update(repr(path).encode() + sharding.fetch(leaf[...]).tobytes())
    return digest.hexdigest()[:16]


def _kept(folder: Path, key: dict) -> dict[str, np.ndarray] | None:
    """Return the arrays in ``folder`` if they are those of ``key``, all there and whole."""
    try:
        found = json.loads((folder / KEY).read_text(encoding="utf-8"))
        arrays = _opened(folder)
    except (OSError, ValueError, EOFError):
        return None
    return arrays if found == {**key, "arrays": sorted(arrays)} else None


def _opened(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
