"""Recordings in files that other programs wrote, as episodes: the part that all such sources share.

A source says which recordings there are (``look``), each with what belongs to the steps between its frames. Here they
get one spec, their actions one space, and damage is named: what cannot be read costs that recording, a damaged picture
ends an episode there and the next one begins after it. Lengths, order and frames stay the files' own.

T frames of a recording, so T - 1 steps; H W C image.
"""

import logging
import math
import struct
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie.data.episode import Episode, Share, Spec, share_of
from reverie.data.sources import files
from reverie.data.sources.pictures import resized
from reverie.data.sources.spaces import Coding, Declared, coding, merged
from reverie.errors import ReverieError, first_line

FPS = 15.0  # where neither the files nor the user say
NAMED = 5  # recordings or datasets that an error names
LARGE = 2**28  # bytes of frames from which on a recording lies in a file: five minutes of VPT have 4 GB
UNREADABLE = (  # what readers of files raise about content that is wrong
    *(ReverieError, OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, SyntaxError),
    *(AttributeError, MemoryError, struct.error, zlib.error),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """One episode as its files hold it.

    name: for people. source: the recording it is a part of, see ``Episode``. length: T. frames: returns the T pictures
    uint8 (H,W,3), None where one is damaged. actions (T - 1, ...), rewards (T - 1,), ends (T - 1,): of the steps that
    led to frames 1..T-1, or None. task: what was to be done, in words.
    """

    name: str
    length: int
    frames: Callable[[], Iterable[np.ndarray | None]]
    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    ends: np.ndarray | None = None
    task: str = ""
    source: str = ""


@dataclass
class Found:
    """What a look into the files found.

    fps: 0 where they do not say. declared: what they say about actions; coding: all of it, if nothing has to be
    guessed. notes: what was left out, repaired or guessed, one line each.
    """

    recordings: list[Recording] = field(default_factory=list)
    fps: float = 0.0
    declared: Declared = field(default_factory=Declared)
    coding: Coding | None = None
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def say(self, note: str) -> None:
        """Add a note, unless it is there already."""
        if note not in self.notes:
            self.notes.append(note)

    def skip(self, name: str, reason: BaseException | str) -> None:
        """Note that a recording or file cannot be used."""
        self.skipped.append(f"{name}: {first_line(reason) if isinstance(reason, BaseException) else reason}")
        self.notes.append(f"skipped {self.skipped[-1]}")

    def made(self, todo: Iterable[tuple[str, Callable[[], Any]]]) -> list[Any]:
        """Return what each call returns, by name; one that cannot is skipped."""
        made = []
        for name, make in todo:
            try:
                made.append(make())
            except UNREADABLE as error:
                self.skip(name, error)
        return made

    def label(self, parts: Sequence[tuple[np.ndarray | None, Declared]]) -> None:
        """Give each recording its actions, of which each part declares something of its own; see ``merged``."""
        rows, self.declared = merged(parts)
        self.recordings = [replace(one, actions=own) for one, own in zip(self.recordings, rows, strict=True)]


def at(rows: np.ndarray | None, frames: int) -> np.ndarray | None:
    """Return, of rows that say what was done *at* a frame, those of the steps between ``frames`` frames."""
    return None if rows is None else rows[: frames - 1]


def to(rows: np.ndarray | None, frames: int) -> np.ndarray | None:
    """Return the rows of the steps between ``frames`` frames, given rows that say what led *to* each frame."""
    return None if rows is None else rows[1:frames]


@dataclass(frozen=True, kw_only=True)
class FileSource(ABC):
    """What every source of recordings in files has; ``of`` and ``look`` are its own."""

    path: str = field(kw_only=False)  # the folder or file to read
    size: tuple[int, int] | None = None  # height and width of the frames made; None keeps their own
    fps: float = 0.0  # frames per second; 0 takes what the files say, or 15. No frame is left out or repeated

    def __post_init__(self):
        if (self.size is not None and min(self.size) < 1) or not 0 <= self.fps <= 240:
            raise ReverieError("a source needs a size of at least 1 x 1 and 0 <= fps <= 240.")

    @classmethod
    @abstractmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path``, which holds the files ``inside``, or None if it is not in this format."""

    @abstractmethod
    def look(self, inside: list[Path]) -> Found:
        """Return what the files hold; ReverieError if they are not in this format at all."""

    def one_of(self, folders: Iterable[Path]) -> Path | None:
        """Return the folder of the dataset, None if there is none; ReverieError if there are several."""
        found = sorted(set(folders), key=files.natural)
        if len(found) > 1:
            some = ", ".join(map(str, found[:NAMED]))
            raise ReverieError(f"'{self.path}' holds {len(found)} datasets; choose one: {some}.")
        return found[0] if found else None

    def spec(self) -> Spec:
        """Return what all episodes have in common; ReverieError if nothing can be used."""
        return _looked(self, self.stamps()).spec

    def episodes(self, shard: Share | tuple[int, int] = (0, 1)) -> Iterator[Episode]:
        """Yield the recordings in order; what is left out, repaired or guessed is logged, one line each."""
        looked, share = _looked(self, self.stamps()), share_of(shard)
        failed, recordings = list(looked.found.skipped), looked.found.recordings
        for note in looked.notes:
            log.warning("%s", note)
        for one in (recordings[index] for index in share.of(len(recordings))):
            try:
                pieces = _pieces(one, looked)
            except UNREADABLE as error:
                failed.append(f"{one.name}: {first_line(error)}")
                log.warning("skipped %s", failed[-1])
                share.counts["failed"] += 1
                continue
            yield from pieces
            share.counts["written"] += len(pieces)
        if not share.counts["written"]:
            raise _nothing(self, failed)
        if skipped := len(looked.found.skipped) + share.counts["failed"]:
            log.warning("skipped %d of %d recordings", skipped, skipped + share.counts["written"])

    def stamps(self) -> tuple:
        """Return the path, time and size of each file; ReverieError if there are none."""
        inside = files.at(Path(self.path))
        if not inside:
            missing = "holds no files" if Path(self.path).is_dir() else "is not a file or folder"
            raise ReverieError(f"'{self.path}' {missing}.")
        return files.stamps(inside)

    def expected_frames(self) -> int:
        """Return how many frames the recordings have together."""
        return sum(one.length for one in _looked(self, self.stamps()).found.recordings)

    def labelled(self) -> float:
        """Return the share of the recordings that have actions."""
        recordings = [one for one in _looked(self, self.stamps()).found.recordings if one.length > 1]
        return sum(one.actions is not None for one in recordings) / max(1, len(recordings))

    def contents(self) -> dict[str, str]:
        """Return a hash of each file by its name, wherever the folder lies."""
        root = Path(self.path)
        return {files.name_of(file, root): files.fingerprint(file) for file in files.at(root)}


@dataclass(frozen=True)
class _Looked:
    """What a look into the files found. chosen: whether the size was given."""

    chosen: bool
    found: Found
    spec: Spec
    coding: Coding
    notes: tuple[str, ...]


@lru_cache(maxsize=4)  # spec() and episodes() look at the same files; one that changed has another stamp
def _looked(source: FileSource, stamps: tuple) -> _Looked:
    try:
        found = source.look([path for path, *_ in stamps])
    except ReverieError:
        raise
    except UNREADABLE as error:
        raise ReverieError(f"'{source.path}' cannot be read ({first_line(error)}).") from None
    size, notes, failed = source.size, list(found.notes), list(found.skipped)
    if size is None:
        size = next((s for one in found.recordings if (s := _size(one, failed)) is not None), None)
    if size is None or not found.recordings:
        raise _nothing(source, failed)
    fps = source.fps or found.fps
    if not fps:
        fps = FPS
        notes.append(f"frames per second are not in the files: {FPS:g} assumed, --fps sets them")
    codes = found.coding or coding([one.actions for one in found.recordings], found.declared, notes.append)
    if codes.space.kind == "none":
        notes.append("no actions were found: they are unlabelled")
    spec = Spec((*size, 3), codes.space, fps, type(source).__module__.rpartition(".")[2])
    return _Looked(source.size is not None, found, spec, codes, tuple(notes))


def _size(one: Recording, failed: list[str]) -> tuple[int, int] | None:
    """Return the size of a recording's first sound picture, or None, and why in ``failed``."""
    try:
        picture = next((picture for picture in one.frames() if picture is not None), None)
    except UNREADABLE as error:
        picture = None
        failed.append(f"{one.name}: {first_line(error)}")
    else:
        if picture is None:
            failed.append(f"{one.name}: none of its pictures can be read")
    return None if picture is None else picture.shape[:2]


def _nothing(source: FileSource, failed: list[str]) -> ReverieError:
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    why = f" ({'; '.join(failed[:NAMED])}{more})" if failed else ""
    if not failed:
        name = type(source).__module__.rpartition(".")[2]
        why = f": no file is one that '{name}' reads; 'reverie learn {source.path}' finds out what it holds"
    return ReverieError(f"'{source.path}' holds no recording that can be used{why}.")


def _pieces(one: Recording, looked: _Looked) -> list[Episode]:
    """Return a recording as one episode, or several where pictures are damaged."""
    spec = looked.spec
    frames, sound = _frames(one, spec.frame, looked.chosen)
    if not len(sound):
        raise ReverieError("none of its pictures can be read")
    if len(sound) < one.length:
        log.warning("%s: %d of %d pictures damaged or missing, left out", one.name, one.length - len(sound), one.length)
    steps = one.length - 1
    actions = np.concatenate([spec.actions.start((1,)), looked.coding.actions(one.actions, steps)])
    rewards, ends = _numbers(one.rewards, steps), _numbers(one.ends, steps) != 0
    breaks = np.flatnonzero(np.diff(sound) > 1) + 1
    episodes = []
    for part in np.split(sound, breaks):
        first, stop = int(part[0]), int(part[-1]) + 1
        led = actions[first:stop].copy()
        led[0] = spec.actions.start()
        gain, over = rewards[first:stop].copy(), ends[first:stop].copy()
        gain[0], over[0] = 0, False
        source = one.source or one.name
        episodes.append(Episode(frames[first:stop], led, gain, over, fps=spec.fps, source=source, task=one.task))
    return episodes


def _frames(one: Recording, shape: tuple[int, int, int], chosen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures (T,H,W,C) of a recording, and the numbers of those that are sound."""
    frames, sound, resizes, count = _room((one.length, *shape)), [], set(), 0
    for count, picture in enumerate(one.frames(), start=1):
        if picture is None or count > one.length:
            continue
        if picture.shape[:2] != tuple(shape[:2]):
            resizes.add(picture.shape[:2])
            picture = resized(picture, shape[:2])
        frames[count - 1] = picture
        sound.append(count - 1)
    if count != one.length:
        log.warning("%s: %d pictures for %d frames of its table", one.name, count, one.length)
    if resizes and not chosen:
        log.warning("%s: its pictures of %s are brought to %s", one.name, sorted(resizes), tuple(shape[:2]))
    return frames, np.array(sound, int)


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array for frames: in memory, or from ``LARGE`` bytes on in a temporary file without a name."""
    if math.prod(shape) < LARGE:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _numbers(rows: np.ndarray | None, steps: int) -> np.ndarray:
    """Return float32 (T,), 0 where nothing led to a frame, or nothing is known."""
    found = np.zeros(steps + 1, np.float32)
    if rows is not None and np.asarray(rows).size == steps and np.asarray(rows).dtype.kind in "biuf":
        found[1:] = np.nan_to_num(np.asarray(rows, np.float64).reshape(-1), posinf=0, neginf=0)
    return found
