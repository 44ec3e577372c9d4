"""A dataset on disk: a folder of ArrayRecord files and one manifest.json. All data are written and opened here.

One record is a chunk of an episode (16 frames by default): a msgpack header with the episode's number, its first frame
and the name, type and shape of every array, then their raw bytes. ArrayRecord compresses each record with zstd. The
manifest holds everything else: spec, lengths, sizes, checksums, where the data came from. Records are numbered through
the files of a split in episode order, so lengths alone tell where every chunk is.

ArrayRecord has no build for some systems. There a dataset is one .npz file (``reverie.data.arrays``): a path that ends
in .npz selects it.
"""

import contextlib
import glob
import hashlib
import math
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from reverie import config
from reverie.bounded import parse_json, read_bytes
from reverie.checksums import checked, write_json
from reverie.data.arrays import ArrayDataset, whole_lengths
from reverie.data.episode import Dataset, Episode, Spec
from reverie.data.records import array_record
from reverie.data.splits import division
from reverie.errors import Damaged, ReverieError, did_you_mean, first_line

MANIFEST, MANIFEST_BYTES = "manifest.json", 2**28  # enough for names and lengths of millions of episodes
FORMAT, SCHEMA = "reverie-store", 1
KINDS = ("uint8", "int32", "float32", "bool")  # of arrays
AGAIN = "fetch or write the dataset again"
LEFT = 24 * 3600.0  # seconds without a change after which a half-written folder counts as abandoned
NOTES = 1000  # lines about its data that a manifest keeps
CHUNK = 16  # frames of a record: a window of 2 to 16 reads one or two, and decompresses little it does not need
VAL = 0.1  # of the frames are held out unless said otherwise


class NoSplit(ReverieError):
    """The dataset has no split of this name."""


def write_store(
    path: str | Path,
    spec: Spec,
    episodes: Iterable[Episode] | Mapping[str, Iterable[Episode]],
    *,
    val: float = VAL,
    chunk: int = CHUNK,
    file_bytes: int = 1 << 30,
    licence: str = "",
    provenance: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write episodes, one in memory at a time, to a new folder ``path``, atomically.

    episodes: {split: episodes}; or all of them, of which about a share ``val`` goes to "val" and the rest to "train"
    (``splits.division``). In that case they are written twice, first to a temporary folder. chunk: frames per record.
    file_bytes: size at which a file is closed, before compression. notes: lines for the manifest, read after all
    episodes are written. A path that ends in .npz becomes one file, built in memory. Raises ReverieError, and leaves no
    files behind, if an episode does not match the spec or ``path`` exists. A killed process may leave a hidden folder
    ``.NAME.*.part``.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ReverieError(f"'{path}' exists already; choose another name, or remove it first.")
    if not 0 <= val < 1 or chunk < 1:
        raise ReverieError(f"val = {val} must be a fraction below 1, and chunk = {chunk} at least 1 frame.")
    if path.suffix == ".npz":
        if isinstance(episodes, Mapping):
            raise ReverieError("an .npz file holds no named splits; give the episodes of one split, or write a folder.")
        return ArrayDataset.from_episodes(spec, episodes).save(path)
    array_record()  # say so before the work, if it is not there
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # left by a killed writer
        if max(file.lstat().st_mtime for file in (left, *left.rglob("*"))) < time.time() - LEFT:
            shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        about = {"chunk": chunk, "file_bytes": file_bytes, "licence": licence, "provenance": provenance, "notes": notes}
        if isinstance(episodes, Mapping):
            _fill(part, spec, _named(episodes), **about)
        elif not val:
            _fill(part, spec, _named({"train": episodes}), **about)
        else:
            whole = part / "whole"
            whole.mkdir()
            _fill(whole, spec, (("all", episode) for episode in episodes), **about)
            _fill(part, spec, _pieces(StoreDataset(whole, "all"), val), **about)
            shutil.rmtree(whole)
        part.chmod(0o755)  # mkdtemp creates it as private
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def _fill(
    folder: Path,
    spec: Spec,
    episodes: Iterable[tuple[str, Episode]],
    *,
    chunk: int,
    file_bytes: int,
    licence: str,
    provenance: str,
    notes: Sequence[str],
) -> None:
    """Write pairs (split, episode) to an empty folder, then the manifest."""
    writers: dict[str, _SplitWriter] = {}
    arrays: list | None = None
    try:
        for split, episode in episodes:
            episode.validate(spec)
            found = [[name, array.dtype.name, list(array.shape[1:])] for name, array in episode.arrays().items()]
            arrays = arrays or found
            if found != arrays:
                raise ReverieError(f"episode '{episode.source}' holds {found}, the episodes before it {arrays}.")
            if split not in writers:
                writers[split] = _SplitWriter(folder, split, chunk, file_bytes)
            writers[split].write(episode)
        if not writers:
            raise ReverieError("there are no episodes to write.")
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA,
            "spec": config.to_json(spec),
            "chunk": chunk,
            "arrays": arrays,
            "licence": licence,
            "provenance": provenance,
            "notes": [*notes[:NOTES], *([f"and {len(notes) - NOTES} more lines"] if len(notes) > NOTES else [])],
            "splits": {split: writers[split].finish() for split in sorted(writers)},
        }
        write_json(folder / MANIFEST, manifest)
    finally:
        for writer in writers.values():
            with contextlib.suppress(ReverieError):  # the first error is already being raised
                writer.close()


def _named(episodes: Mapping[Any, Iterable[Episode]]) -> Iterator[tuple[str, Episode]]:
    for split, part in episodes.items():
        if not split.isidentifier():
            raise ReverieError(f"'{split}' is no name for a split; use letters, digits and _.")
        yield from ((split, episode) for episode in part)


def _pieces(whole: "StoreDataset", val: float) -> Iterator[tuple[str, Episode]]:
    """Yield (split, episode) of a dataset to be split; each piece starts like an episode."""
    for piece in division(whole, whole.sources, val):
        arrays = whole.read(piece.episode, piece.start, piece.stop - piece.start)
        if piece.start:
            arrays |= {name: arrays[name].copy() for name in ("actions", "rewards", "ends")}
            arrays["actions"][0], arrays["rewards"][0] = whole.spec.actions.start(), 0
        source, task = whole.sources[piece.episode], whole.tasks[piece.episode]
        yield piece.split, Episode(**arrays, fps=whole.spec.fps, source=source, task=task)


def open_dataset(path: str | Path, split: str = "train", *, checksums: bool = False) -> Dataset:
    """Return one split of a folder of ``write_store``, or of an .npz file, which is split when it is opened.

    Sizes and shapes are always checked, and every record when it is read. ``checksums``: also verify every file now.
    Raises ReverieError.
    """
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.glob("*") if _is_dataset(p)] if path.parent.is_dir() else []
        raise ReverieError(f"there is no dataset at '{path}'.{did_you_mean(path.name, near)}")
    if path.resolve().suffix == ".npz":  # a link to one may have any name
        whole = ArrayDataset.load(path)
        pieces = [piece for piece in division(whole, whole.sources, VAL) if piece.split == split]
        if not pieces:
            raise NoSplit(f"'{path}' has {len(whole.lengths)} episodes and no split '{split}': train or val.")
        return whole.part(pieces, split)
    if not (path / MANIFEST).is_file():
        inside = [p.name for p in path.glob("*") if _is_dataset(p)] if path.is_dir() else []
        hint = f" Did you mean '{path / inside[0]}'?" if inside else " `reverie learn` takes folders of videos."
        raise ReverieError(f"'{path}' is not a dataset: it has no {MANIFEST}.{hint}")
    return StoreDataset(path, split, checksums=checksums)


class StoreDataset:
    """A Dataset that reads from a folder; see ``open_dataset``.

    sources: where each episode came from. tasks: what was to be done in it. notes: what its source said of the files.
    """

    def __init__(self, path: Path, split: str, *, checksums: bool = False):
        try:
            raw = read_bytes(path / MANIFEST, MANIFEST_BYTES)
            manifest = parse_json(raw, f"'{path / MANIFEST}'")
            if manifest["format"] != FORMAT:
                raise ReverieError(f"'{path}' is not a dataset that Reverie wrote (format '{manifest['format']}').")
            if manifest["schema"] > SCHEMA:
                raise ReverieError(
                    f"'{path}' was written by a newer Reverie (data format {manifest['schema']}, this one reads "
                    f"{SCHEMA}); update Reverie first."
                )
            manifest = checked(manifest, "its content")
            if split not in manifest["splits"]:
                raise NoSplit(f"'{path}' has no split '{split}'.{did_you_mean(split, manifest['splits'])}")
            part = manifest["splits"][split]
            self.spec: Spec = config.from_json(manifest["spec"])
            self.lengths = whole_lengths(part["lengths"])
            self.sources: list[str] = part["sources"]
            self.tasks: list[str] = part.get("tasks") or [""] * len(self.lengths)
            self.notes: list[str] = manifest.get("notes", [])
            self.licence: str = manifest["licence"]
            self._chunk: int = manifest["chunk"]
            self._arrays = [(name, dtype, tuple(shape)) for name, dtype, shape in manifest["arrays"]]
            sizes = [(file["bytes"], file["sha256"]) for file in part["files"]]
            self._ends = np.cumsum([file["records"] for file in part["files"]])  # of each file's record numbers
            chunks = -(-self.lengths // self._chunk)
            if not isinstance(self.spec, Spec) or not isinstance(self._chunk, int) or self._chunk < 1:
                raise Damaged("it has no spec, or no length of chunks")
        except Damaged as error:
            raise ReverieError(f"'{path / MANIFEST}' is damaged ({first_line(error)}); {AGAIN}.") from None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ReverieError(f"'{path / MANIFEST}' is damaged ({error!r}); {AGAIN}.") from None
        self.split = split
        self._files = [path / _file_name(split, index) for index in range(len(sizes))]
        self._first = np.cumsum(chunks) - chunks  # record number of each episode's first chunk
        self._readers: list[Any] = [None] * len(sizes)
        self._lock = threading.Lock()
        self.fingerprint = hashlib.sha256(raw + split.encode()).hexdigest()[:16]
        if not len(self.lengths) or not sizes or chunks.sum() != self._ends[-1]:
            raise ReverieError(f"'{path / MANIFEST}' is damaged: its counts disagree; {AGAIN}.")
        foreign = {kind for _, kind, _ in self._arrays} - set(KINDS)
        kind, shape = np.dtype(self.spec.actions.dtype).name, self.spec.actions.shape
        promised = {("frames", "uint8", tuple(self.spec.frame)), ("actions", kind, shape)}
        if foreign or promised - set(self._arrays):
            raise ReverieError(f"'{path / MANIFEST}' is damaged: its arrays are not those its spec says; {AGAIN}.")
        for file, (size, checksum) in zip(self._files, sizes, strict=True):
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                what = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ReverieError(f"'{file}' {what}; {AGAIN}.")
            if checksums and _sha256(file) != checksum:
                raise ReverieError(f"'{file}' is damaged: its checksum differs; {AGAIN}.")
        array_record()

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return a window of one episode, (length, ...) each, joined from its records; see ``Dataset.read``."""
        if not 0 <= start < start + length <= self.lengths[episode]:
            raise IndexError(f"frames {start}..{start + length} of episode {episode} ({self.lengths[episode]} frames)")
        parts = []
        for chunk in range(start // self._chunk, (start + length - 1) // self._chunk + 1):
            first = chunk * self._chunk
            arrays = self._read_chunk(episode, chunk)
            wanted = arrays if names is None else arrays.keys() & names
            parts.append({name: arrays[name][max(0, start - first) : start + length - first] for name in wanted})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read_chunk(self, episode: int, chunk: int) -> dict[str, np.ndarray]:
        first = chunk * self._chunk
        length = min(self._chunk, int(self.lengths[episode]) - first)
        record = int(self._first[episode]) + chunk
        index = int(np.searchsorted(self._ends, record, side="right"))
        place = record - (int(self._ends[index - 1]) if index else 0)
        try:
            data = self._reader(index).read([place])[0]
            (size,) = struct.unpack_from("<I", data)
            header = msgpack.unpackb(data[4 : 4 + size])
        except (RuntimeError, IndexError, ValueError, struct.error, msgpack.UnpackException) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ReverieError(f"record {place} of '{self._files[index]}' cannot be read ({problem[:200]}).") from None
        expected = _header(self.split, episode, first, [(name, kind, (length, *s)) for name, kind, s in self._arrays])
        total = 4 + size + sum(_bytes(kind, shape) for _, kind, shape in expected["arrays"])
        if header != expected or len(data) != total:
            raise ReverieError(
                f"record {place} of '{self._files[index]}' disagrees with the manifest: it holds {header}, "
                f"the manifest says {expected}; {AGAIN}."
            )
        arrays, at = {}, 4 + size
        for name, kind, shape in expected["arrays"]:
            arrays[name] = np.frombuffer(data, kind, int(np.prod(shape)), at).reshape(shape)
            at += _bytes(kind, shape)
        return arrays

    def _reader(self, index: int) -> Any:
        with self._lock:
            if self._readers[index] is None:
                options = "readahead_buffer_size:0,max_parallelism:0"  # for random access
                reader = array_record().ArrayRecordReader(str(self._files[index]), options)
                expected = int(self._ends[index]) - (int(self._ends[index - 1]) if index else 0)
                if not reader.ok() or reader.num_records() != expected:
                    raise ReverieError(f"'{self._files[index]}' is damaged; {AGAIN}.")
                self._readers[index] = reader
            return self._readers[index]


class _SplitWriter:
    """Writes the files of one split and collects their entries of the manifest."""

    def __init__(self, folder: Path, split: str, chunk: int, file_bytes: int):
        self.folder, self.split, self.chunk, self.file_bytes = folder, split, chunk, file_bytes
        self.lengths: list[int] = []
        self.sources: list[str] = []
        self.tasks: list[str] = []
        self.files: list[dict[str, Any]] = []
        self.writer: Any = None
        self.records = self.size = 0

    def write(self, episode: Episode) -> None:
        for start in range(0, len(episode.frames), self.chunk):
            arrays = {name: array[start : start + self.chunk] for name, array in episode.arrays().items()}
            kinds = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
            header: bytes = msgpack.packb(_header(self.split, len(self.lengths), start, kinds))  # pyright: ignore
            record = b"".join([struct.pack("<I", len(header)), header, *(a.tobytes() for a in arrays.values())])
            if self.writer is None:
                file = self.folder / _file_name(self.split, len(self.files))
                # group_size:1: a record is read alone; larger groups make random reads 4-10 times slower
                self.writer = array_record().ArrayRecordWriter(str(file), "group_size:1,zstd:3")
            self.writer.write(record)
            self.records, self.size = self.records + 1, self.size + len(record)
            if self.size >= self.file_bytes:
                self.close()
        self.lengths.append(len(episode.frames))
        self.sources.append(episode.source)
        self.tasks.append(episode.task)

    def close(self) -> None:
        if self.writer is not None:
            writer, self.writer = self.writer, None
            file = self.folder / _file_name(self.split, len(self.files))
            try:
                writer.close()
            except RuntimeError as error:  # ArrayRecord's OSError: usually the disk is full
                problem = str(error).partition(";")[0]
                raise ReverieError(f"cannot write '{self.folder.parent}' ({problem}): is the disk full?") from error
            self.files.append({"records": self.records, "bytes": file.stat().st_size, "sha256": _sha256(file)})
            self.records, self.size = 0, 0

    def finish(self) -> dict[str, Any]:
        self.close()
        tasks = {"tasks": self.tasks} if any(self.tasks) else {}
        return {"lengths": self.lengths, "sources": self.sources, **tasks, "files": self.files}


def _header(split: str, episode: int, start: int, arrays: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, Any]:
    kinds = [[name, kind, list(shape)] for name, kind, shape in arrays]
    return {"split": split, "episode": episode, "start": start, "arrays": kinds}


def _bytes(kind: str, shape: Iterable[int]) -> int:
    return math.prod(shape) * np.dtype(kind).itemsize


def _file_name(split: str, index: int) -> str:
    return f"{split}-{index:05d}.array_record"


def _is_dataset(path: Path) -> bool:
    return (path / MANIFEST).is_file() or path.suffix == ".npz"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
