"""A dataset on disk: a folder of ArrayRecord files and one manifest.json. All data are written and opened here.

One record is a chunk of an episode (16 frames by default): a msgpack header with the episode's number, its first frame
and the name, type and shape of every array, then their bytes. The store's codec packs those of frames
(``reverie.data.codecs``). The manifest holds everything else: spec, lengths, sizes, checksums, where the data came
from. Records are numbered through the files of a split in episode order, so lengths alone tell where every chunk is.

ArrayRecord has no build for some systems. There a dataset is one .npz file (``reverie.data.arrays``): a path that ends
in .npz selects it.
"""

import glob
import hashlib
import shutil
import struct
import tempfile
import threading
import time
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from reverie import config
from reverie.bounded import parse_json, read_bytes
from reverie.checksums import checked, sha256
from reverie.data.arrays import ArrayDataset, whole_lengths
from reverie.data.codecs import CODECS, ZSTD, Coded
from reverie.data.episode import Dataset, Episode, Spec, with_tasks
from reverie.data.filling import (
    ASIDE,
    FORMAT,
    FRAMES,
    MANIFEST,
    SCHEMA,
    About,
    Entry,
    Stored,
    bytes_of,
    copy_of,
    entry_of,
    file_name,
    fill,
    header_of,
    packed_header,
)
from reverie.data.mixture import FILE as MIXTURE
from reverie.data.mixture import open_mixture
from reverie.data.records import array_record
from reverie.data.splits import NoSplit, division
from reverie.errors import Damaged, ReverieError, did_you_mean, first_line

MANIFEST_BYTES = 2**28  # enough for names and lengths of millions of episodes
KINDS = ("uint8", "int32", "float32", "bool")  # of arrays
AGAIN = "fetch or write the dataset again"
LEFT = 24 * 3600.0  # seconds without a change after which a half-written folder counts as abandoned
VAL = 0.1  # of the frames are held out unless said otherwise


def write_store(
    path: str | Path,
    spec: Spec,
    episodes: Iterable[Episode] | Mapping[str, Iterable[Episode]],
    *,
    val: float = VAL,
    **about: Any,
) -> Path:
    """Write episodes, one in memory at a time, to a new folder ``path``, atomically.

    episodes: {split: episodes}; or all of them, of which about a share ``val`` goes to "val" and the rest to "train"
    (``splits.division``). In that case they are written twice, first to a temporary folder. about: fields of
    ``filling.About``; its notes are read after all episodes are written. A path that ends in .npz becomes one file,
    built in memory. Raises ReverieError, and leaves no files behind, if an episode does not match the spec or ``path``
    exists. A killed process may leave a hidden folder ``.NAME.*.part``.
    """
    path, facts = Path(path), About(**about)
    refuse_existing(path)
    refuse_sizes(val, facts.chunk)
    if path.suffix == ".npz":
        if isinstance(episodes, Mapping):
            raise ReverieError("an .npz file holds no named splits; give the episodes of one split, or write a folder.")
        return ArrayDataset.from_episodes(spec, episodes).save(path)
    begin(path)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        if isinstance(episodes, Mapping) or not val:
            named = episodes if isinstance(episodes, Mapping) else {"train": episodes}
            fill(part, spec, _named(named, spec), facts)
        else:
            whole = part / "whole"
            whole.mkdir()
            fill(whole, spec, (entry_of("all", episode, spec) for episode in episodes), facts)
            fill(part, spec, divided_entries(StoreDataset(whole, "all"), val), facts)
            shutil.rmtree(whole)
        finish(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def refuse_existing(path: Path) -> None:
    """Raise ReverieError if there is anything at ``path`` but an empty folder."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ReverieError(f"'{path}' exists already; choose another name, or remove it first.")


def refuse_sizes(val: float, chunk: int) -> None:
    """Raise ReverieError unless these can be sizes of a store."""
    if not 0 <= val < 1 or chunk < 1:
        raise ReverieError(f"val = {val} must be a fraction below 1, and chunk = {chunk} at least 1 frame.")


def begin(path: Path) -> None:
    """Make the folder above ``path``, and remove what killed writers left there long ago."""
    array_record()  # say so before the work, if it is not there
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if max(file.lstat().st_mtime for file in (left, *left.rglob("*"))) < time.time() - LEFT:
            shutil.rmtree(left, ignore_errors=True)


def finish(part: Path, path: Path) -> None:
    """Give a complete folder its name."""
    part.chmod(0o755)  # mkdtemp creates it as private
    part.replace(path)


def _named(episodes: Mapping[Any, Iterable[Episode]], spec: Spec) -> Iterator[Entry]:
    for split, part in episodes.items():
        if not split.isidentifier():
            raise ReverieError(f"'{split}' is not a name for a split; use letters, digits and _.")
        yield from (entry_of(split, episode, spec) for episode in part)


def divided_entries(whole: Any, val: float) -> Iterator[Entry]:
    """Yield the entries of a dataset to be split; each piece starts like an episode."""
    for piece in division(whole, whole.sources, val):
        yield copy_of(piece.split, whole, piece.episode, piece.start, piece.stop)


def open_dataset(path: str | Path, split: str = "train", *, checksums: bool = False) -> Dataset:
    """Return one split of a folder of ``write_store``, or of an .npz file, which is split when it is opened.

    Sizes and shapes are always checked, and every record when it is read. ``checksums``: also verify every file now.
    Raises ReverieError.
    """
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.glob("*") if is_store(p)] if path.parent.is_dir() else []
        raise ReverieError(f"there is no dataset at '{path}'.{did_you_mean(path.name, near)}")
    # A link to one may have any name, and so may a copy, which takes a link's place where none can be made.
    if path.resolve().suffix == ".npz" or (path.is_file() and zipfile.is_zipfile(path)):
        whole = ArrayDataset.load(path)
        every = division(whole, whole.sources, VAL)
        pieces = [piece for piece in every if piece.split == split]
        if not pieces:
            known = dict.fromkeys(piece.split for piece in every)
            raise NoSplit(f"'{path}' has {len(whole.lengths)} episodes and no split '{split}': train or val.", known)
        return whole.part(pieces, split)
    if (path / MIXTURE).is_file():
        return open_mixture(path, split, lambda store, name: open_dataset(store, name, checksums=checksums))
    if not (path / MANIFEST).is_file():
        inside = [p.name for p in path.glob("*") if is_store(p)] if path.is_dir() else []
        hint = f" Did you mean '{path / inside[0]}'?" if inside else " `reverie learn` takes folders of videos."
        raise ReverieError(f"'{path}' is not a dataset: it has no {MANIFEST}.{hint}")
    return StoreDataset(path, split, checksums=checksums)


def _checked_manifest(path: Path, split: str, raw: bytes) -> dict[str, Any]:
    """Return a manifest that has a split; NoSplit if it has not, another ReverieError if it cannot be used."""
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
        hint = did_you_mean(split, manifest["splits"])
        if "shard" in manifest:
            hint = " It is part of an array job: join the parts with 'reverie data merge OUT PARTS'."
        raise NoSplit(f"'{path}' has no split '{split}'.{hint}", manifest["splits"])
    return manifest


class StoreDataset:
    """A Dataset that reads from a folder; see ``open_dataset``.

    sources: where each episode came from. tasks: what was to be done in it. notes: what its source said about the
    files. kinds: name, dtype and shape of each array. codec: the name of what packs frames. shard: [i, n, val] of part
    i of n of an array job, else None. aside: why episodes in quarantine are left out, by their number on disk; own:
    that number of each of the others.
    """

    def __init__(self, path: Path, split: str, *, checksums: bool = False):
        try:
            raw = read_bytes(path / MANIFEST, MANIFEST_BYTES)
            manifest = _checked_manifest(path, split, raw)
            part = manifest["splits"][split]
            tasks = (task for each in manifest["splits"].values() for task in each.get("tasks", ()))
            self.spec: Spec = with_tasks(config.from_json(manifest["spec"]), tasks)
            lengths = whole_lengths(part["lengths"])
            named = part.get("tasks") or [""] * len(lengths)
            self.aside: dict[str, str] = part.get(ASIDE, {})
            self.own = [episode for episode in range(len(lengths)) if str(episode) not in self.aside]
            self.lengths = lengths[self.own]
            self.sources: list[str] = [part["sources"][episode] for episode in self.own]
            self.tasks: list[str] = [named[episode] for episode in self.own]
            self.notes: list[str] = manifest.get("notes", [])
            self.licence: str = manifest["licence"]
            self.provenance: str = str(manifest.get("provenance", ""))
            self.shard: list | None = manifest.get("shard")
            self.manifest: dict[str, Any] = manifest
            self._chunk: int = manifest["chunk"]
            self.codec = str(manifest.get("codec", ZSTD))
            self.kinds = [(name, dtype, tuple(shape)) for name, dtype, shape in manifest["arrays"]]
            sizes = [(file["bytes"], file["sha256"]) for file in part["files"]]
            self._ends = np.cumsum([file["records"] for file in part["files"]])  # of each file's record numbers
            chunks = -(-lengths // self._chunk)
            if not isinstance(self.spec, Spec) or not isinstance(self._chunk, int) or self._chunk < 1:
                raise Damaged("it has no spec, or no length of chunks")
        except Damaged as error:
            raise ReverieError(f"'{path / MANIFEST}' is damaged ({first_line(error)}); {AGAIN}.") from None
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ReverieError(f"'{path / MANIFEST}' is damaged ({error!r}); {AGAIN}.") from None
        if self.codec not in CODECS:
            raise ReverieError(f"'{path}' is packed with '{self.codec}', which is unknown here; update Reverie first.")
        self.split, self._codec = split, CODECS[self.codec]
        self._files = [path / file_name(split, index) for index in range(len(sizes))]
        self._lengths = lengths  # of all episodes on disk
        self._first = np.cumsum(chunks) - chunks  # record number of each episode's first chunk
        self._readers: list[Any] = [None] * len(sizes)
        self._lock = threading.Lock()
        self.fingerprint = hashlib.sha256(raw + split.encode()).hexdigest()[:16]
        if not len(self.lengths) or not sizes or chunks.sum() != self._ends[-1]:
            raise ReverieError(f"'{path / MANIFEST}' is damaged: its counts disagree; {AGAIN}.")
        foreign = {kind for _, kind, _ in self.kinds} - set(KINDS)
        kind, shape = np.dtype(self.spec.actions.dtype).name, self.spec.actions.shape
        promised = {("frames", "uint8", tuple(self.spec.frame)), ("actions", kind, shape)}
        if foreign or promised - set(self.kinds):
            raise ReverieError(f"'{path / MANIFEST}' is damaged: its arrays are not those its spec says; {AGAIN}.")
        for file, (size, checksum) in zip(self._files, sizes, strict=True):
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                what = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ReverieError(f"'{file}' {what}; {AGAIN}.")
            if checksums and sha256(file) != checksum:
                raise ReverieError(f"'{file}' is damaged: its checksum differs; {AGAIN}.")
        array_record()

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return a window of one episode, (length, ...) each, joined from its records; see ``Dataset.read``."""
        if not 0 <= start < start + length <= self.lengths[episode]:
            raise IndexError(f"frames {start}..{start + length} of episode {episode} ({self.lengths[episode]} frames)")
        parts, episode = [], self.own[episode]
        for chunk in range(start // self._chunk, (start + length - 1) // self._chunk + 1):
            first = chunk * self._chunk
            arrays = self._read_chunk(episode, chunk, names)
            parts.append(
                {name: array[max(0, start - first) : start + length - first] for name, array in arrays.items()}
            )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def packed(self, episode: int, codec: str, start: int, stop: int) -> bytes:
        """Return frames ``start .. stop`` as they lie on disk, if they are one record's, packed with this codec."""
        chunk, rest = divmod(start, self._chunk)
        if rest or stop != min(start + self._chunk, int(self.lengths[episode])):
            return b""
        if codec != self.codec or not isinstance(self._codec, Coded):  # plain frames are not packed by themselves
            return b""
        for name, _, data, _ in self._arrays(self.own[episode], chunk):
            if name == FRAMES:
                return bytes(data)
        return b""

    def stored(self, episode: int, start: int, stop: int) -> Stored | None:
        """Return where frames ``start .. stop`` and all arrays of theirs lie, if they are one record and not packed."""
        (chunk, rest), own = divmod(start, self._chunk), self.own[episode]
        if rest or stop != min(start + self._chunk, int(self.lengths[episode])) or isinstance(self._codec, Coded):
            return None
        index, place = self._place(own, chunk)
        arrays = [(name, kind, (stop - start, *shape)) for name, kind, shape in self.kinds]
        size = sum(bytes_of(kind, shape) for _, kind, shape in arrays)
        return Stored(self._files[index], place, packed_header(self.split, own, start, arrays), size)

    def _place(self, episode: int, chunk: int) -> tuple[int, int]:
        """Return the file of a record, and its number there."""
        record = int(self._first[episode]) + chunk
        index = int(np.searchsorted(self._ends, record, side="right"))
        return index, record - (int(self._ends[index - 1]) if index else 0)

    def _read_chunk(self, episode: int, chunk: int, names: Collection[str] | None) -> dict[str, np.ndarray]:
        """Return the arrays of a record, or some of them: frames are unpacked only if wanted."""
        arrays = {}
        for name, kind, data, shape in self._arrays(episode, chunk):
            if names is None or name in names:
                try:
                    frames = self._codec.decode(data, shape) if name == FRAMES else None
                except Damaged as error:
                    where = f"chunk {chunk} of episode {episode} in split '{self.split}'"
                    raise ReverieError(f"{where} of '{self._files[0].parent}' is damaged: {error}; {AGAIN}.") from None
                arrays[name] = np.frombuffer(data, kind).reshape(shape) if frames is None else frames
        return arrays

    def _arrays(self, episode: int, chunk: int) -> Iterator[tuple[str, str, memoryview, tuple[int, ...]]]:
        """Yield name, type, bytes and shape of each array of a record; ReverieError unless the manifest agrees."""
        first = chunk * self._chunk
        length = min(self._chunk, int(self._lengths[episode]) - first)
        index, place = self._place(episode, chunk)
        try:
            data = self._reader(index).read([place])[0]
            (size,) = struct.unpack_from("<I", data)
            header = msgpack.unpackb(data[4 : 4 + size])
        except (RuntimeError, IndexError, ValueError, struct.error, msgpack.UnpackException) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ReverieError(f"record {place} of '{self._files[index]}' cannot be read ({problem[:200]}).") from None
        expected = header_of(self.split, episode, first, [(name, kind, (length, *s)) for name, kind, s in self.kinds])
        sizes = {name: bytes_of(kind, shape) for name, kind, shape in expected["arrays"]}
        if isinstance(self._codec, Coded):  # its frames have the bytes that are left
            sizes[FRAMES] += len(data) - 4 - size - sum(sizes.values())
        if header != expected or len(data) != 4 + size + sum(sizes.values()) or sizes[FRAMES] < 0:
            raise ReverieError(
                f"record {place} of '{self._files[index]}' disagrees with the manifest: it holds {header}, "
                f"the manifest says {expected}; {AGAIN}."
            )
        at = 4 + size
        for name, kind, shape in expected["arrays"]:
            yield name, kind, memoryview(data)[at : at + sizes[name]], tuple(shape)
            at += sizes[name]

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


def is_store(path: Path) -> bool:
    """Whether ``open_dataset`` opens this path, judged by names: a store, a mixture of stores, or one file."""
    return (path / MANIFEST).is_file() or (path / MIXTURE).is_file() or path.suffix == ".npz"
