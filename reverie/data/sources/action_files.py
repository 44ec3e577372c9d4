"""Actions written beside a video: NAME.npy, NAME.csv, NAME.jsonl or NAME.npz beside NAME.mp4.

One action is a whole number, or several numbers or keys, whose columns ``tables`` names.
The files hold the action taken *at* a frame. Reverie's convention is the action that led *to* a frame (see
``reverie.actions``), so row i led to frame i + 1. R rows.
"""

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from reverie import bounded
from reverie.data.sources import roles, tables
from reverie.data.sources.spaces import Declared, flat
from reverie.errors import Damaged, ReverieError

ENDINGS = (".npy", ".csv", ".jsonl", ".npz")
BYTES = 2**26  # of an action file: enough for a day at 60 rows per second
LATE = 0.5  # seconds by which the times of actions may exceed the video at either end
CROWDED = 0.1  # share of a video: if all actions lie within it, at ten times the frame rate, their unit is another one
LARGEST = 1023  # a larger number is no action but a mistake (a time stamp, a bit mask)


Row = tuple[float, ...] | None  # one action; None where none is known


@dataclass(frozen=True)
class ActionRows:
    """actions (R, A), each in force from ``at`` (R,) float64, ascending, until the next. by: what ``at`` counts.

    "row": row i belongs to frame i, and there must be as many as frames. "frame": frame numbers. "time": seconds after
    the first frame. "shown": the same, of frames as they were decoded, to the last bit.
    """

    actions: np.ndarray
    at: np.ndarray
    by: str
    declared: Declared = field(default_factory=Declared)

    def taken(self, time: float, slack: float) -> Row:
        """Return the action in force at ``time``; times that differ by less than ``slack`` seconds count as equal."""
        row = int(np.searchsorted(self.at, time + (slack if self.by == "time" else 1e-6), side="right")) - 1
        return tuple(self.actions[row].tolist()) if row >= 0 else None

    def placed(self, times: np.ndarray, name: str) -> "ActionRows":
        """Return rows or frame numbers at the times (T,) of the frames; ReverieError if they do not match."""
        frames = len(times)
        if self.by == "row" and len(self.at) not in (frames, frames - 1):
            raise ReverieError(f"{name} has {len(self.at)} actions for {frames} frames")
        if (wrong := self.at[(self.at < 0) | (self.at >= frames) | (self.at % 1 != 0)]).size:
            raise ReverieError(f"{name} names frame {wrong[0]:g}; the video shows {frames}, counted from 0")
        return replace(self, at=times[self.at.astype(np.int64)], by="shown")

    def within(self, span: float, rate: float, name: str) -> "ActionRows":
        """Return the rows if their times can be seconds of a video of ``span`` seconds at ``rate``; else ReverieError.

        Times of another clock or unit lie outside the video, or within a small part of it.
        """
        first, last = float(self.at[0]), float(self.at[-1])
        crowded = last - first < CROWDED * span and len(self.at) > max(8, (last - first) * rate / CROWDED)
        if first < -LATE or last > span + LATE or crowded:
            raise ReverieError(
                f"{name} has times from {first:g} to {last:g} for a video of {span:.6g} seconds; "
                "they must be seconds after its first frame"
            )
        return self


def beside(video: Path) -> Path | None:
    """Return the action file of a video, None if there is none; ReverieError if there are several."""
    found = [path for ending in ENDINGS if (path := video.with_suffix(ending)).is_file()]
    if len(found) > 1:
        raise ReverieError(f"has {' and '.join(path.name for path in found)} beside it; keep one of them")
    return found[0] if found else None


def read(path: Path) -> ActionRows:
    """Return the content of an action file; ReverieError names the row that is invalid."""
    try:
        if _has_vectors(path):
            return _vectors(path)
        by, rows = {".npy": _npy, ".csv": _csv, ".jsonl": _jsonl}[path.suffix](path)
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, Damaged) as error:
        raise ReverieError(f"{path.name} cannot be read ({error})") from None
    if not rows:
        raise ReverieError(f"{path.name} holds no actions")
    actions, last = [], -math.inf
    for number, (place, action) in enumerate(rows):
        actions.append(_whole(action, f"{path.name}, row {number}"))
        if not last < place < math.inf:
            raise ReverieError(f"{path.name}, row {number}: {by} {place} does not come after {last}")
        last = place
    return ActionRows(np.array(actions, np.int32)[:, None], np.array([place for place, _ in rows], np.float64), by)


def _has_vectors(path: Path) -> bool:
    """Return whether a file says that an action is several numbers or keys, by its columns or shape."""
    if path.suffix == ".npy":
        return (array := bounded.map_npy(path)).ndim == 2 or array.dtype.kind == "b"
    if path.suffix == ".npz":
        return True
    if path.suffix == ".csv":
        names = [cell.lower() for cell in next(tables.cells(path), [])]
        return "action" not in names and _names_actions(names)
    first = next(iter(bounded.read_lines(path, BYTES)), "")
    row = json.loads(first) if first.lstrip().startswith("{") else {}
    vector = isinstance(row.get("action"), list) or isinstance(row.get("keys"), list)
    return vector or ("action" not in row and _names_actions(row))


def _names_actions(names: Iterable[str]) -> bool:
    return any(map(tables.is_component, names)) or roles.find(names, roles.ACTIONS) is not None


def _vectors(path: Path) -> ActionRows:
    columns = tables.read(path)
    by = next((name for name in ("time", "frame") if name in columns), "row")
    rows, declared = tables.actions_of({name: array for name, array in columns.items() if name != by})
    if rows is None or not len(rows) or rows.dtype.kind not in "biuf":
        raise ReverieError(f"{path.name} holds no actions; name its columns action, action.NAME or key.NAME")
    places = np.arange(len(rows), dtype=np.float64) if by == "row" else columns[by].astype(np.float64).reshape(-1)
    if len(places) != len(rows) or not np.isfinite(places).all() or (np.diff(places) <= 0).any():
        raise ReverieError(f"{path.name} has a column '{by}' that does not ascend from row to row")
    return ActionRows(flat(rows), places, by, declared)


def _whole(action, where: str) -> int:
    try:
        number = float(action)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(action, bool) or not number.is_integer() or not 0 <= number <= LARGEST:
        raise ReverieError(f"{where}: {str(action)[:40]!r} is not an action (a whole number 0..{LARGEST})")
    return int(number)


def _npy(path: Path) -> tuple[str, list]:
    array = bounded.map_npy(path)  # never unpickles, and a false header cannot allocate memory
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.nbytes > BYTES:
        raise ReverieError(f"{path.name} must hold one whole number per frame, in one dimension")
    return "row", list(enumerate(array.tolist()))


def _csv(path: Path) -> tuple[str, list]:
    lines = list(tables.cells(path))
    if lines and "action" in (head := [cell.lower() for cell in lines[0]]):
        return _placed(path, [dict(zip(head, line, strict=False)) for line in lines[1:]])
    if any(len(line) != 1 for line in lines):
        raise ReverieError(f"{path.name} has several columns; name them in its first line: frame,action or time,action")
    return "row", [(number, line[0]) for number, line in enumerate(lines)]


def _jsonl(path: Path) -> tuple[str, list]:
    rows = [json.loads(line) for line in bounded.read_lines(path, BYTES)]
    if rows and isinstance(rows[0], dict):
        return _placed(path, rows)
    return "row", list(enumerate(rows))


def _placed(path: Path, rows: list) -> tuple[str, list]:
    """Return rows with column names as (place, action); a place is a time, a frame number or the row's number."""
    if any(not isinstance(row, dict) or "action" not in row for row in rows):
        raise ReverieError(f"{path.name} has rows without an action")
    by = next((name for name in ("time", "frame") if rows and name in rows[0]), "row")
    places = range(len(rows)) if by == "row" else [_number(row.get(by), path) for row in rows]
    return by, [(place, row["action"]) for place, row in zip(places, rows, strict=True)]


def _number(text, path: Path) -> float:
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        raise ReverieError(f"{path.name} has {str(text)[:40]!r} where a frame number or time belongs") from None
