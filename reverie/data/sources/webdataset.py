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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from reverie import bounded
from reverie.data.sources import bundles, clips, files, roles, tables
from reverie.data.sources.boundaries import NUMBERS, STEPS
from reverie.data.sources.bundles import Bundle, BundleSource, Column
from reverie.data.sources.recognise import outnumber
from reverie.data.sources.recordings import UNREADABLE, Found
from reverie.data.sources.spaces import Declared, counted
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
class WebDatasetConfig(BundleSource):
    """WebDataset shards (tar), one sample per episode: a video or pictures, and arrays."""

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds tar files."""
        found = files.ending(inside, ENDINGS)
        return cls(path=str(path)) if found and outnumber(inside, found) else None

    def look(self, inside: list[Path]) -> Found:
        """Return one recording for each sample, shard by shard; or for each episode whose frames the samples are."""
        found, root = Found(), Path(self.path)
        samples = self._samples(inside, found)
        if len(samples) > 1 and all(_is_moment(members) for _, members in samples):
            made = found.made(_episodes(samples, found))
        else:
            names = [f"{files.name_of(_file(members), root)}, {key}" for key, members in samples]
            made = found.made(zip(names, (partial(_bundle, *sample, found) for sample in samples), strict=True))
        declared = {} if self.actions else {bundle.name: _one_action(bundle.columns) for bundle in made}
        bundles.add(found, made, camera=self.camera, actions=self.actions, alignment=self.alignment)
        if any(one.names for one in declared.values()):
            found.label([(one.actions, declared.get(one.name, Declared())) for one in found.recordings])
        return found

    def _samples(self, inside: list[Path], found: Found) -> list[tuple[str, "_Members"]]:
        """Return the key and the members of each sample, tar by tar; one may begin in a tar and go on in another."""
        samples: list[tuple[str, _Members]] = []
        known: dict[str, _Members] = {}
        for file in sorted(files.ending(inside, ENDINGS), key=files.natural):
            try:
                own = _samples_of(file, found)
            except UNREADABLE as error:
                found.skip(files.name_of(file, Path(self.path)), error)
                continue
            for key, members in own.items():
                if key in known and not known[key].keys() & members.keys():
                    known[key].update(members)
                else:
                    known[key] = members
                    samples.append((key, members))
        return samples


class _Member(NamedTuple):
    """A file in a tar: where it lies there, and its bytes. Nothing is taken out before it is read."""

    file: Path
    name: str
    offset: int
    size: int

    def read(self, limit: int) -> bytes:
        """Return its bytes; Damaged if there are more than ``limit``."""
        if self.size > limit:
            raise Damaged(f"'{self.name}' has {self.size} bytes; at most {limit} are read")
        data = _plain(self.file, self.file.stat().st_mtime_ns)[self.offset : self.offset + self.size].tobytes()
        if len(data) != self.size:
            raise Damaged(f"'{self.name}' ends too early")
        if not self.name.lower().endswith(".gz"):
            return data
        unpacked = zlib.decompressobj(wbits=31).decompress(data, limit + 1)
        if len(unpacked) > limit:
            raise Damaged(f"'{self.name}' unpacks to more than {limit} bytes")
        return unpacked

    def value(self, ending: str) -> Any:
        """Return what it holds: an array (npy), arrays by name (npz, csv, jsonl), a value of JSON, a number, a text."""
        if ending == "npy":
            return bounded.read_npy(self.read(ARRAY_BYTES), f"'{self.name}'")
        if ending == "json":
            return bounded.parse_json(self.read(bounded.JSON_BYTES), f"'{self.name}'")
        if ending == "cls":
            return int(self.read(64))
        if ending == "txt":
            return self.read(2**16).decode(errors="replace").strip()
        with _copied(self.read(ARRAY_BYTES), ending) as path:
            if ending == "npz":
                return bounded.read_npz(path, None, [*bounded.npz_headers(path)[0]])
            return tables.read(path)


_Members = dict[str, _Member]  # of a sample, by the rest of their names


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


def _members_of(file: Path, found: Found) -> Iterable[_Member]:
    """Return the files in a tar, in its order; Damaged if there are none."""
    members: dict[str, _Member] = {}
    try:
        with tarfile.open(file, "r:*") as archive:
            for info in archive:
                if info.isreg() and not info.issparse() and len(members) < MEMBERS:
                    members[info.name] = _Member(file, info.name, info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if not members:
            raise Damaged(f"it is not a tar file, or damaged ({first_line(error)})") from None
        found.say(f"{file.name} is damaged after {len(members)} files: those are read ({first_line(error)})")
    return members.values()


def _samples_of(file: Path, found: Found) -> dict[str, _Members]:
    """Return the samples of a tar by key: each its members, by the rest of their names, without ".gz"."""
    samples: dict[str, _Members] = {}
    for member in _members_of(file, found):
        folder, _, base = member.name.rpartition("/")
        key, dot, rest = base.partition(".")
        if key and dot:
            key = f"{folder}/{key}" if folder else key
            samples.setdefault(key, {})[rest.lower().removesuffix(".gz")] = member
    return samples


def _file(members: _Members) -> Path:
    return next(iter(members.values())).file


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
            columns[stem or "frames"] = Column.of(member.value(ending))
        elif ending in ("npz", "csv", "jsonl"):
            columns |= {name: Column.of(array) for name, array in member.value(ending).items()}
        elif ending == "json":
            about = member.value(ending)
            task = _read_json({stem or "action": about} if isinstance(about, list) else about, columns, found) or task
        elif ending == "txt":
            task = member.value(ending)
        else:
            found.say(f"members that end in .{rest} are not read (of '{key}', and others)")
    endings = Counter(rest.rpartition(".")[2] for rest in members)
    kinds = "npz", "csv", "jsonl", *(("json",) if stills else ())
    if several := [ending for ending in kinds if endings[ending] > 1]:
        many = f"{endings[several[0]]} .{several[0]} files"
        found.say(f"sample '{key}' has {many}, of which the last counts: a sample's name ends at its first dot")
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


class _Moment(NamedTuple):
    """A sample that is a frame of an episode: a picture of each camera, and facts about it by name."""

    key: str
    members: _Members
    facts: dict[str, Any]


def _episodes(samples: list[tuple[str, _Members]], found: Found) -> Iterator[tuple[str, Callable[[], Bundle]]]:
    """Yield the name of each episode whose frames the samples are, and what makes a bundle of it.

    The number of its episode, if every sample has one, says where a frame belongs; else the sample's key without the
    number at its end. Frames are in the order of their step, if every sample has one; else of their keys.
    """
    moments = [_Moment(key, members, _facts(key, members, found)) for key, members in samples]
    number = _fact_of_all(moments, NUMBERS, int | str)
    repeated = len({key for key, _ in samples}) < len(samples)  # each tar counts its own

    def episode(moment: _Moment) -> str:
        if number:
            return f"{moment.key.rpartition('/')[0]}/{number} {moment.facts[number]}".lstrip("/")
        name = moment.key.rstrip("0123456789").rstrip("_-/") or "samples"
        return f"{_file(moment.members).name}, {name}" if repeated else name

    episodes = files.grouped(moments, episode)
    step = _fact_of_all(moments, STEPS, int | float)
    if step and any(len({moment.facts[step] for moment in own}) < len(own) for own in episodes.values()):
        step = None  # two frames of an episode have the same: it counts something else

    def place(moment: _Moment) -> Any:
        return moment.facts[step] if step else files.natural(Path(moment.key))

    by = f"their '{number}'" if number else "the samples' names"
    found.say(f"every sample is one picture: they are the frames of {len(episodes)} episodes, by {by}")
    for name in sorted(episodes, key=lambda name: files.natural(Path(name))):
        whole = bool(number) or len(episodes) > 1 or any(map(str.isdecimal, name))  # else flags may end more episodes
        yield name, partial(_joined, name, sorted(episodes[name], key=place), whole)


def _fact_of_all(moments: list[_Moment], names: tuple[str, ...], kind: Any) -> str | None:
    """Return the fact with one of these names that every moment has, as a value of this kind; None if there is none."""
    name = roles.find(moments[0].facts, names)
    return name if name and all(isinstance(moment.facts.get(name), kind) for moment in moments) else None


def _joined(name: str, moments: list[_Moment], whole: bool) -> Bundle:
    """Return the samples of an episode as one: their pictures, and their facts as columns."""
    views = [_pictures(moment.members) for moment in moments]
    cameras = [camera for camera in views[0] if all(camera in view for view in views)]
    columns = {camera: _stills([view[camera] for view in views]) for camera in cameras}
    table = tables.of_json([moment.facts for moment in moments])
    columns |= {k: Column.of(v) for k, v in table.items() if isinstance(v, np.ndarray) and v.ndim < 3}
    return Bundle(name, columns, task=_text(moments[0].facts), whole=whole)


def _facts(key: str, members: _Members, found: Found) -> dict[str, Any]:
    """Return what the members beside a moment's pictures say, by name: numbers, texts, lists and vectors.

    What has no name is the action, and a text what was to be done. An array with more axes is no fact of one moment.
    """
    facts: dict[str, Any] = {}
    for rest, member in members.items():
        stem, _, ending = rest.rpartition(".")
        if ending in PICTURES:
            continue
        try:
            value = member.value(ending)
        except UNREADABLE as error:
            found.say(f"{key}.{rest} cannot be read: its picture is used without it ({first_line(error)})")
            continue
        if isinstance(value, dict):
            facts |= value
        elif ending == "txt":
            facts[stem or TEXTS[0]] = _value(value)
        else:
            facts[stem or "action"] = value
    arrays = {name: value for name, value in facts.items() if isinstance(value, np.ndarray)}
    facts |= {name: array.item() for name, array in arrays.items() if array.ndim == 0}
    return {name: value for name, value in facts.items() if name not in arrays or arrays[name].ndim < 2}


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
    found.fps = found.fps or roles.rate(about.get("fps"))
    if (declared := counted(about.get("actions", about.get("num_actions")))) is not None:
        found.declared = declared
    return _text(about)


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
