"""Jasmine's ArrayRecords: pickled records of raw pictures, and of the action taken at each of them.

A record is a chunk of an episode; which chunks belong together is not said, so every chunk is an episode. Height and
width are nowhere: --frame H W says them, or they are the shape in which neighbouring rows of pixels are most alike.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie import bounded
from reverie.data.records import Records
from reverie.data.sources import files
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found, Recording, at
from reverie.data.sources.spaces import Declared
from reverie.data.sources.unpickled import unpickled
from reverie.errors import Damaged, ReverieError

SIDE, LONGEST = 16, 3.0  # of a guessed shape: the least height and width, and the most one may exceed the other
RECORDS, LOOKED = 8, 4  # records that a guess looks at, and pictures of each


@dataclass(frozen=True, kw_only=True)
class JasmineConfig(FileSource):
    """Jasmine's ArrayRecords of games (pickled records, read without running anything)."""

    frame: tuple[int, int] | None = None  # height and width of the pictures in the files; None guesses them

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds ArrayRecords that are not of TensorFlow Datasets."""
        found = {file.parent for file in inside if file.suffix == ".array_record"}
        others = ("manifest.json", "features.json")
        return cls(path=str(path)) if any(all(not (f / name).is_file() for name in others) for f in found) else None

    def look(self, inside: list[Path]) -> Found:
        """Return one recording for each record, in the order of the files' names."""
        found, root = Found(), Path(self.path)
        count = _actions(root)
        found.declared = Declared(sizes=(count,)) if count else Declared()
        shards = sorted((f for f in inside if f.suffix == ".array_record"), key=files.natural)
        shape = self.frame or _guessed(shards, found)
        for file in shards:
            name = files.name_of(file, root)
            try:
                total = len(reader := Records(file))
            except UNREADABLE as error:
                found.skip(name, error)
                continue
            for place in range(total):
                where = f"{name}, record {place}"
                try:
                    record = _record(reader[place])
                    if shape is None:
                        raise ReverieError(
                            f"{len(record['raw_video'])} bytes are not pictures of any shape; --frame H W"
                        )
                    found.recordings.append(self._recording(where, file, place, record, shape))
                except UNREADABLE as error:
                    found.skip(where, error)
        return found

    def _recording(self, where: str, file: Path, place: int, record: dict[str, Any], shape: tuple[int, int]):
        length, size = record["sequence_length"], len(record["raw_video"])
        if size != length * shape[0] * shape[1] * 3:
            raise ReverieError(f"{size} bytes are not {length} pictures of {shape[0]} x {shape[1]}; --frame H W")
        rows = record.get("actions")
        rows = None if rows is None else np.asarray(rows)
        if rows is not None and rows.shape[:1] not in ((length,), (length - 1,)):
            raise ReverieError(f"{rows.shape[:1]} actions for {length} pictures")
        stamp = file.stat().st_mtime_ns
        return Recording(
            where,
            length,
            lambda: _frames(file, stamp, place, shape),
            actions=at(rows, length),
            source=where.partition(",")[0],
        )


def _record(data: bytes) -> dict[str, Any]:
    found = unpickled(data)
    video = found.get("raw_video") if isinstance(found, dict) else None
    if not isinstance(video, bytes | bytearray | np.ndarray) or (
        isinstance(video, np.ndarray) and video.dtype != np.uint8
    ):
        raise Damaged("it is not a record of Jasmine's: it has no raw_video")
    video, length = bytes(video), found.get("sequence_length")
    if not isinstance(length, int | np.integer) or not 0 < length <= len(video):
        raise Damaged("it is not a record of Jasmine's: it has no sequence_length")
    return found | {"raw_video": video, "sequence_length": int(length)}


def _frames(file: Path, stamp: int, place: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    record = _record(_open(file, stamp)[place])
    frames = np.frombuffer(record["raw_video"], np.uint8).reshape(record["sequence_length"], *shape, 3)
    return iter(frames)


@lru_cache(maxsize=1)  # the records of a file are read one after the other
def _open(file: Path, stamp: int) -> Any:
    return Records(file)


def _guessed(shards: list[Path], found: Found) -> tuple[int, int] | None:
    """Return the shape (H, W) of pictures in which a row is most like the one above it; None if there is none.

    Several records are asked: one that is black looks the same in every shape.
    """
    unrest: dict[tuple[int, int], float] = {}
    for record in islice(_sound(shards), RECORDS):
        data, length = np.frombuffer(record["raw_video"], np.uint8), record["sequence_length"]
        own = _shapes(len(data) // (3 * length)) if len(data) % (3 * length) == 0 else []
        if unrest and not unrest.keys() & {*own}:
            continue
        for shape in own:
            some = data.reshape(-1, *shape, 3)[:: max(1, length // LOOKED)].astype(np.int16)
            unrest[shape] = unrest.get(shape, 0.0) + float(np.abs(np.diff(some, axis=1)).mean())
    if not unrest:
        return None
    shape = min(unrest, key=lambda shape: (unrest[shape], shape[0] != shape[1]))  # of equals, the square
    found.say(f"pictures are taken as {shape[0]} x {shape[1]}; --frame H W if they are not")
    return shape


def _sound(shards: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield the records that can be read."""
    for file in shards:
        with suppress(*UNREADABLE):
            reader = Records(file)
            for place in range(len(reader)):
                with suppress(*UNREADABLE):
                    yield _record(reader[place])


def _shapes(pixels: int) -> list[tuple[int, int]]:
    heights = range(SIDE, pixels // SIDE + 1)
    return [(h, pixels // h) for h in heights if not pixels % h and 1 / LONGEST <= pixels // h / h <= LONGEST]


def _actions(root: Path) -> int:
    """Return the number of actions in metadata.json, in the folder or one above it; 0 if it is not there."""
    for folder in (root, root.parent, root.parent.parent):
        try:
            about = bounded.read_json(folder / "metadata.json", 2**28)
            count = about.get("num_actions") if isinstance(about, dict) else None
        except (Damaged, OSError, json.JSONDecodeError):
            continue
        if isinstance(count, int) and 0 < count <= 2**16:
            return count
    return 0
