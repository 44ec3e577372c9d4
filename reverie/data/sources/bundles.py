"""Named arrays of one or many episodes (an .npz, a group of an HDF5 file, a sample of a tar) as recordings.

The name and shape of an array determine its role (``roles``), and its length the step of each entry. One entry fewer
than frames: one per step. As many as frames: taken *at* a frame. But in arrays of DreamerV2 and Crafter whose first
entry of every episode is 0, they led *to* a frame. A user can set this instead.

N rows of a bundle, T frames of an episode.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from reverie.data.sources import roles
from reverie.data.sources.pictures import decoded, is_picture, rgb, side_by_side
from reverie.data.sources.recordings import UNREADABLE, Found, Recording
from reverie.data.sources.spaces import flat
from reverie.errors import Damaged, ReverieError

Alignment = Literal["at", "to"]
BATCH = 64  # pictures read at a time


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

    lengths: of the episodes in it, where the file says so; else flags in it end them.
    """

    name: str
    columns: dict[str, Column]
    source: str = ""
    task: str = ""
    lengths: tuple[int, ...] = ()
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
        """Of the bundle."""
        return self.bundle.columns[self.cameras[0]].shape[0]

    def steps(self, rows: np.ndarray | None, frames: int, *, led: bool) -> np.ndarray | None:
        """Return the entries of the steps between ``frames`` frames; ``led``: each entry led to its frame."""
        if rows is None:
            return None
        first = self.start + (led and len(rows) == self.length)
        return rows[first : first + frames - 1]


def cameras_of(columns: dict[str, Column]) -> list[str]:
    """Return the names of the arrays that are pictures, the most telling first; not those of the step after."""

    def named(name: str) -> bool:
        return roles.last(name) in roles.FRAMES or any(word in name.lower() for word in ("image", "rgb", "pixels"))

    found = [
        name
        for name, column in columns.items()
        if not roles.is_next(name)
        and (column.form != "numbers" or is_picture(column.shape, column.kind, named=named(name)))
    ]
    return roles.by_likeness(found)


def add(found: Found, bundles: Sequence[Bundle], *, camera: str, actions: str, alignment: Alignment | None) -> None:
    """Add the recordings of bundles to ``found``; what cannot be used is skipped there, and guesses are said."""
    segments: list[_Segment] = []
    for bundle in bundles:
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


def _segments(bundle: Bundle, camera: str, actions: str, found: Found) -> Iterator[_Segment]:
    columns = bundle.columns
    options = cameras_of(columns)
    if not options:
        raise ReverieError(f"it holds no pictures (it has {', '.join(columns)[:200] or 'nothing'})")
    cameras = roles.cameras(camera, options, found.say)
    nexts = tuple(name for one in cameras if (name := _next_of(one, columns)) is not None)
    length = columns[cameras[0]].shape[0]
    rows = _rows(columns, actions, length, found)
    cuts = _cuts(rows, bundle, length)
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, length], strict=True)):
        name = f"{bundle.name}, episode {number}" if cuts else bundle.name
        yield _Segment(bundle, name, start, stop, cameras, nexts if len(nexts) == len(cameras) else (), rows)


def _next_of(camera: str, columns: dict[str, Column]) -> str | None:
    """Return the array of the pictures after each step, beside one of those before it."""
    parts = camera.split("/")
    options = ["/".join([*parts[:i], f"next_{part}", *parts[i + 1 :]]) for i, part in enumerate(parts)]
    shape = columns[camera].shape[:1]
    return next((name for name in options if name in columns and columns[name].shape[:1] == shape), None)


def _rows(columns: dict[str, Column], actions: str, length: int, found: Found) -> dict[str, np.ndarray]:
    """Return the arrays of an episode's steps by role; those of a wrong length are said and left out."""
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
    keys = [roles.chosen(key, fits, "array of actions") for key in actions.split(",") if key]
    if not keys and "actions" not in rows:
        keys = [name for name in fits if roles.is_part(name, roles.ACTIONS)]
        if len(keys) > 1:
            found.say(f"an action has the parts {', '.join(keys)[:200]}: read as one vector; --actions takes some")
    if keys:
        parts = [columns[key].all() for key in keys]
        rows["actions"] = parts[0] if len(parts) == 1 else np.concatenate(list(map(flat, parts)), 1)
    if (key := ",".join(keys) or roles.find(fits, roles.ACTIONS)) and roles.last(key) in roles.HELD:
        found.declared = replace(found.declared, held=True)
    return rows


def _cuts(rows: dict[str, np.ndarray], bundle: Bundle, length: int) -> list[int]:
    """Return where in a bundle further episodes begin."""
    if bundle.whole:  # robomimic's "dones" are set in every step after the success
        return []
    if bundle.lengths:
        return np.cumsum(bundle.lengths)[:-1].tolist()
    per_frame = {role: _flags(array) for role, array in rows.items() if len(array) == length}
    if "firsts" in per_frame:
        begins = np.flatnonzero(per_frame["firsts"])
    else:
        over = [per_frame[role] for role in ("terminals", "dones", "stops") if role in per_frame]
        begins = np.flatnonzero(np.any(over, axis=0)) + 1 if over else np.zeros(0, int)
    return [row for row in begins.tolist() if 0 < row < length]


def _flags(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows).reshape(len(rows), -1)[:, 0] != 0 if rows.size else np.zeros(len(rows), bool)


def _alignment(segments: Sequence[_Segment], found: Found) -> Alignment:
    """Return to which frame entries belong where there are as many as frames; say so where that is a choice."""
    equal = [one for one in segments if len(one.rows.get("actions", ())) == one.length]
    if not equal or all(one.nexts for one in equal):
        return "at"
    dreamer = all("firsts" in one.rows or "discounts" in one.rows for one in equal)
    if dreamer and not any(np.any(one.rows["actions"][one.start]) for one in equal):
        found.say("the first action of every recording is 0: actions are taken as those that led to their frame "
                  "(--alignment at: those taken at it)")  # fmt: skip
        return "to"
    found.say("there are as many actions as frames: they count as taken at their frame (--alignment to: as those "
              "that led to it)")  # fmt: skip
    return "at"


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
    views = [_view(columns[name], one.start, one.stop) for name in one.cameras]
    for pictures in zip(*views, strict=True):
        yield side_by_side(pictures)
    if follows:
        last = [_view(columns[name], one.stop - 1, one.stop) for name in one.nexts]
        yield from (side_by_side(pictures) for pictures in zip(*last, strict=True))


def _view(column: Column, start: int, stop: int) -> Iterator[np.ndarray | None]:
    """Yield pictures of one camera; what floats and fourth channels mean is judged over all of them."""
    if column.form == "pictures":
        yield from column.read(start, stop)
        return
    plain = column.form == "encoded" or (column.kind == "u1" and 4 not in column.shape[1:])
    batch = BATCH if plain else max(1, stop - start)
    for first in range(start, stop, batch):
        rows = column.read(first, min(stop, first + batch))
        if column.form == "numbers":
            yield from rgb(np.asarray(rows))
            continue
        for row in rows:
            try:
                yield decoded(bytes(row))
            except Damaged:
                yield None
