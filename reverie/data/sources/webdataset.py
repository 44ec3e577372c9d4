"""WebDataset: tar files of samples, whose members share a name up to its first dot. A sample is an episode.

There is no standard for episodes. A sample's pictures are a video (KEY.mp4), an array (KEY.frames.npy) or pictures of
their own (KEY.0001.png, ...). Its other arrays are those of KEY.actions.npy, KEY.npz, or lists in KEY.json, by name.
"""

import contextlib
import gzip
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie import bounded
from reverie.data.sources import bundles, clips, files, tables
from reverie.data.sources.bundles import Alignment, Bundle, Column
from reverie.data.sources.recognise import outnumber
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found
from reverie.data.sources.spaces import Declared
from reverie.errors import Damaged, ReverieError, first_line

ENDINGS = (".tar", ".tar.gz", ".tgz")
VIDEOS = ("mp4", "webm", "mkv", "avi", "mov", "m4v", "gif")
PICTURES = ("png", "jpg", "jpeg", "webp")
VIDEO_BYTES, ARRAY_BYTES = 2**32, 2**28  # of one member
MEMBERS = 10**6  # of one tar
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(FileSource):
    """WebDataset shards (tar), a sample an episode: a video or pictures, and arrays."""

    camera: str = ""  # of several videos or arrays of pictures in a sample, which; or several, joined by commas
    actions: str = ""  # the array of the actions; empty takes the one named so
    alignment: Alignment | None = None  # where actions are as many as frames: taken at theirs, or led to it

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds tar files."""
        found = files.ending(inside, ENDINGS)
        return cls(path=str(path)) if found and outnumber(inside, found) else None

    def look(self, inside: list[Path]) -> Found:
        """Return one recording for each sample, shard by shard."""
        found, root, made = Found(), Path(self.path), []
        for file in sorted(files.ending(inside, ENDINGS), key=files.natural):
            name = files.name_of(file, root)
            try:
                tar = _listed(file, found)
            except UNREADABLE as error:
                found.skip(name, error)
                continue
            for key, members in tar.samples().items():
                try:
                    made.append(_bundle(key, tar, members, found))
                except UNREADABLE as error:
                    found.skip(f"{name}, {key}", error)
        if len(made) > 1 and all(len(bundle.columns) == 1 and _is_still(bundle) for bundle in made):
            way = "unpack those of an episode into one folder, for 'reverie data images'"
            found.say(f"every sample holds one picture, so every episode is one frame: {way}")
        bundles.add(found, made, camera=self.camera, actions=self.actions, alignment=self.alignment)
        return found


@dataclass(frozen=True)
class _Tar:
    """The members of a tar file by name: where each lies, and its size. Nothing is taken out of it."""

    file: Path
    places: dict[str, tuple[int, int]]

    def read(self, member: str, limit: int) -> bytes:
        """Return a member's bytes; Damaged if there are more than ``limit``."""
        offset, size = self.places[member]
        if size > limit:
            raise Damaged(f"'{member}' has {size} bytes; at most {limit} are read")
        with self.file.open("rb") as raw:
            packed = raw.read(2) == GZIP
        with gzip.open(self.file) if packed else self.file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) != size:
            raise Damaged(f"'{member}' ends too early")
        if not member.lower().endswith(".gz"):
            return data
        unpacked = zlib.decompressobj(wbits=31).decompress(data, limit + 1)
        if len(unpacked) > limit:
            raise Damaged(f"'{member}' unpacks to more than {limit} bytes")
        return unpacked

    def samples(self) -> dict[str, dict[str, str]]:
        """Return {key: {the rest of the name: member}} in the order of the file."""
        samples: dict[str, dict[str, str]] = {}
        for name in self.places:
            folder, _, base = name.rpartition("/")
            key, dot, rest = base.partition(".")
            if key and dot:
                samples.setdefault(f"{folder}/{key}" if folder else key, {})[rest.lower().removesuffix(".gz")] = name
        return samples


def _listed(file: Path, found: Found) -> _Tar:
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(file, "r:*") as archive:
            for info in archive:
                if info.isreg() and not info.issparse() and len(places) < MEMBERS:
                    places[info.name] = (info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        if not places:
            raise Damaged(f"it is no tar file, or damaged ({first_line(error)})") from None
        found.say(f"{file.name} is damaged after {len(places)} files: those are read ({first_line(error)})")
    return _Tar(file, places)


def _bundle(key: str, tar: _Tar, members: dict[str, str], found: Found) -> Bundle:
    columns: dict[str, Column] = {}
    stills = {}
    task = ""
    for rest, member in sorted(members.items(), key=lambda item: not item[0].endswith("json")):  # it says the rate
        stem, _, ending = rest.rpartition(".")
        if ending in VIDEOS:
            columns[stem or "video"] = _video(tar, member, ending, found)
        elif ending in PICTURES:
            stills[member] = rest
        elif ending == "npy":
            columns[stem or "frames"] = Column.of(bounded.read_npy(tar.read(member, ARRAY_BYTES), f"'{member}'"))
        elif ending == "npz":
            columns |= _npz(tar.read(member, ARRAY_BYTES))
        elif ending == "json":
            about = bounded.parse_json(tar.read(member, bounded.JSON_BYTES), f"'{member}'")
            task = _read_json({stem or "action": about} if isinstance(about, list) else about, columns, found) or task
        elif ending in ("csv", "jsonl"):
            with _copied(tar.read(member, ARRAY_BYTES), ending) as path:
                table = tables.read(path)
            columns |= {name: Column.of(array) for name, array in table.items()}
        elif ending == "txt":
            task = tar.read(member, 2**16).decode(errors="replace").strip()
    if stills:
        order = sorted(stills, key=lambda member: files.natural(Path(member)))
        columns["pictures"] = Column(
            (len(order),), "O", lambda a, b: [tar.read(member, ARRAY_BYTES) for member in order[a:b]], "encoded"
        )
    if not columns:
        raise ReverieError(f"it holds neither a video nor arrays (it has {', '.join(members)[:200]})")
    return Bundle(key, columns, task=task, whole=True)


def _is_still(bundle: Bundle) -> bool:
    return "pictures" in bundle.columns and bundle.columns["pictures"].shape == (1,)


def _read_json(about: Any, columns: dict[str, Column], found: Found) -> str:
    """Add the lists of numbers in a sample's JSON to its arrays; return the text of the task."""
    if not isinstance(about, dict):
        return ""
    for name, value in about.items():
        if isinstance(value, list) and value and name not in columns:
            try:
                array = np.array(value)
            except ValueError:
                continue
            if array.dtype.kind in "biuf":
                columns[name] = Column.of(array)
    fps, count = about.get("fps"), about.get("actions", about.get("num_actions"))
    if isinstance(fps, int | float) and 0 < fps <= 240 and not found.fps:
        found.fps = float(fps)
    if isinstance(count, int) and 0 < count <= 2**16:
        found.declared = Declared(sizes=(count,))
    texts = (about.get(name) for name in ("task", "instruction", "text", "caption"))
    return next((text for text in texts if isinstance(text, str)), "")


def _npz(data: bytes) -> dict[str, Column]:
    with _copied(data, "npz") as path:
        headers, _ = bounded.npz_headers(path)
        return {name: Column.of(array) for name, array in bounded.read_npz(path, None, list(headers)).items()}


def _video(tar: _Tar, member: str, ending: str, found: Found) -> Column:
    """Return a video as a column of pictures."""
    with _copied(tar.read(member, VIDEO_BYTES), ending) as path:
        track = clips.track(path)
        count = clips.count(track)
        if not found.fps:
            found.fps = round(track.rate, 3)

    def read(first: int, stop: int) -> Iterator[np.ndarray | None]:
        with _copied(tar.read(member, VIDEO_BYTES), ending) as path:
            for number, picture in enumerate(clips.pictures(clips.track(path))):
                if first <= number < stop:
                    yield picture

    return Column((count,), "video", read, "pictures")


@contextlib.contextmanager
def _copied(data: bytes, ending: str) -> Iterator[Path]:
    """Give bytes as a file, under a name of ours, for what reads files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"member.{ending}"
        path.write_bytes(data)
        yield path
