"""WebDataset: tar files of samples, whose members share a name up to its first dot. A sample is an episode.

There is no standard for episodes. A sample's pictures are a video (KEY.mp4), an array (KEY.frames.npy) or pictures of
their own (KEY.0001.png, ...). Its other arrays are those of KEY.actions.npy, KEY.npz, or lists in KEY.json, by name.
Where every sample is one picture, they are the frames of episodes, by the numbers at the end of their keys.
"""

import contextlib
import gzip
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
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
OF_MOMENTS = (*PICTURES, "npy", "json", "cls", "txt")  # endings in a sample that is one picture
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
        found, root, samples, made = Found(), Path(self.path), [], []
        for file in sorted(files.ending(inside, ENDINGS), key=files.natural):
            try:
                tar = _listed(file, found)
            except UNREADABLE as error:
                found.skip(files.name_of(file, root), error)
                continue
            samples += [(key, tar, members) for key, members in tar.samples().items()]
        if len(samples) > 1 and all(_is_moment(members) for _, _, members in samples):
            todo = [(name, partial(_joined, name, moments)) for name, moments in _episodes(samples, found)]
        else:
            todo = [(f"{files.name_of(s[1].file, root)}, {s[0]}", partial(_bundle, *s, found)) for s in samples]
        for name, make in todo:
            try:
                made.append(make())
            except UNREADABLE as error:
                found.skip(name, error)
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
        data = _plain(self.file, self.file.stat().st_mtime_ns)[offset : offset + size].tobytes()
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


_Sample = tuple[str, _Tar, dict[str, str]]  # its key, where it lies, and its members by the rest of their names


@lru_cache(maxsize=1)  # to find a place in a compressed file, all before it has to be unpacked
def _plain(file: Path, stamp: int) -> np.ndarray:
    """Return the bytes of a tar file, mapped into memory; of a compressed one, those of a temporary copy."""
    with file.open("rb") as raw:
        if raw.read(2) != GZIP:
            return np.memmap(raw, np.uint8, "r")
    limit = bounded.room_for(file)
    with tempfile.TemporaryFile() as copy:
        with gzip.open(file) as stream, contextlib.suppress(EOFError, zlib.error):  # if cut or damaged, what is there
            while (part := stream.read(2**20)) and copy.tell() < limit:
                copy.write(part)
        copy.flush()
        return np.memmap(copy, np.uint8, "r")


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
        columns["pictures"] = _stills([(tar, member) for member in order])
    if not columns:
        raise ReverieError(f"it holds neither a video nor arrays (it has {', '.join(members)[:200]})")
    return Bundle(key, columns, task=task, whole=True)


def _stills(shown: list[tuple[_Tar, str]]) -> Column:
    """Return pictures that are members of tar files, each read when it is asked for."""
    return Column((len(shown),), "O", lambda a, b: [tar.read(name, ARRAY_BYTES) for tar, name in shown[a:b]], "encoded")


def _is_moment(members: dict[str, str]) -> bool:
    """Whether a sample is one picture, with what is known of its moment."""
    return sum(rest in PICTURES for rest in members) == 1 and all(
        rest.rpartition(".")[2] in OF_MOMENTS for rest in members
    )


def _episodes(samples: list[_Sample], found: Found) -> list[tuple[str, list[_Sample]]]:
    """Return the samples of each episode in order, by their keys without the number at the end."""
    episodes: dict[str, list[_Sample]] = {}
    for sample in samples:
        episodes.setdefault(sample[0].rstrip("0123456789").rstrip("_-/") or "samples", []).append(sample)
    found.say(f"every sample is one picture: they are the frames of {len(episodes)} episodes, by the samples' names")
    return [(name, sorted(own, key=lambda sample: files.natural(Path(sample[0])))) for name, own in episodes.items()]


def _joined(name: str, moments: list[_Sample]) -> Bundle:
    """Return the samples of an episode as one: their pictures, and the numbers that all of them have."""
    shown = [(tar, next(member for rest, member in own.items() if rest in PICTURES)) for _, tar, own in moments]
    columns = {"pictures": _stills(shown)}
    facts = [_facts(tar, members) for _, tar, members in moments]
    for field in facts[0]:
        arrays = [each[field] for each in facts if field in each]
        if len(arrays) == len(facts) and len({array.shape for array in arrays}) == 1:
            columns[field] = Column.of(np.stack(arrays))
    return Bundle(name, columns)


def _facts(tar: _Tar, members: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the numbers and vectors of one moment by name; what has no name is its action."""
    values: dict[str, Any] = {}
    for rest, member in members.items():
        stem, _, ending = rest.rpartition(".")
        if ending == "npy":
            values[stem or "action"] = bounded.read_npy(tar.read(member, ARRAY_BYTES), f"'{member}'")
        elif ending == "json":
            about = bounded.parse_json(tar.read(member, bounded.JSON_BYTES), f"'{member}'")
            values |= about if isinstance(about, dict) else {stem or "action": about}
        elif ending == "cls":
            values["action"] = int(tar.read(member, 64))
    numbers = {
        name: np.array(value) for name, value in values.items() if isinstance(value, int | float | list | np.ndarray)
    }
    return {name: array for name, array in numbers.items() if array.dtype.kind in "biuf" and array.ndim < 2}


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
