"""Jasmine's ArrayRecords: pickled records of raw pictures, and of the action taken at each of them.

A record is a chunk of an episode; which chunks belong together is not said, so every chunk is an episode. Height and
width are nowhere: --frame H W says them, or they are the shape in which neighbouring rows of pixels are most alike.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie import bounded
from reverie.data.records import Records
from reverie.data.sources import files
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found, Recording, at
from reverie.data.sources.spaces import Declared, counted
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
        found.declared = _declared(root)
        shards = sorted((f for f in inside if f.suffix == ".array_record"), key=files.natural)
        shape = self.frame or _guessed(shards, found)
        for file in shards:
            name = files.name_of(file, root)
            try:
                total = len(reader := Records(file))
            except UNREADABLE as error:
                found.skip(name, error)
                continue
            read = partial(_recording, name, file, reader, shape)
            found.recordings += found.made((f"{name}, record {n}", partial(read, n)) for n in range(total))
        return found


def _recording(name: str, file: Path, reader: Records, shape: tuple[int, int] | None, place: int) -> Recording:
    record = _record(reader[place])
    length, size = record["sequence_length"], len(record["raw_video"])
    if shape is None:
        raise ReverieError(f"{size} bytes are not pictures of any shape; --frame H W")
    if size != length * shape[0] * shape[1] * 3:
        raise ReverieError(f"{size} bytes are not {length} pictures of {shape[0]} x {shape[1]}; --frame H W")
    rows = record.get("actions")
    rows = None if rows is None else np.asarray(rows)
    if rows is not None and rows.shape[:1] not in ((length,), (length - 1,)):
        raise ReverieError(f"{rows.shape[:1]} actions for {length} pictures")
    shown = partial(_frames, file, file.stat().st_mtime_ns, place, shape)
    return Recording(f"{name}, record {place}", length, shown, actions=at(rows, length), source=name)


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


def _declared(root: Path) -> Declared:
    """Return what metadata.json, in the folder or one above it, says about the number of actions."""
    for folder in (root, root.parent, root.parent.parent):
        try:
            about = bounded.read_json(folder / "metadata.json", 2**28)
        except (Damaged, OSError, json.JSONDecodeError):
            continue
        if isinstance(about, dict) and (declared := counted(about.get("num_actions"))) is not None:
            return declared
    return Declared()
