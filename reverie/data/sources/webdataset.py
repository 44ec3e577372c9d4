"""WebDataset: tar files of samples, whose members share a name up to its first dot. A sample is an episode.

There is no standard for episodes. A sample's pictures are a video (KEY.mp4), an array (KEY.frames.npy) or pictures of
their own (KEY.0001.png, ...). Its other arrays are those of KEY.actions.npy, KEY.npz, or lists in KEY.json, by name.
Where every sample is one picture of each camera, they are the frames of episodes, by the number of the episode that
each sample has, else by the numbers at the end of their keys.
"""

import bz2
import contextlib
import gzip
import lzma
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from reverie import bounded
from reverie.data.sources import bundles, clips, files, roles, tables
from reverie.data.sources.boundaries import NUMBERS, STEPS
from reverie.data.sources.bundles import Alignment, Bundle, Column
from reverie.data.sources.recognise import outnumber
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found
from reverie.data.sources.spaces import Declared, merged
from reverie.errors import Damaged, ReverieError, first_line

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
VIDEOS = ("mp4", "webm", "mkv", "avi", "mov", "m4v", "gif")
PICTURES = ("png", "jpg", "jpeg", "webp")
VIDEO_BYTES, ARRAY_BYTES = 2**32, 2**28  # of one member
MEMBERS = 10**6  # of one tar
OF_MOMENTS = (*PICTURES, "npy", "npz", "json", "cls", "txt")  # endings in a sample that is a moment
TEXTS = ("task", "instruction", "text", "caption", "language_instruction")  # names of what was to be done
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by the first bytes of a file


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(FileSource):
    """WebDataset shards (tar), one sample per episode: a video or pictures, and arrays."""

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
        found, root, every, made = Found(), Path(self.path), [], []
        known: dict[str, _Members] = {}
        for file in sorted(files.ending(inside, ENDINGS), key=files.natural):
            try:
                tar = _listed(file, found)
            except UNREADABLE as error:
                found.skip(files.name_of(file, root), error)
                continue
            for key, members in tar.samples().items():
                if key in known and not known[key].keys() & members.keys():  # the rest of a sample, in another tar
                    known[key].update(members)
                else:
                    known[key] = members
                    every.append((key, members))
        if len(every) > 1 and all(_is_moment(members) for _, members in every):
            todo = [(name, partial(_joined, name, *episode)) for name, *episode in _episodes(every, found)]
        else:
            todo = [(f"{files.name_of(_file(s[1]), root)}, {s[0]}", partial(_bundle, *s, found)) for s in every]
        for name, make in todo:
            try:
                made.append(make())
            except UNREADABLE as error:
                found.skip(name, error)
        declared = {} if self.actions else {bundle.name: _one_action(bundle.columns) for bundle in made}
        bundles.add(found, made, camera=self.camera, actions=self.actions, alignment=self.alignment)
        if any(one.names for one in declared.values()):
            parts = [(one.actions, declared.get(one.name, Declared())) for one in found.recordings]
            rows, found.declared = merged(parts)
            found.recordings = [replace(one, actions=own) for one, own in zip(found.recordings, rows, strict=True)]
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

    def samples(self) -> dict[str, "_Members"]:
        """Return {key: {the rest of the name: member}} in the order of the file."""
        samples: dict[str, _Members] = {}
        for name in self.places:
            folder, _, base = name.rpartition("/")
            key, dot, rest = base.partition(".")
            if key and dot:
                samples.setdefault(f"{folder}/{key}" if folder else key, {})[rest.lower().removesuffix(".gz")] = (
                    _Member(self, name)
                )
        return samples


class _Member(NamedTuple):
    """A file in a tar."""

    tar: _Tar
    name: str

    def read(self, limit: int) -> bytes:
        """Return its bytes; Damaged if there are more than ``limit``."""
        return self.tar.read(self.name, limit)


_Members = dict[str, _Member]  # of a sample, by the rest of their names


def _file(members: _Members) -> Path:
    return next(iter(members.values())).tar.file


@lru_cache(maxsize=4)  # to find a place in a compressed file, all before it has to be unpacked
def _plain(file: Path, stamp: int) -> np.ndarray:
    """Return the bytes of a tar file, mapped into memory; of a compressed one, those of a temporary copy."""
    with file.open("rb") as raw:
        head = raw.read(8)
        unpack = next((unpack for first, unpack in PACKED.items() if head.startswith(first)), None)
        if unpack is None:
            return np.memmap(raw, np.uint8, "r")
    limit = bounded.room_for(file)
    with tempfile.TemporaryFile() as copy, unpack(file) as stream:
        for part in _sound(stream):
            copy.write(part)
            if copy.tell() >= limit:
                break
        copy.flush()
        return np.memmap(copy, np.uint8, "r")


def _sound(stream: Any) -> Iterator[bytes]:
    """Yield what can be unpacked: all, or what is there before the damage."""
    with contextlib.suppress(EOFError, OSError, zlib.error, lzma.LZMAError):
        while part := stream.read(2**20):
            yield part


def _listed(file: Path, found: Found) -> _Tar:
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(file, "r:*") as archive:
            for info in archive:
                if info.isreg() and not info.issparse() and len(places) < MEMBERS:
                    places[info.name] = (info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if not places:
            raise Damaged(f"it is not a tar file, or damaged ({first_line(error)})") from None
        found.say(f"{file.name} is damaged after {len(places)} files: those are read ({first_line(error)})")
    return _Tar(file, places)


def _bundle(key: str, members: _Members, found: Found) -> Bundle:
    columns: dict[str, Column] = {}
    stills: list[_Member] = []
    task = ""
    for rest, member in sorted(members.items(), key=lambda item: not item[0].endswith("json")):  # it says the rate
        stem, _, ending = rest.rpartition(".")
        if ending in VIDEOS:
            columns[stem or "video"] = _video(member, ending, found)
        elif ending in PICTURES:
            stills.append(member)
        elif ending == "npy":
            columns[stem or "frames"] = Column.of(bounded.read_npy(member.read(ARRAY_BYTES), f"'{member.name}'"))
        elif ending == "npz":
            columns |= {name: Column.of(array) for name, array in _npz(member).items()}
        elif ending == "json":
            about = bounded.parse_json(member.read(bounded.JSON_BYTES), f"'{member.name}'")
            task = _read_json({stem or "action": about} if isinstance(about, list) else about, columns, found) or task
        elif ending in ("csv", "jsonl"):
            with _copied(member.read(ARRAY_BYTES), ending) as path:
                table = tables.read(path)
            columns |= {name: Column.of(array) for name, array in table.items()}
        elif ending == "txt":
            task = member.read(2**16).decode(errors="replace").strip()
        else:
            found.say(f"members that end in .{rest} are not read (of '{key}', and others)")
    if stills:
        columns["pictures"] = _stills(sorted(stills, key=lambda member: files.natural(Path(member.name))))
    if not columns:
        raise ReverieError(f"it holds neither a video nor arrays (it has {', '.join(members)[:200]})")
    return Bundle(key, columns, task=task, whole=True)


def _one_action(columns: dict[str, Column]) -> Declared:
    """Make one array of those that hold a component of an action each (``action.x``, ``key.left``); say their names."""
    parts = [name for name, column in columns.items() if tables.is_component(name) and column.form == "numbers"]
    if not parts or roles.find(columns, roles.ACTIONS) is not None:
        return Declared()
    rows, declared = tables.actions_of({name: columns.pop(name).all() for name in parts})
    columns["action"] = Column.of(np.asarray(rows))
    return declared


def _stills(shown: list[_Member]) -> Column:
    """Return pictures that are members of tar files, each read when it is asked for."""
    return Column((len(shown),), "O", lambda a, b: [member.read(ARRAY_BYTES) for member in shown[a:b]], "encoded")


def _pictures(members: _Members) -> dict[str, _Member]:
    """Return the pictures of a sample by camera."""
    parts = {rest.rpartition("."): member for rest, member in members.items()}
    return {stem or "pictures": member for (stem, _, ending), member in parts.items() if ending in PICTURES}


def _is_moment(members: _Members) -> bool:
    """Whether a sample is one picture of each camera, with facts about its moment; a number is not a camera."""
    cameras = [re.sub(r"\d+", "", camera) for camera in _pictures(members)]
    return 0 < len(cameras) == len({*cameras} - {""}) and all(rest.rpartition(".")[2] in OF_MOMENTS for rest in members)


_Moment = tuple[str, _Members, dict[str, Any]]  # its key, and its values by name


def _episodes(samples: list[tuple[str, _Members]], found: Found) -> Iterator[tuple[str, list[_Moment], bool]]:
    """Yield the name of each episode, its samples in order, and whether they are no more than one."""
    moments = [(key, members, _facts(key, members, found)) for key, members in samples]
    number, step = (roles.find(moments[0][2], names) for names in (NUMBERS, STEPS))
    repeated = len({key for key, _ in samples}) < len(samples)  # each tar counts its own
    if number and not all(isinstance(facts.get(number), int | str) for *_, facts in moments):
        number = None

    def episode(moment: _Moment) -> str:
        key, members, facts = moment
        if number:
            return f"{key.rpartition('/')[0]}/{number} {facts[number]}".lstrip("/")
        name = key.rstrip("0123456789").rstrip("_-/") or "samples"
        return f"{_file(members).name}, {name}" if repeated else name

    def place(moment: _Moment) -> Any:
        return moment[2][step] if step else files.natural(Path(moment[0]))

    if step and not all(isinstance(facts.get(step), int | float) for *_, facts in moments):
        step = None
    episodes: dict[str, list[_Moment]] = {}
    for moment in moments:
        episodes.setdefault(episode(moment), []).append(moment)
    if step and any(len({place(moment) for moment in own}) < len(own) for own in episodes.values()):
        step = None  # it counts something else
    found.say(f"every sample is one picture: they are the frames of {len(episodes)} episodes, by "
              + (f"their '{number}'" if number else "the samples' names"))  # fmt: skip
    for name in sorted(episodes, key=lambda name: files.natural(Path(name))):
        whole = bool(number) or len(episodes) > 1 or any(map(str.isdecimal, name))
        yield name, sorted(episodes[name], key=place), whole


def _joined(name: str, moments: list[_Moment], whole: bool) -> Bundle:
    """Return the samples of an episode as one: their pictures, and their values as columns."""
    views = [_pictures(members) for _, members, _ in moments]
    cameras = [camera for camera in views[0] if all(camera in view for view in views)]
    columns = {camera: _stills([view[camera] for view in views]) for camera in cameras}
    table = tables.of_json([facts for *_, facts in moments])
    columns |= {k: Column.of(v) for k, v in table.items() if isinstance(v, np.ndarray) and v.ndim < 3}
    return Bundle(name, columns, task=_text(moments[0][2]), whole=whole)


def _facts(key: str, members: _Members, found: Found) -> dict[str, Any]:
    """Return the values of one moment by name; what has no name is its action, and a text what was to be done."""
    values: dict[str, Any] = {}
    for rest, member in members.items():
        stem, _, ending = rest.rpartition(".")
        try:
            if ending == "npy":
                values[stem or "action"] = bounded.read_npy(member.read(ARRAY_BYTES), f"'{member.name}'")
            elif ending == "npz":
                values |= _npz(member)
            elif ending == "json":
                about = bounded.parse_json(member.read(bounded.JSON_BYTES), f"'{member.name}'")
                values |= about if isinstance(about, dict) else {stem or "action": about}
            elif ending == "cls":
                values[stem or "action"] = int(member.read(64))
            elif ending == "txt":
                values[stem or TEXTS[0]] = _value(member.read(2**16).decode(errors="replace").strip())
        except UNREADABLE as error:
            found.say(f"{key}.{rest} cannot be read: its picture is used without it ({first_line(error)})")
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    values |= {name: array.item() for name, array in arrays.items() if array.ndim == 0}
    return {name: value for name, value in values.items() if np.ndim(arrays.get(name, 0)) < 2}


def _value(text: str) -> Any:
    """Return the number or numbers that a text holds, or the text."""
    try:
        numbers = [float(word) if re.search(r"[.en]", word) else int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers or text


def _text(values: dict[str, Any]) -> str:
    return next((text for name in TEXTS if isinstance(text := values.get(name), str)), "")


def _read_json(about: Any, columns: dict[str, Column], found: Found) -> str:
    """Add the lists in a sample's JSON to its arrays; return the text of the task."""
    if not isinstance(about, dict):
        return ""
    table = tables.of_json(about)
    columns |= {k: Column.of(v) for k, v in table.items() if isinstance(v, np.ndarray) and k not in columns}
    fps, count = about.get("fps"), about.get("actions", about.get("num_actions"))
    if isinstance(fps, int | float) and 0 < fps <= 240 and not found.fps:
        found.fps = float(fps)
    if isinstance(count, int) and 0 < count <= 2**16:
        found.declared = Declared(sizes=(count,))
    return _text(about)


def _npz(member: _Member) -> dict[str, np.ndarray]:
    with _copied(member.read(ARRAY_BYTES), "npz") as path:
        headers, _ = bounded.npz_headers(path)
        return bounded.read_npz(path, None, list(headers))


def _video(member: _Member, ending: str, found: Found) -> Column:
    """Return a video as a column of pictures."""
    with _copied(member.read(VIDEO_BYTES), ending) as path:
        track = clips.track(path)
        count = clips.count(track)
        if not found.fps:
            found.fps = round(track.rate, 3)

    def read(first: int, stop: int) -> Iterator[np.ndarray | None]:
        with _copied(member.read(VIDEO_BYTES), ending) as path:
            for number, picture in enumerate(clips.pictures(clips.track(path))):
                if first <= number < stop:
                    yield picture

    return Column((count,), "video", read, "pictures")


@contextlib.contextmanager
def _copied(data: bytes, ending: str) -> Iterator[Path]:
    """Yield a temporary file with these bytes, for readers that take files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"member.{ending}"
        path.write_bytes(data)
        yield path
