"""The token cache: outputs of frozen models over a dataset, computed once and stored beside the run.

A frozen encoder gives the same codes whenever a clip is drawn. Running it in every training step would be most of the
step's cost. The cache has a checksum manifest, which is verified whenever the cache is opened. That takes a second per
gigabyte; encoding the frames again would take hours.

Shapes: B segments at once, T frames of a segment, N tokens per frame.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from flax import nnx

from reverie.bounded import map_npy
from reverie.checksums import check_manifest, write_manifest
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset
from reverie.errors import Damaged, ReverieError, first_line
from reverie.nn.compiled import compiled
from reverie.training import sharding
from reverie.training.folder import FULL

SEGMENT, TOGETHER = 64, 8  # frames of a segment, and segments in one call (more for more devices)


class Joined:
    """A dataset with the arrays of a cache added to its windows; the cache's replace those of the same name."""

    def __init__(self, dataset: Dataset, cache: ArrayDataset):
        self.dataset, self.cache = dataset, cache
        self.spec, self.lengths, self.fingerprint = dataset.spec, dataset.lengths, dataset.fingerprint
        self.split = dataset.split

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Dataset.read``; arrays that the cache has are not read from the dataset."""
        kept = self.cache.read(episode, start, length, names)
        others = None if names is None else set(names) - kept.keys()
        return kept if others == set() else self.dataset.read(episode, start, length, others) | kept


def cached(
    model: nnx.Module,
    encode: Callable[[Any, dict], dict],
    dataset: Dataset,
    lead: int,
    folder: Path,
    frozen: Sequence[str],
) -> ArrayDataset:
    """Return ``encode(model, batch)`` of every frame of a dataset, from the cache in ``folder`` if it is valid.

    ``encode`` maps dicts of arrays (B, T, ...) to such dicts and is causal in T. It must use only the parts that are
    named in ``frozen``: the cache is valid as long as these stay the same. Episodes are encoded in segments. Each but
    the first of an episode starts with ``lead`` extra frames, the receptive field of the model, whose outputs are
    dropped. Raises ReverieError, and leaves no files behind, if the disk is full.
    """
    key = {
        "data": dataset.fingerprint,
        "encode": encode.__name__,
        "model": _digest(model, frozen),
        "lead": lead,
        "segment": SEGMENT,
    }
    if not sharding.from_first(lambda: int(_is_whole(folder, key))):
        half = folder.with_name(f".{folder.name}.part")  # no other process writes here; at most one is left by a kill

        def begin() -> None:
            for left in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(left, ignore_errors=True)
            half.mkdir(parents=True)

        def end() -> None:
            with _room_on_disk(folder):
                write_manifest(half, {"key": key})
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(half, folder)

        try:
            sharding.by_first(begin)
            _write(model, encode, dataset, lead, half)
            sharding.by_first(end)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    arrays = {path.stem: map_npy(path) for path in sorted(folder.glob("*.npy"))}
    return ArrayDataset(dataset.spec, dataset.lengths, arrays, fingerprint=dataset.fingerprint, split=dataset.split)


def _write(model, encode, dataset: Dataset, lead: int, folder: Path) -> None:
    """Encode in all processes, sharded over the devices that have the model; process 0 writes.

    Files are written from start to end, in the order of the arrays. So a full disk raises an OSError; with a
    memory-mapped file it would be a bus error.
    """
    call, mesh = compiled(model, encode), sharding.mesh_of(nnx.state(model))
    total, at = int(dataset.lengths.sum()), 0
    pieces, together = list(_segments(dataset.lengths, lead)), -(-TOGETHER // mesh.size) * mesh.size
    longest = max((stop - start for _, start, stop, _ in pieces), default=0)  # all are padded to it: one program
    with _room_on_disk(folder), contextlib.ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        names = ("frames", "actions")
        for first in range(0, len(pieces), together):
            group = pieces[first : first + together]
            windows = [dataset.read(episode, start, stop - start, names) for episode, start, stop, _ in group]
            windows += windows[:1] * (together - len(group))  # one shape, one program
            batch = {name: np.stack([_padded(window[name], longest) for window in windows]) for name in names}
            results = sharding.fetch(call(sharding.put(batch, sharding.rows(mesh))))
            if jax.process_index() > 0:
                continue
            results = {name: _plain(result) for name, result in results.items()}
            files = files or {
                name: stack.enter_context(_begun(folder / f"{name}.npy", result.dtype, (total, *result.shape[2:])))
                for name, result in results.items()
            }
            for index, (_, start, stop, keep) in enumerate(group):
                for name, result in results.items():
                    files[name].write(result[index, keep - start : stop - start].tobytes())
                at += stop - keep
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # some disks report only now that they are full
    assert at in (0, total)


def _begun(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> IO[bytes]:
    """Return a new .npy file, positioned after its header."""
    needed = int(np.prod(shape)) * dtype.itemsize
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # raised before the work, not after it
    file = path.open("wb")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _plain(array: np.ndarray) -> np.ndarray:
    """Return an array of a type that .npy files support: bfloat16 becomes float32."""
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)


@contextlib.contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL - {errno.EIO}:
            raise
        raise ReverieError(f"cannot cache tokens in '{folder.parent}': {error.strerror}. Make room there.") from error


def _segments(lengths: np.ndarray, lead: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (episode, start, stop, first frame to keep), which keep every frame exactly once."""
    for episode, length in enumerate(lengths.tolist()):
        keep = 0
        while keep < length:
            start = max(0, keep - lead)
            stop = min(length, start + SEGMENT + lead)
            yield episode, start, stop, keep
            keep = stop


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1), mode="edge")


def _digest(model: nnx.Module, parts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path[0] in parts:
            digest.update(repr(path).encode() + sharding.fetch(leaf[...]).tobytes())
    return digest.hexdigest()[:16]


def _is_whole(folder: Path, key: dict) -> bool:
    """Whether the cache in ``folder`` is that of ``key``, with right checksums."""
    try:
        about = check_manifest(folder, lambda name: False)
        if about is None or about.get("key") != key:
            return False
        check_manifest(folder)
    except Damaged as error:
        print(f"The token cache '{folder}' is damaged ({first_line(error)}): it is made again.", file=sys.stderr)
        return False
    return True
