"""The token cache: outputs of frozen models over a dataset, computed once and stored beside the run.

A frozen encoder gives the same codes whenever a clip is drawn. Running it in every training step would be most of the
step's cost. The cache has a checksum manifest, which is verified whenever the cache is opened. That takes a second per
gigabyte; encoding the frames again would take hours. It is written and read piece by piece, so it may be larger than
memory, and all processes of a job write it, so they must share a disk.

Shapes: B segments at once, T frames of a segment, N tokens per frame.
"""

import contextlib
import errno
import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reverie.bounded import open_npy
from reverie.checksums import check_manifest, write_manifest
from reverie.data.arrays import ArrayDataset
from reverie.data.columns import Column
from reverie.data.episode import Dataset, numbers_of
from reverie.errors import Damaged, ReverieError, first_line
from reverie.nn.compiled import compiler_options
from reverie.nn.transformer import unstack_layers
from reverie.training import sharding
from reverie.training.folder import FULL
from reverie.training.log import QUIET

SEGMENT, TOGETHER = 64, 8  # frames of a segment, and segments that a device encodes at once
INPUTS = "frames", "actions"  # arrays that are encoded
Segment = tuple[int, int, int, int]  # episode, start, stop, first frame to keep


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
    copied: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> ArrayDataset:
    """Return ``encode(model, batch)`` of every frame of a dataset, from the cache in ``folder`` if it is valid.

    ``encode`` maps dicts of arrays (B, T, ...) to such dicts and is causal in T. It must use only the parts that are
    named in ``frozen``: the cache is valid as long as these stay the same. Episodes are encoded in segments. Each but
    the first of an episode starts with ``lead`` extra frames, the receptive field of the model, whose outputs are
    dropped. ``copied``: arrays of the dataset that the cache has as they are, so that training reads nothing else.
    ``settings``: what ``encode`` follows beside weights; with others the cache is made again.

    All processes of a job write it, and little of it is in memory, however large it is. Raises ReverieError, and leaves
    no files behind, if the disk is full.
    """
    key = {
        "data": dataset.fingerprint,
        "encode": encode.__name__,
        "model": digest_of(model, frozen),
        "lead": lead,
        "segment": SEGMENT,
    } | {name: list(own) for name, own in (("copied", copied), ("settings", settings)) if own}
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
            with _room_on_disk(folder):
                _write(_Encoder(model, encode, frozen), dataset, lead, half, copied)
            sharding.by_first(end)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    arrays = {path.stem: Column(path) for path in sorted(folder.glob("*.npy"))}
    return ArrayDataset(dataset.spec, dataset.lengths, arrays, fingerprint=dataset.fingerprint, split=dataset.split)


def _write(encoder: "_Encoder", dataset: Dataset, lead: int, folder: Path, copied: Sequence[str]) -> None:
    """Encode and write in all processes, each a part of the segments; the files are the same whoever wrote them.

    A device encodes a group of segments at once, always the same ones, so every number has the same bits on any number
    of devices and processes. Each process writes its part of every file in order. So a full disk raises an OSError;
    with a memory-mapped file it would be a bus error.
    """
    groups, begins = _groups(dataset.lengths, lead), np.cumsum(dataset.lengths) - dataset.lengths
    longest = max(stop - start for group in groups for _, start, stop, _ in group)  # all are padded: one program

    def read(groups: Sequence[Sequence[Segment]]) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
        """Return the windows of groups, and the batch of them; groups that lack segments repeat their first one."""
        windows = []
        for group in groups:
            found = [dataset.read(e, start, stop - start, (*INPUTS, *copied)) for e, start, stop, _ in group]
            windows += found + found[:1] * (TOGETHER - len(group))
        return windows, {name: np.stack([padded(each[name], longest) for each in windows]) for name in INPUTS}

    windows, batch = read(groups[:1])
    kinds = {name: (windows[0][name].dtype, windows[0][name].shape[1:]) for name in copied}
    kinds |= encoder.kinds(batch)
    files = {name: folder / f"{name}.npy" for name in kinds}
    sharding.by_first(lambda: _begin(files, kinds, int(dataset.lengths.sum())))

    def write() -> None:
        numbers, said = numbers_of((jax.process_index(), jax.process_count()), len(groups)), time.perf_counter()
        with contextlib.ExitStack() as stack:
            parts = {name: stack.enter_context(_Part(file)) for name, file in files.items()}
            for at in range(numbers.start, numbers.stop, encoder.mesh.size):
                some = groups[at : min(at + encoder.mesh.size, numbers.stop)]
                windows, batch = read([*some, *some[:1] * (encoder.mesh.size - len(some))])
                results = encoder(batch)
                if jax.process_index() == 0 and time.perf_counter() - said > QUIET:
                    print(f"frames encoded: {(at - numbers.start) / len(numbers):.0%}", flush=True)
                    said = time.perf_counter()
                for place, group in enumerate(some):
                    for row, (episode, start, stop, keep) in enumerate(group, start=place * TOGETHER):
                        for name, part in parts.items():
                            array = windows[row][name] if name in copied else results[name][row]
                            part.write(int(begins[episode]) + keep, array[keep - start : stop - start])

    sharding.by_all(write)


class _Encoder:
    """``encode`` as a program of batches on this process's own devices, whose mesh is ``mesh``.

    They get a copy of the frozen weights alone. The others, which ``encode`` does not read, are zeros in the program.
    """

    def __init__(self, model: nnx.Module, encode: Callable[[Any, dict], dict], frozen: Sequence[str]):
        graph, state = nnx.split(model)
        leaves, tree = jax.tree.flatten(state)
        self.mesh = sharding.mesh_here(state)
        named = zip((path[0] for path, _ in nnx.to_flat_state(state)), leaves, strict=True)
        kept = {number: leaf for number, (name, leaf) in enumerate(named) if name in frozen}
        self._kept = sharding.put_here(kept, sharding.everywhere(self.mesh))
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]

        def run(kept: dict[int, jax.Array], batch: dict) -> dict:
            every = [kept[number] if number in kept else jnp.zeros(*shape) for number, shape in enumerate(shapes)]
            return encode(unstack_layers(nnx.merge(graph, jax.tree.unflatten(tree, every))), batch)

        self._call: Any = jax.jit(run, compiler_options=compiler_options())

    def kinds(self, batch: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Return type and shape of a frame of each output in a file."""
        found = self._call.eval_shape(self._kept, batch)
        return {name: (_kind(each.dtype), each.shape[2:]) for name, each in found.items()}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return jax.device_get(self._call(self._kept, sharding.put_here(batch, sharding.rows(self.mesh))))


class _Part:
    """A file of rows, some of which this process writes, in order."""

    def __init__(self, path: Path):
        found, kind, shape = open_npy(path)
        with found:
            self._begin, self._size = found.tell(), math.prod(shape[1:]) * kind.itemsize
        self._file = path.open("r+b")

    def write(self, row: int, rows: np.ndarray) -> None:
        """Write rows (T, ...) from number ``row`` on."""
        self._file.seek(self._begin + row * self._size)
        self._file.write(_plain(rows).tobytes())

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *error: object) -> None:
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())  # some disks report only now that they are full


def _begin(files: dict[str, Path], kinds: dict[str, tuple[np.dtype, tuple[int, ...]]], rows: int) -> None:
    """Make .npy files of their full size, whose rows are still to be written. ``kinds``: type and shape of a row."""
    sizes = {name: rows * math.prod(shape) * kind.itemsize for name, (kind, shape) in kinds.items()}
    if shutil.disk_usage(next(iter(files.values())).parent).free < sum(sizes.values()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # raised before the work, not after it
    for name, (kind, shape) in kinds.items():
        with files[name].open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + sizes[name])


def _kind(dtype: Any) -> np.dtype:
    """Return the type that an array has in an .npy file: float32 for bfloat16, which such files do not support."""
    return np.dtype(dtype) if np.dtype(dtype).kind in "biuf" else np.dtype(np.float32)


def _groups(lengths: np.ndarray, lead: int) -> list[list[Segment]]:
    """Return all segments in order, in groups that are encoded at once."""
    segments = list(_segments(lengths, lead))
    return [segments[first : first + TOGETHER] for first in range(0, len(segments), TOGETHER)]


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(_kind(array.dtype), copy=False)


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


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """Return an array of at least ``length`` rows, the last of which is repeated."""
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1), mode="edge")


def digest_of(model: nnx.Module, parts: Sequence[str]) -> str:
    """Return a hash of the weights of these parts of a model."""
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
