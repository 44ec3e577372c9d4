"""Named arrays of one or many episodes (an .npz, a group of an HDF5 file, a sample of a tar) as recordings.

The name and shape of an array determine its role (``roles``), and its length the step of each entry. One entry fewer
than frames: one per step. As many as frames: taken *at* a frame. But in arrays of DreamerV2 and Crafter whose first
entry of every episode is 0, they led *to* a frame. A user can set this instead.

N rows of a bundle, T frames of an episode.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from reverie.data.sources import roles
from reverie.data.sources.boundaries import NUMBERS, is_list, of_list, of_rows
from reverie.data.sources.pictures import CHANNELS, decoded_each, is_picture, rgb, side_by_side
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found, Recording
from reverie.data.sources.spaces import one_vector
from reverie.errors import ReverieError

Alignment = Literal["at", "to"]
NUMBERED = re.compile(r"(?:(?:episode|ep|traj|trajectory|demo|rollout)[_-]?)?(\d+)[_-]?")
SEVERAL = re.compile(r"cam|view|eye")  # in names of pictures whose number is that of a camera
BATCH = 64  # pictures read at a time


@dataclass(frozen=True, kw_only=True)
class BundleSource(FileSource):
    """What every source of named arrays has."""

    # the array of the pictures, or its end; several, joined by commas, are put side by side; empty finds one
    camera: str = ""
    actions: str = ""  # the array of the actions; empty takes the one named so
    alignment: Alignment | None = None  # where actions are as many as frames: taken at theirs, or led to it


@dataclass(frozen=True)
class Column:
    """One array: its shape (N, ...), its type ("u1", "f4", ...), and a function that reads rows a..b of it.

    form: rows are numbers, or PNG or JPEG bytes, or pictures uint8 (H,W,3) of which damaged ones are None.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[int, int], Any]
    form: Literal["numbers", "encoded", "pictures"] = "numbers"

    def all(self) -> np.ndarray:
        """Return the whole array."""
        return np.asarray(self.read(0, self.shape[0]))

    @classmethod
    def of(cls, array: np.ndarray) -> "Column":
        """Return an array in memory, or mapped into it, as a column."""
        return cls(array.shape, array.dtype.str[1:], lambda a, b: array[a:b])


@dataclass(frozen=True)
class Bundle:
    """Arrays by name, of one episode (``whole``) or of many.

    What cuts one of many into episodes: see ``boundaries``, and flags.
    """

    name: str
    columns: dict[str, Column]
    source: str = ""
    task: str = ""
    whole: bool = False


@dataclass(frozen=True)
class _Segment:
    """One episode: rows start..stop of a bundle. rows: its arrays by role. nexts: pictures after each step."""

    bundle: Bundle
    name: str
    start: int
    stop: int
    cameras: tuple[str, ...]
    nexts: tuple[str, ...]
    rows: dict[str, np.ndarray]

    @property
    def length(self) -> int:
        """The number of rows."""
        return self.bundle.columns[self.cameras[0]].shape[0]

    def steps(self, rows: np.ndarray | None, frames: int, *, led: bool) -> np.ndarray | None:
        """Return the entries of the steps between ``frames`` frames; ``led``: each entry led to its frame."""
        if rows is None:
            return None
        first = self.start + (led and len(rows) == self.length)
        return rows[first : first + frames - 1]


def cameras_of(columns: dict[str, Column]) -> list[str]:
    """Return the names of the arrays that are pictures, the likeliest first; not the next observations."""
    found = [
        name
        for name, column in columns.items()
        if not roles.is_next(name)
        and (column.form != "numbers" or is_picture(column.shape, column.kind, named=roles.shows(name)))
    ]
    return roles.by_likeness(found)


def add(found: Found, bundles: Sequence[Bundle], *, camera: str, actions: str, alignment: Alignment | None) -> None:
    """Add the recordings of bundles to ``found``; what cannot be used is skipped there, and guesses are reported."""
    segments: list[_Segment] = []
    for bundle in _episodes(bundles, found):
        try:
            segments += _segments(bundle, camera, actions, found)
        except UNREADABLE as error:
            found.skip(bundle.name, error)
    if not segments:
        return
    alignment = alignment or _alignment(segments, found)
    lost = sum(_add(found, segment, alignment) for segment in segments)
    if lost:
        found.say(f"the last reward or end of {lost} recordings led to a frame that is not in the files: left out")


def _episodes(bundles: Sequence[Bundle], found: Found) -> Iterator[Bundle]:
    for bundle in bundles:
        try:
            for one in _numbered(bundle):
                yield from _unstacked(one)
        except UNREADABLE as error:
            found.skip(bundle.name, error)


def _numbered(bundle: Bundle) -> list[Bundle]:
    """Return the episodes of arrays with a number in each name (frames_0, actions_0, ...); else the bundle itself."""
    for which in (0, -1):
        parts: dict[int, dict[str, Column]] = {}
        for name, column in bundle.columns.items():
            if numbers := list(NUMBERED.finditer(name)):
                start, stop = numbers[which].span()
                rest = (name[:start] + name[stop:]).strip("/_-. ").replace("//", "/")
                parts.setdefault(int(numbers[which][1]), {})[rest] = column
        shown = {number: own for number, own in parts.items() if cameras_of(own)}
        acted = [own for own in shown.values() if roles.find(own, roles.ACTIONS) is not None]
        if len(acted) > 1 and not any(SEVERAL.search(name) for own in shown.values() for name in cameras_of(own)):
            return [
                replace(bundle, name=f"{bundle.name}, episode {number}", columns=shown[number])
                for number in sorted(shown)
            ]
    return [bundle]


def _unstacked(bundle: Bundle) -> Iterator[Bundle]:
    """Yield the E episodes of arrays (E, T, ...), of which lengths say how much counts; else the bundle itself."""
    columns = bundle.columns
    stacked = [column.shape for name, column in columns.items() if _is_stack(name, column)]
    if not stacked:
        yield bundle
        return
    count, steps = stacked[0][:2]
    lengths = np.full(count, steps)
    for name, column in columns.items():
        if (
            column.shape == (count,)
            and is_list(name, column.shape, column.kind)
            and (own := column.all()).max() <= steps
        ):
            lengths = own
    for episode in range(count):
        parts = {
            key: _of_episode(column, episode, int(lengths[episode]))
            for key, column in columns.items()
            if len(column.shape) > 1 and column.shape[0] == count
        }
        yield replace(bundle, name=f"{bundle.name}, episode {episode}", columns=parts)


def _is_stack(name: str, column: Column) -> bool:
    """Whether an array is pictures (E,T,H,W,C), or (E,T,H,W) without an axis that could be channels."""
    shape = column.shape
    grey = len(shape) == 4 and is_picture(shape[1:], column.kind, named=roles.shows(name))
    return column.form == "numbers" and (len(shape) == 5 or (grey and not {shape[1], shape[3]} & {*CHANNELS}))


def _of_episode(column: Column, episode: int, length: int) -> Column:
    shape = (min(length, column.shape[1]), *column.shape[2:])
    return Column(shape, column.kind, lambda a, b: _row(column, episode)[a:b])


@lru_cache(maxsize=4)  # its frames are read in parts, and those of several cameras in turn
def _row(column: Column, row: int) -> np.ndarray:
    return np.asarray(column.read(row, row + 1)[0])


def _segments(bundle: Bundle, camera: str, actions: str, found: Found) -> Iterator[_Segment]:
    columns = bundle.columns
    options = cameras_of(columns)
    if not options:
        some = ", ".join(f"{name} {column.shape}" for name, column in columns.items())[:200]
        raise ReverieError(f"it holds no pictures of 1, 3 or 4 channels (it has {some or 'nothing'})")
    cameras = roles.cameras(camera, options, found.say)
    nexts = tuple(name for one in cameras if (name := _next_of(one, columns)) is not None)
    length = columns[cameras[0]].shape[0]
    listed = _listed(columns, length, found)
    rows = _rows({name: column for name, column in columns.items() if name not in listed}, actions, length, found)
    cuts = next(iter(listed.values()), None) or _cuts(rows, bundle, length)
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, length], strict=True)):
        name = f"{bundle.name}, episode {number}" if cuts else bundle.name
        yield _Segment(bundle, name, start, stop, cameras, nexts if len(nexts) == len(cameras) else (), rows)


def _next_of(camera: str, columns: dict[str, Column]) -> str | None:
    """Return the array of the pictures after each step, beside one of those before it."""
    parts = camera.split("/")
    options = ["/".join([*parts[:i], after, *parts[i + 1 :]])
               for i, part in enumerate(parts) for after in (f"next_{part}", f"{part}_next")]  # fmt: skip
    shape = columns[camera].shape[:1]
    return next((name for name in options if name in columns and columns[name].shape[:1] == shape), None)


def _rows(columns: dict[str, Column], actions: str, length: int, found: Found) -> dict[str, np.ndarray]:
    """Return the arrays of an episode's steps by role; those of a wrong length are reported and left out."""
    names = [
        name
        for name, column in columns.items()
        if not roles.is_next(name) and column.shape and column.form == "numbers" and len(column.shape) < 4
    ]
    fits = [name for name in names if columns[name].shape[0] in (length, length - 1)]
    rows = {}
    for role, wanted in roles.OF_STEPS.items():
        if name := roles.find(fits, wanted):
            rows[role] = columns[name].all()
        elif name := roles.find(names, wanted):
            found.say(f"'{name}' has {columns[name].shape[0]} entries for {length} pictures: left out")
    rows |= _loose(columns, fits, {*rows}, found)
    if "goes" in rows:
        rows.setdefault("dones", rows["goes"] == 0)
    taken = {roles.find(fits, wanted) for role, wanted in roles.OF_STEPS.items() if role != "actions"}
    keys = roles.acting(actions, fits if actions else [name for name in fits if name not in taken], found.say)
    if (joined := one_vector([columns[key].all() for key in keys])) is not None:
        rows["actions"] = joined
    if len(keys) == 1 and roles.last(keys[0]) in roles.HELD:
        found.declared = replace(found.declared, held=True)
    return rows


def _loose(columns: dict[str, Column], fits: list[str], known: set[str], found: Found) -> dict[str, np.ndarray]:
    """Return the arrays of further roles whose names only contain one ("env_reward"), where there is no other."""
    single, rows = [name for name in fits if math.prod(columns[name].shape[1:]) == 1], {}
    for role in roles.LOOSE:
        near = roles.like(single, roles.OF_STEPS[role]) if role not in known else []
        array = columns[near[0]].all() if len(near) == 1 else None
        if array is not None and (role == "rewards" or np.isin(np.nan_to_num(array), (0, 1)).all()):
            rows[role] = array
            found.say(f"'{near[0]}' counts as the {role}")
    return rows


def _listed(columns: dict[str, Column], length: int, found: Found) -> dict[str, list[int]]:
    """Return where further episodes begin by each array that lists all of them."""
    listed = {}
    for name, column in columns.items():
        if column.shape != (length,) and is_list(name, column.shape, column.kind):
            cuts = of_list(name, column.all(), length)
            if cuts is not None:
                listed[name] = [row for row in cuts if 0 < row < length]
            elif "episode" in name:
                found.say(f"'{name}' does not fit {length} pictures: it ends no episodes")
    return listed


def _cuts(rows: dict[str, np.ndarray], bundle: Bundle, length: int) -> list[int]:
    """Return where in a bundle further episodes begin, by arrays with an entry for each row."""
    if bundle.whole:  # robomimic's "dones" are set in every step after the success
        return []
    per_frame = {role: _flags(array) for role, array in rows.items() if len(array) == length}
    if "firsts" in per_frame:
        return [row for row in np.flatnonzero(per_frame["firsts"]).tolist() if row > 0]
    columns = {name: one for name, one in bundle.columns.items() if one.shape == (length,)}

    def entries(wanted: tuple[str, ...]) -> np.ndarray | None:
        kinds = "biufUS" if wanted is NUMBERS else "biuf"  # an episode may have a name
        name = roles.find([name for name, one in columns.items() if one.kind[0] in kinds], wanted)
        return None if name is None else columns[name].all()

    begins = of_rows(entries)
    over = [per_frame[role] for role in ("terminals", "dones", "stops") if role in per_frame]
    if begins or not over:
        return begins
    return [row for row in (np.flatnonzero(np.any(over, axis=0)) + 1).tolist() if row < length]


def _flags(rows: np.ndarray) -> np.ndarray:
    return roles.is_set(rows).reshape(len(rows), -1)[:, 0] if rows.size else np.zeros(len(rows), bool)


def _alignment(segments: Sequence[_Segment], found: Found) -> Alignment:
    """Return to which frame entries belong where there are as many as frames; say so where that is a choice."""
    equal = [one for one in segments if one.stop > one.start and len(one.rows.get("actions", ())) == one.length]
    if not equal or all(one.nexts for one in equal):
        return "at"
    if all(_begins_with_none(one) for one in equal):
        found.say("the first action of every recording stands for none: actions are taken as those that led to their "
                  "frame (--alignment at: those taken at it)")  # fmt: skip
        return "to"
    dreamer = all("firsts" in one.rows or "discounts" in one.rows for one in equal)
    if dreamer and not any(np.any(one.rows["actions"][one.start]) for one in equal):
        found.say("the first action of every recording is 0: actions are taken as those that led to their frame "
                  "(--alignment at: those taken at it)")  # fmt: skip
        return "to"
    found.say("there are as many actions as frames: they count as taken at their frame (--alignment to: as those "
              "that led to it)")  # fmt: skip
    return "at"


def _begins_with_none(one: _Segment) -> bool:
    """Whether the first action of an episode alone is nan, or -1 where actions are whole numbers from 0 on."""
    first, *later = one.rows["actions"][one.start : one.stop]
    if one.rows["actions"].dtype.kind == "f":
        return bool(np.isnan(first).all()) and not any(np.isnan(row).all() for row in later[-1:])
    return bool(np.all(first == -1)) and all(np.all(row >= 0) for row in later)


def _add(found: Found, one: _Segment, alignment: Alignment) -> bool:
    """Add one recording; return whether a reward or an end was left out, as no frame shows what it led to."""
    rows, follows = one.rows, bool(one.nexts) and alignment == "at"
    frames = one.stop - one.start + follows
    led = alignment == "to" or "firsts" in rows  # rewards and ends; of DreamerV3, actions alone are of the step after
    over = rows.get("terminals")
    if over is None and led and "discounts" in rows:
        over = rows["discounts"] == 0
    if over is None and "dones" in rows:
        over = _flags(rows["dones"])
        if "stops" in rows and len(rows["stops"]) == len(over):
            over &= ~_flags(rows["stops"])
    ends = one.steps(None if over is None else _flags(over), frames, led=led)
    found.recordings.append(
        Recording(
            name=one.name,
            length=frames,
            frames=lambda: _pictures(one, follows),
            actions=one.steps(rows.get("actions"), frames, led=alignment == "to"),
            rewards=one.steps(rows.get("rewards"), frames, led=led),
            ends=ends,
            task=one.bundle.task,
            source=one.bundle.source or one.name,
        )
    )
    if follows or led:
        return False
    final = [array for array in (rows.get("rewards"), over) if array is not None and len(array) == one.length]
    return any(_flags(array)[one.stop - 1] for array in final)


def _pictures(one: _Segment, follows: bool) -> Iterator[np.ndarray | None]:
    columns = one.bundle.columns
    yield from side_by_side([_view(columns[name], one.start, one.stop) for name in one.cameras])
    if follows:
        yield from side_by_side([_view(columns[name], one.stop - 1, one.stop) for name in one.nexts])


def _view(column: Column, start: int, stop: int) -> Iterator[np.ndarray | None]:
    """Yield pictures of one camera; all of them together decide what floats and fourth channels mean."""
    if column.form == "pictures":
        yield from column.read(start, stop)
        return
    plain = column.form == "encoded" or (column.kind == "u1" and 4 not in column.shape[1:])
    batch = BATCH if plain else max(1, stop - start)
    for first in range(start, stop, batch):
        rows = column.read(first, min(stop, first + batch))
        yield from rgb(np.asarray(rows)) if column.form == "numbers" else decoded_each(rows)
