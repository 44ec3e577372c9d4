"""DreamerV3's replay: chunks TIME-UUID-SUCCESSOR-LENGTH.npz, in which the steps of a worker follow each other.

Picture, reward and is_first, is_last, is_terminal of a row are those of one frame; its action is taken at that frame.
Episodes cross the borders of chunks. N rows of a stream of chunks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np

from reverie import bounded
from reverie.data.sources import files, roles
from reverie.data.sources.pictures import is_picture, rgb, side_by_side
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found, Recording, at, to
from reverie.data.sources.spaces import one_vector
from reverie.errors import ReverieError

CHUNK = re.compile(r"(?P<time>\d{8}T\d{6}F?\d*)-(?P<own>[^-]+)-(?P<next>[^-]+)-(?P<length>\d+)\.npz")
FLAGS = ("is_first", "is_terminal", "reward")


@dataclass(frozen=True)
class _Chunk:
    """One file. time, own, follows: of its name; shapes: (type, shape) by name; rows: its actions and flags."""

    file: Path
    time: str
    own: str
    follows: str
    stamp: int
    shapes: dict[str, tuple[np.dtype, tuple[int, ...]]]
    rows: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rows["is_first"])


@dataclass(frozen=True, kw_only=True)
class DreamerV3Config(FileSource):
    """The replay folder of a DreamerV3 agent."""

    camera: str = ""  # the array of the pictures; several, joined by commas, are put side by side
    actions: str = "action"  # the array of the actions; several, joined by commas, make one vector

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds chunks of a replay."""
        return cls(path=str(path)) if any(CHUNK.fullmatch(file.name) for file in inside) else None

    def look(self, inside: list[Path]) -> Found:
        """Return the episodes of every stream of chunks, the stream that began first coming first."""
        found, root, chunks = Found(), Path(self.path), {}
        for file in inside:
            if match := CHUNK.fullmatch(file.name):
                try:
                    chunks[match["own"]] = self._chunk(file, match)
                except UNREADABLE as error:
                    found.skip(files.name_of(file, root), error)
        if not chunks:
            found.skip(root.name, "it holds no chunks TIME-UUID-SUCCESSOR-LENGTH.npz")
        for number, stream in enumerate(_streams(chunks)):
            try:
                found.recordings += self._episodes(stream, f"stream {number}", found)
            except UNREADABLE as error:
                found.skip(f"stream {number} (from {stream[0].file.name})", error)
        return found

    def _chunk(self, file: Path, match: re.Match[str]) -> _Chunk:
        shapes, _ = bounded.npz_headers(file)
        wanted = (*FLAGS, *self.actions.split(","))
        rows = bounded.read_npz(file, None, [name for name in wanted if name in shapes])
        if len({len(array) for array in rows.values()}) != 1 or "is_first" not in rows:
            raise ReverieError("it has no is_first, or arrays of different lengths")
        return _Chunk(file, match["time"], match["own"], match["next"], file.stat().st_mtime_ns, shapes, rows)

    def _episodes(self, stream: list[_Chunk], name: str, found: Found) -> Iterator[Recording]:
        """Yield the episodes in chunks that follow each other."""
        shapes = stream[0].shapes
        options = [
            key for key, (kind, shape) in shapes.items() if is_picture(shape, kind.str[1:], named=roles.shows(key))
        ]
        if not options:
            raise ReverieError(f"it holds no pictures (it has {', '.join(shapes)[:200]})")
        cameras = roles.cameras(self.camera, roles.by_likeness(options), found.say)
        rows = {key: np.concatenate([chunk.rows[key] for chunk in stream]) for key in stream[0].rows}
        keys = self.actions.split(",")
        parts = [rows[key] for key in keys if key in rows]
        if len(parts) < len(keys):
            some = ", ".join(key for key in shapes if key not in cameras)[:200]
            found.say(f"{name} has no array of actions '{self.actions}': unlabelled; --actions names another ({some})")
        acts = one_vector(parts)
        count = len(rows["is_first"])
        begins = sorted({0, *np.flatnonzero(rows["is_first"]).tolist()})
        if not rows["is_first"][0]:
            found.say(f"{name} begins in the middle of an episode: its earlier chunks are not there")
        for number, (start, stop) in enumerate(zip(begins, [*begins[1:], count], strict=True)):
            own = {key: array[start:stop] for key, array in rows.items()}
            yield Recording(
                name=f"{name}, episode {number}",
                length=stop - start,
                frames=lambda start=start, stop=stop: _frames(stream, cameras, start, stop),
                actions=at(None if acts is None else acts[start:stop], stop - start),
                rewards=to(own.get("reward"), stop - start),
                ends=to(own.get("is_terminal"), stop - start),
            )


def _streams(chunks: dict[str, _Chunk]) -> list[list[_Chunk]]:
    """Return chunks in the order in which they follow each other; a missing one begins a new stream."""
    later = {chunk.follows for chunk in chunks.values()}
    heads = sorted((c for c in chunks.values() if c.own not in later), key=lambda c: (c.time, c.file.name))
    streams, used = [], set()
    for head in [*heads, *sorted(chunks.values(), key=lambda c: c.time)]:  # the rest: rings, which no writer makes
        stream, chunk = [], head
        while chunk is not None and chunk.own not in used:
            used.add(chunk.own)
            stream.append(chunk)
            chunk = chunks.get(chunk.follows)
        streams += [stream] if stream else []
    return streams


def _frames(stream: list[_Chunk], cameras: tuple[str, ...], start: int, stop: int) -> Iterator[np.ndarray | None]:
    first = 0
    for chunk in stream:
        low, high = max(start, first), min(stop, first + len(chunk))
        if low < high:
            views = [rgb(array_of(chunk.file, camera, chunk.stamp)[low - first : high - first]) for camera in cameras]
            yield from side_by_side(views)
        first += len(chunk)


@lru_cache(maxsize=2)  # frames are read in parts, several episodes lie in a file, and cameras are read in turn
def array_of(file: Path, key: str, stamp: int) -> np.ndarray:
    """Return an array of an .npz file; ``stamp`` is the time of its last change."""
    return bounded.read_npz(file, None, [key])[key]
