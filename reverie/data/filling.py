"""Filling a folder with the record files of a dataset, and its manifest; see ``reverie.data.store`` for the format.

An entry is an episode on its way into a store. It is read by windows of one record, which another thread packs and
writes: sources and readers stay in the caller's thread. However long it is, only windows of ``AHEAD`` bytes are in
memory. The folder of a killed process is continued: complete files are not written again.
"""

import contextlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from reverie import config
from reverie.checksums import read_signed, sha256, write_json
from reverie.data.behind import Behind
from reverie.data.codecs import ZSTD, Plain, codec_of
from reverie.data.episode import CHUNK, Episode, Spec, windows
from reverie.data.records import Packed, new_records
from reverie.errors import ReverieError

MANIFEST, FORMAT, SCHEMA = "manifest.json", "reverie-store", 2
SCHEMAS = {"raw": 1, ZSTD: 1}  # of stores that earlier versions can read, by codec
FILE_BYTES = 1 << 30  # size at which a file is closed, before compression
SMALL, OF_A_SIZE = 1 << 27, 4  # the same for the first four files; it doubles for the next four, and so on
SIDE_BY_SIDE = min(os.cpu_count() or 1, 8)  # files of a split that are packed at the same time
AHEAD = 2**26  # bytes of frames that wait for the writer: games that are played side by side end together
NOTES = 1000  # lines about its data that a manifest keeps
FRAMES = "frames"  # the one array that a codec packs
ASIDE = "aside"  # of a split in a manifest: the numbers of episodes in quarantine, and why they are there
JOURNAL = ".{split}.json"  # the complete files of a folder that is being filled

Kinds = list[tuple[str, str, tuple[int, ...]]]  # name, dtype and shape of each array, without the time axis


class Stored(NamedTuple):
    """A record of a file: its header, with its length, and the number of bytes behind it."""

    file: Path
    place: int
    head: bytes
    payload: int


@dataclass(frozen=True)
class Entry:
    """An episode to write. window: returns its arrays from frame ``start`` to ``stop``.

    packed: returns those frames as they are packed already with a codec of this name; empty if they are not. stored:
    returns where they lie with all other arrays as one record, unless they lie otherwise or some are packed.
    """

    split: str
    length: int
    window: Callable[[int, int], dict[str, np.ndarray]]
    kinds: Kinds
    source: str = ""
    task: str = ""
    packed: Callable[[str, int, int], bytes] = lambda codec, start, stop: b""
    stored: Callable[[int, int], Stored | None] = lambda start, stop: None


@dataclass(frozen=True)
class About:
    """What a manifest says about a dataset as a whole. codec: a name of ``codecs.CODECS``. more: further entries.

    file_bytes: of the largest files. packing: ArrayRecord's option for records, if not the codec's.
    """

    licence: str = ""
    provenance: str = ""
    notes: Sequence[str] = ()
    chunk: int = CHUNK
    codec: str = ZSTD
    file_bytes: int = FILE_BYTES
    packing: str = ""
    more: dict[str, Any] = field(default_factory=dict)


def entry_of(split: str, episode: Episode, spec: Spec) -> Entry:
    """Return the entry of an episode in memory; ReverieError if it does not match the spec."""
    episode.validate(spec)
    arrays = episode.arrays()

    def window(start: int, stop: int) -> dict[str, np.ndarray]:
        return {name: array[start:stop] for name, array in arrays.items()}

    kinds = [(name, array.dtype.name, array.shape[1:]) for name, array in arrays.items()]
    return Entry(split, len(episode.frames), window, kinds, episode.source, episode.task)


def copy_of(split: str, dataset: Any, episode: int, start: int = 0, stop: int | None = None) -> Entry:
    """Return the entry of a recorded episode, or of a piece of it, which then starts as an episode does."""
    length = (int(dataset.lengths[episode]) if stop is None else stop) - start

    def window(first: int, last: int) -> dict[str, np.ndarray]:
        arrays = dataset.read(episode, start + first, last - first)
        if start and first == 0:
            arrays |= {name: arrays[name].copy() for name in ("actions", "rewards", "ends")}
            arrays["actions"][0], arrays["rewards"][0] = dataset.spec.actions.start(), 0
        return {name: arrays[name] for name, *_ in dataset.kinds}

    def packed(codec: str, first: int, last: int) -> bytes:
        read = getattr(dataset, "packed", None)
        return b"" if read is None else read(episode, codec, start + first, start + last)

    def stored(first: int, last: int) -> Stored | None:
        find = None if start and first == 0 else getattr(dataset, "stored", None)
        return find and find(episode, start + first, start + last)

    about = dataset.sources[episode], dataset.tasks[episode]
    return Entry(split, length, window, dataset.kinds, *about, packed, stored)


def fill(
    folder: Path,
    spec: Spec,
    entries: Iterable[Entry],
    about: About,
    *,
    parts: dict[str, Any] | None = None,
    journal: bool = False,
) -> None:
    """Write entries to a folder, then its manifest. ``parts``: splits of a store that the entries are added to.

    ``journal``: complete files are noted, so that a repeated call with the same entries goes on from them.
    """
    writers: dict[str, _SplitWriter] = {}
    kinds: Kinds | None = None

    def writer(split: str) -> "_SplitWriter":
        return _SplitWriter(folder, split, about, (parts or {}).get(split, {}), journal)

    try:
        with Behind(max(1, AHEAD // (about.chunk * math.prod(spec.frame)))) as behind:
            for entry in entries:
                kinds = kinds or entry.kinds
                if entry.kinds != kinds:
                    raise ReverieError(f"episode '{entry.source}' holds {entry.kinds}, the episodes before it {kinds}.")
                if entry.split not in writers:
                    writers[entry.split] = writer(entry.split)
                writers[entry.split].write(entry, behind)
        if not writers:
            raise ReverieError("there are no episodes to write.")
        made = {split: writers[split].finish() for split in writers}
        rest = [f"and {len(about.notes) - NOTES} more lines"] if len(about.notes) > NOTES else []
        manifest = {
            "format": FORMAT,
            "schema": SCHEMAS.get(about.codec, SCHEMA),
            "codec": about.codec,
            "spec": config.to_json(spec),
            "chunk": about.chunk,
            "arrays": [[name, kind, list(shape)] for name, kind, shape in kinds or ()],
            "licence": about.licence,
            "provenance": about.provenance,
            "notes": [*about.notes[:NOTES], *rest],
            **about.more,
            "splits": dict(sorted(((parts or {}) | made).items())),
        }
        write_json(folder / MANIFEST, manifest)
        for split in writers:
            (folder / JOURNAL.format(split=split)).unlink(missing_ok=True)
    finally:
        for each in writers.values():
            each.abandon()


class _SplitWriter:
    """Writes the files of one split and collects their entries of the manifest.

    part: the manifest's entry of the split as it is, to which files are added.
    """

    def __init__(self, folder: Path, split: str, about: About, part: dict[str, Any], journal: bool):
        self.folder, self.split, self.about, self.codec = folder, split, about, codec_of(about.codec)
        self.lengths: list[int] = list(part.get("lengths", ()))
        self.sources: list[str] = list(part.get("sources", ()))
        self.tasks: list[str] = list(part.get("tasks") or [""] * len(self.lengths))
        self.aside = {ASIDE: part[ASIDE]} if ASIDE in part else {}
        self.files: list[dict[str, Any]] = list(part.get("files", ()))
        self.writer: Packed | None = None
        self.ending: list[tuple[Packed, int]] = []  # files that have all their records, and how many these are
        self.records = self.size = self.number = 0  # of the file; number: of all records so far
        self.journal = folder / JOURNAL.format(split=split) if journal else None
        self.old = len(self.files)  # files of the store as it is
        self.files += self._complete()
        self.done = sum(file["records"] for file in self.files[self.old :])  # records that need no writing

    def _complete(self) -> list[dict[str, Any]]:
        """Return the files that a killed writer completed."""
        if self.journal is None or not self.journal.is_file():
            return []
        noted, found = read_signed(self.journal)["files"], []
        for index, file in enumerate(noted, start=len(self.files)):
            path = self.folder / file_name(self.split, index)
            if not path.is_file() or path.stat().st_size != file["bytes"] or sha256(path) != file["sha256"]:
                break
            found.append(file)
        return found

    def write(self, entry: Entry, behind: Behind) -> None:
        for start, stop in windows(entry.length, self.about.chunk):
            self.number += 1
            if self.number <= self.done:
                continue
            where = self.split, len(self.lengths), start
            stored = entry.stored(start, stop) if isinstance(self.codec, Plain) else None
            if stored is None:
                packed = entry.packed(self.about.codec, start, stop)
                behind.call(self._record, where, entry.window(start, stop), packed)
            else:
                new = packed_header(*where, [(name, kind, (stop - start, *shape)) for name, kind, shape in entry.kinds])
                behind.call(self._copy, stored, new)
        self.lengths.append(entry.length)
        self.sources.append(entry.source)
        self.tasks.append(entry.task)

    # What follows runs in another thread: one for all records, in order.

    def _record(self, where: tuple[str, int, int], arrays: dict[str, np.ndarray], packed: bytes) -> None:
        head = packed_header(*where, [(name, array.dtype.name, array.shape) for name, array in arrays.items()])
        parts: dict[str, Any] = {name: np.ascontiguousarray(array).data for name, array in arrays.items()}
        parts[FRAMES] = packed or self.codec.encode(arrays[FRAMES])
        record = b"".join([head, *parts.values()])
        with self._errors():
            self._open().write(record)
        self._count(len(record))

    def _copy(self, stored: Stored, new: bytes) -> None:
        with self._errors():
            self._open().copy(stored.file, stored.place, stored.payload, stored.head, new)
        self._count(len(new) + stored.payload)

    def _open(self) -> Packed:
        if self.writer is None:
            file = self.folder / file_name(self.split, self._index)
            file.unlink(missing_ok=True)  # the process of a killed writer may still be writing it
            self.writer = new_records(file, self.about.packing or self.codec.packing)
        return self.writer

    @property
    def _index(self) -> int:
        return len(self.files) + len(self.ending)

    def _count(self, size: int) -> None:
        self.records, self.size = self.records + 1, self.size + size
        # Files of one size would be packed one after another in a small dataset, and be thousands in a large one.
        if self.size >= min(self.about.file_bytes, SMALL << self._index // OF_A_SIZE):
            self._end()
            while len(self.ending) >= SIDE_BY_SIDE:
                self._list()

    def _end(self) -> None:
        """Let the file be completed."""
        if self.writer is not None:
            self.ending.append((self.writer, self.records))
            self.writer, self.records, self.size = None, 0, 0
            with self._errors():
                self.ending[-1][0].end()

    def _list(self) -> None:
        """Wait for the oldest file that is being completed, and list it."""
        file, (writer, records) = self.folder / file_name(self.split, len(self.files)), self.ending.pop(0)
        with self._errors():
            writer.close()
        self.files.append({"records": records, "bytes": file.stat().st_size, "sha256": sha256(file)})
        if self.journal is not None:
            write_json(self.journal, {"files": self.files[self.old :]})

    def abandon(self) -> None:
        """Close all files and list none of them."""
        with contextlib.suppress(ReverieError):  # the first error is already being raised
            self._end()
        for writer, _ in self.ending:
            with contextlib.suppress(ReverieError, RuntimeError):
                writer.close()
        self.ending = []

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # ArrayRecord's OSError: usually the disk is full
            problem = str(error).partition(";")[0]
            raise ReverieError(f"cannot write '{self.folder.parent}' ({problem}): is the disk full?") from error

    def finish(self) -> dict[str, Any]:
        self._end()
        while self.ending:
            self._list()
        tasks = {"tasks": self.tasks} if any(self.tasks) else {}
        return {"lengths": self.lengths, "sources": self.sources, **tasks, **self.aside, "files": self.files}


def header_of(
    split: str, episode: int, start: int, arrays: Iterable[tuple[str, str, tuple[int, ...]]]
) -> dict[str, Any]:
    """Return the header of a record."""
    kinds = [[name, kind, list(shape)] for name, kind, shape in arrays]
    return {"split": split, "episode": episode, "start": start, "arrays": kinds}


def packed_header(split: str, episode: int, start: int, arrays: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the header of a record as it lies in it, behind its length."""
    head: bytes = msgpack.packb(header_of(split, episode, start, arrays))  # pyright: ignore[reportAssignmentType]
    return struct.pack("<I", len(head)) + head


def bytes_of(kind: str, shape: Iterable[int]) -> int:
    """Return the size of an array."""
    return math.prod(shape) * np.dtype(kind).itemsize


def file_name(split: str, index: int) -> str:
    """Return the name of a split's file."""
    return f"{split}-{index:05d}.array_record"
