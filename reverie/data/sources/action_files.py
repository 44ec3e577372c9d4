"""Actions written beside a video: NAME.npy, NAME.csv, NAME.jsonl or NAME.npz beside NAME.mp4.

One action is a whole number, or several numbers or keys, whose columns ``tables`` names.
The files hold the action taken *at* a frame. Reverie's convention is the action that led *to* a frame (see
``reverie.actions``), so row i led to frame i + 1. R rows.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from reverie.data.sources import tables
from reverie.data.sources.spaces import Declared, flat
from reverie.errors import ReverieError

ENDINGS = (".npy", ".csv", ".jsonl", ".npz")
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
    """Return the content of an action file; ReverieError says what is wrong with it, and where."""
    columns = tables.read(path, ("time", "frame", "action"))
    by = next((name for name in ("time", "frame") if name in columns), "row")
    own = "action" if "action" in columns else ""  # further columns are ignored
    rows, declared = tables.actions_of({name: array for name, array in columns.items() if name != by}, own)
    pictures = path.suffix == ".npy" and rows is not None and rows.ndim > 2
    if rows is None or not len(rows) or rows.dtype.kind not in "biuf" or pictures:
        raise ReverieError(f"{path.name} holds no actions; name its columns action, action.NAME or key.NAME")
    if own and rows.ndim == 1 and path.suffix != ".npz" and rows.dtype.kind != "b":  # an .npz may have one float a row
        if (wrong := ~np.isin(rows, np.arange(LARGEST + 1))).any():
            row = int(wrong.argmax())
            raise ReverieError(f"{path.name}, row {row}: {rows[row]} is not an action (a whole number 0..{LARGEST})")
        rows = rows.astype(np.int32)
    places = np.arange(len(rows), dtype=np.float64) if by == "row" else columns[by].astype(np.float64).reshape(-1)
    if len(places) != len(rows):
        raise ReverieError(f"{path.name} has {len(places)} rows of '{by}' for {len(rows)} actions")
    if (wrong := ~(np.diff(places, prepend=-np.inf) > 0) | ~np.isfinite(places)).any():
        row = int(wrong.argmax())
        raise ReverieError(f"{path.name}, row {row}: '{by}' is {places[row]:g}; it must ascend from row to row")
    return ActionRows(flat(rows), places, by, declared)
