"""Tables of actions, rewards and ends beside the pictures of an episode: NAME.csv, .jsonl, .npy or .npz.

Columns are named in the first line of a csv, by the keys of a jsonl, by the arrays of an npz:

- ``action``: a number; or several, in a jsonl or npz; or the columns ``action.NAME`` (or ``action_NAME``), one each;
- ``key.NAME``: 1 while a key is held; in a jsonl also ``keys``, a list of those held;
- ``reward``, ``terminal`` (the world ended), ``truncated`` (the recording stopped);
- ``frame``: the frame number of the row; without it, row i belongs to frame i.

R rows, T frames.
"""

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reverie import bounded
from reverie.data.sources import roles
from reverie.data.sources.bundles import Alignment
from reverie.data.sources.recordings import at, to
from reverie.data.sources.spaces import Declared
from reverie.errors import Damaged, ReverieError

ENDINGS = (".csv", ".jsonl", ".npy", ".npz")
NAMES = ("actions", "action", "labels", "data", "steps")
BYTES = 2**26  # of a table: a day of rows at 60 a second
PART = re.compile(r"(?:action|actions|act)[._\[/](.+?)\]?")
KEY = re.compile(r"(?:key|keys|held|button|buttons)[._\[/](.+?)\]?")


@dataclass(frozen=True)
class Steps:
    """What belongs to the steps between the frames of an episode; see ``Recording``."""

    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    ends: np.ndarray | None = None
    declared: Declared = field(default_factory=Declared)


def beside(folder: Path) -> Path | None:
    """Return the table of a folder of pictures: in it, or named like it beside it."""
    found = [path for name in NAMES for end in ENDINGS if (path := folder / f"{name}{end}").is_file()]
    found += [path for end in ENDINGS if (path := folder.with_name(folder.name + end)).is_file()]
    if not found:
        inside = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS and path.is_file()]
        found = inside if len(inside) == 1 else []
    return found[0] if found else None


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table by their names; ReverieError says what is wrong with it."""
    try:
        return {".csv": _csv, ".jsonl": _jsonl, ".npy": _npy, ".npz": _npz}[path.suffix.lower()](path)
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, Damaged) as error:
        raise ReverieError(f"{path.name} cannot be read ({error})") from None


def steps(path: Path, frames: int, numbers: list[int], key: str, alignment: Alignment) -> Steps:
    """Return what a table says of the steps between ``frames`` frames; ReverieError where it does not fit.

    ``numbers``: those in the names of the frames, which a column "frame" may use.
    """
    columns = read(path)
    rows = {len(array) for array in columns.values()}
    if len(rows) > 1:
        raise ReverieError(f"{path.name} has columns of different lengths ({sorted(rows)})")
    count = rows.pop() if rows else 0
    placed = _places(path.name, columns, count, frames, numbers)
    if "frame" not in columns and count < frames:
        alignment = "at"  # a row for each step
    actions, declared = actions_of(columns, key)

    def spread(array: np.ndarray | None, missing: float) -> np.ndarray | None:
        if array is None:
            return None
        whole = np.full((frames, *array.shape[1:]), missing, np.result_type(array.dtype, type(missing)))
        whole[placed] = array
        return to(whole, frames) if alignment == "to" else at(whole, frames)

    over = _named(columns, roles.TERMINALS)
    if over is None and (over := _named(columns, roles.DONES)) is not None:
        stops = _named(columns, roles.STOPS)
        over = over if stops is None else over * (stops == 0)
    full = set(range(1, frames) if alignment == "to" else range(frames - 1)) <= set(placed.tolist())
    return Steps(
        None if actions is None else spread(actions, 0 if full else np.nan),
        spread(_named(columns, roles.REWARDS), 0.0),
        None if over is None else spread(over != 0, False),
        declared,
    )


def _places(name: str, columns: dict[str, np.ndarray], count: int, frames: int, numbers: list[int]) -> np.ndarray:
    if "frame" not in columns:
        if count not in (frames, frames - 1):
            raise ReverieError(f"{name} has {count} rows for {frames} frames")
        return np.arange(count)
    given = columns["frame"]
    table = {number: place for place, number in enumerate(numbers)}
    if len(table) == frames and all(float(value) in table for value in given):
        return np.array([table[int(value)] for value in given])
    if ((given < 0) | (given >= frames) | (given % 1 != 0)).any():
        raise ReverieError(f"{name} names frame {given[(given < 0) | (given >= frames)][:1]}; there are {frames}")
    return given.astype(np.int64)


def _named(columns: dict[str, np.ndarray], wanted: tuple[str, ...]) -> np.ndarray | None:
    name = roles.find([name for name, array in columns.items() if array.ndim == 1], wanted)
    return None if name is None else columns[name]


def is_component(name: str) -> bool:
    """Return whether a column is one component of an action: ``action.NAME``, or a key."""
    return bool(PART.fullmatch(name) or KEY.fullmatch(name))


def actions_of(columns: dict[str, np.ndarray], key: str = "") -> tuple[np.ndarray | None, Declared]:
    """Return the actions (R,) or (R,A) in columns, and what their names say of them."""
    if key:
        names = tuple(roles.chosen(one, columns, "column") for one in key.split(","))
        parts = [columns[name] for name in names]
        return (parts[0], Declared()) if len(parts) == 1 else (np.stack(parts, 1), Declared(names=names))
    held = {match[1]: array for name, array in columns.items() if (match := KEY.fullmatch(name))}
    if held:
        return np.stack(list(held.values()), 1), Declared(names=tuple(held), held=True)
    if (name := roles.find(columns, roles.ACTIONS)) is not None:
        return columns[name], Declared(held=roles.last(name) in roles.HELD)
    parts = {match[1]: array for name, array in columns.items() if (match := PART.fullmatch(name))}
    return (np.stack(list(parts.values()), 1), Declared(names=tuple(parts))) if parts else (None, Declared())


def _text(path: Path) -> str:
    return bounded.read_bytes(path, BYTES).decode("utf-8-sig")


def _csv(path: Path) -> dict[str, np.ndarray]:
    lines = [line for line in csv.reader(io.StringIO(_text(path), newline="")) if any(cell.strip() for cell in line)]
    if not lines:
        raise ReverieError(f"{path.name} is empty")
    head = [cell.strip().lower() for cell in lines[0]]
    if all(_is_number(cell) for cell in head):
        if len(head) > 1:
            raise ReverieError(f"{path.name} has several columns; name them in its first line: frame,action,reward")
        head, lines = ["action"], [head, *lines]
    if any(len(line) != len(head) for line in lines[1:]):
        raise ReverieError(f"{path.name} has lines that are shorter or longer than its first")
    cells = list(zip(*lines[1:], strict=True)) or [()] * len(head)
    columns = {name: _numbers(column) for name, column in zip(head, cells, strict=True)}
    if words := [name for name, array in columns.items() if array is None and name in roles.ACTIONS]:
        raise ReverieError(f"{path.name} has words in the column '{words[0]}'; actions are numbers")
    return {name: array for name, array in columns.items() if array is not None}


def _jsonl(path: Path) -> dict[str, np.ndarray]:
    rows = [bounded.parse_json(line, path.name) for line in _text(path).splitlines() if line.strip()]
    rows = [row if isinstance(row, dict) else {"action": row} for row in rows]
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        held = [value for value in values if isinstance(value, list) and all(isinstance(key, str) for key in value)]
        if len(held) == len(values):
            keys = sorted({key for value in held for key in value})
            columns |= {f"key.{key}": np.array([key in value for value in held], np.int64) for key in keys}
        elif (array := _numbers(values)) is not None:
            columns[name.lower()] = array
    return columns


def _npy(path: Path) -> dict[str, np.ndarray]:
    return {"action": np.asarray(bounded.map_npy(path))}


def _npz(path: Path) -> dict[str, np.ndarray]:
    headers, _ = bounded.npz_headers(path)
    return bounded.read_npz(path, BYTES, [name for name, (_, shape) in headers.items() if shape])


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def _numbers(values: Any) -> np.ndarray | None:
    """Return values as an array of integers or floats; None if they are words. True becomes 1, an empty value nan."""
    words = {"true": 1, "false": 0, "": np.nan, "none": np.nan}
    texts = [value.strip().lower() for value in values if isinstance(value, str)]
    try:
        array = np.array([_plain(value, words) for value in values])
        array = array if array.dtype.kind in "iu" and not texts else array.astype(np.float64)
    except (TypeError, ValueError):
        return None
    whole = texts and all(text in words or text.lstrip("+-").isdecimal() for text in texts)
    if whole and np.isfinite(array).all() and np.abs(array).max(initial=0) < 2**53:
        array = array.astype(np.int64)
    return array


def _plain(value: Any, words: dict[str, float]) -> Any:
    if isinstance(value, str):
        return words.get(value.strip().lower(), value.strip())
    return np.nan if value is None else int(value) if isinstance(value, bool) else value
