"""Tables of actions, rewards and ends beside the pictures of an episode: NAME.csv, .tsv, .jsonl, .json, .npy or .npz.

Columns are named in the first line of a csv, by the keys of a jsonl or json, by the arrays of an npz:

- ``action``: a number; or several, in a jsonl or npz; or the columns ``action.NAME`` (or ``action_NAME``), one each;
- ``key.NAME``: 1 while a key is held; in a jsonl also ``keys``, a list of those held;
- ``reward``, ``terminal`` (the world ended), ``truncated`` (the recording stopped);
- ``frame``: the frame number of the row, or any column with the names of the frames' files; without it, row i belongs
  to frame i;
- ``episode``: the number at the end of a folder's name, or the name, where one table tells of several folders.

R rows, T frames.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reverie import bounded
from reverie.data.sources import files, roles
from reverie.data.sources.boundaries import NUMBERS, STEPS
from reverie.data.sources.bundles import Alignment
from reverie.data.sources.recordings import at, to
from reverie.data.sources.spaces import Declared
from reverie.errors import Damaged, ReverieError

ENDINGS = (".csv", ".jsonl", ".npy", ".npz", ".tsv", ".json")
NAMES = ("actions", "action", "labels", "data", "steps")
FOLDERS = 3  # in front of a picture's name in a table, at most
FILES = ("frame", "file", "filename", "file_name", "image", "path")  # columns with the names of pictures
BYTES = 2**26  # of a table: a day of rows at 60 a second
PART = re.compile(r"(?:action|actions|act)(?:[._\[/]|(?=\d))(.+?)\]?")
DECIMAL = re.compile(r"-?\d+,\d+")  # where columns are not separated by commas
KEY = re.compile(r"(?:key|keys|held|button|buttons)[._\[/](.+?)\]?")


@dataclass(frozen=True)
class Steps:
    """What belongs to the steps between the frames of an episode; see ``Recording``. unread: columns if none is one."""

    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    ends: np.ndarray | None = None
    declared: Declared = field(default_factory=Declared)
    unread: tuple[str, ...] = ()


class Tables:
    """The tables below ``root``, by folder and by name: there may be as many as there are episodes."""

    def __init__(self, root: Path, found: Sequence[Path]):
        self._root = root
        self._usual = files.grouped([table for table in found if table.stem.lower() in NAMES], lambda t: t.parent)
        self._other = files.grouped([table for table in found if table.suffix.lower() != ".json"], lambda t: t.parent)
        self._called = files.grouped(found, lambda table: table.stem)

    def of(self, folder: Path) -> Path | None:
        """Return the table of a folder of pictures.

        It lies in the folder or one above and is called "actions" or alike, or is called like the folder, wherever it
        lies, or is the only one in the folder.
        """
        next_to_it = [table for end in ENDINGS if (table := folder.parent / f"{folder.name}{end}").is_file()]
        names = (folder.name, f"{folder.name}_actions", f"actions_{folder.name}")
        own = [table for name in names for table in self._called.get(name, ())]
        lone = self._other.get(folder, [])
        places = [place for place in folder.parents if place.is_relative_to(self._root)]
        above = [table for place in places for table in self._usual.get(place, ())]
        one = [each[0] for each in (own, lone) if len(each) == 1]
        return next(iter([*self._usual.get(folder, ()), *next_to_it, *one, *above]), None)


class _Table(NamedTuple):
    """Columns of numbers by name; of columns of words, the rows of each word, read as a path; the columns' lengths."""

    numbers: dict[str, np.ndarray]
    words: dict[str, dict[str, list[int]]]
    lengths: set[int]


def read(path: Path, needed: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Return the columns of numbers of a table by their names; ReverieError if those ``needed`` hold words."""
    columns = _columns(path)
    _refuse_words(path, columns, needed)
    return _numeric(columns)


@lru_cache(maxsize=1)  # one table may describe all folders
def _table(stamp: tuple[Path, int, int]) -> _Table:
    columns = _columns(stamp[0])
    words: dict[str, dict[str, list[int]]] = {}
    for name, column in columns.items():
        if isinstance(column, list):
            rows = words[name] = {}
            for row, word in enumerate(column):
                rows.setdefault(Path(word).as_posix(), []).append(row)
    return _Table(_numeric(columns), words, {len(column) for column in columns.values()})


def _numeric(columns: dict[str, np.ndarray | list[str]]) -> dict[str, np.ndarray]:
    return {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}


def _columns(path: Path) -> dict[str, np.ndarray | list[str]]:
    """Return all columns of a table, those of words as lists."""
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".npy": _npy, ".npz": _npz}
    try:
        return readers[path.suffix.lower()](path)
    except (ValueError, OSError, EOFError, RecursionError, csv.Error, Damaged) as error:
        raise ReverieError(f"{path.name} cannot be read ({error})") from None


def steps(path: Path, shown: Sequence[Path], key: str, alignment: Alignment) -> Steps:
    """Return a table's steps between frames in files ``shown``; ReverieError where it does not fit."""
    (columns, words, lengths), frames = _of_episode(_table(*files.stamps([path])), shown), len(shown)
    if len(lengths) > 1:
        raise ReverieError(f"{path.name} has columns of different lengths ({sorted(lengths)})")
    if named := _by_file(words, shown):
        columns, placed = {name: column[named[0]] for name, column in columns.items()}, named[1]
    else:
        count = max(lengths, default=0)
        placed = _places(path.name, columns, count, shown)
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
        over = over if stops is None else roles.is_set(over) & ~roles.is_set(stops)
    full = set(range(1, frames) if alignment == "to" else range(frames - 1)) <= set(placed.tolist())
    return Steps(
        None if actions is None else spread(actions, 0 if full else np.nan),
        spread(_named(columns, roles.REWARDS), 0.0),
        None if over is None else spread(roles.is_set(over), False),
        declared,
        tuple(columns) if actions is None else (),
    )


def _of_episode(table: _Table, shown: Sequence[Path]) -> _Table:
    """Return the rows about the episode of these frames, if a column tells several episodes apart."""
    above = [folder.name for folder in shown[0].parents][:FOLDERS]
    name, number = roles.find(table.words, NUMBERS), roles.find(table.numbers, NUMBERS)
    rows = next((table.words[name][folder] for folder in above if folder in table.words[name]), []) if name else []
    if number and len(table.lengths) == 1 and len(np.unique(table.numbers[number])) > 1:
        ends = (files.ROW.findall(folder)[-1:] for folder in above)
        found = (np.flatnonzero(table.numbers[number] == int(end[0])) for end in ends if end)
        rows = next((each.tolist() for each in found if len(each)), rows)
    if not rows:
        return table
    place = {row: new for new, row in enumerate(rows)}
    numbers = {name: column[rows] for name, column in table.numbers.items()}
    words = {
        name: {word: [place[row] for row in own if row in place] for word, own in column.items()}
        for name, column in table.words.items()
    }
    return _Table(numbers, words, {len(rows)})


def _by_file(words: dict[str, dict[str, list[int]]], shown: Sequence[Path]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the rows about these frames, and the frame of each, by a column with names or paths of their files.

    None if there is no such column; ReverieError if one that should be it does not name them, or some twice.
    """
    names: dict[str, int] = {}
    for place, file in enumerate(shown if words else ()):
        for depth in range(1, FOLDERS + 2):
            end = Path(*file.parts[-depth:])
            names |= {end.as_posix(): place, end.with_suffix("").as_posix(): place}
    for column in words.values():
        found = sorted((row, place) for name, place in names.items() for row in column.get(name, ()))
        if found and len({place for _, place in found}) == len(found):
            rows, places = zip(*found, strict=True)
            return np.array(rows), np.array(places)
    if wrong := [name for name in FILES if name in words]:
        raise ReverieError(f"its column '{wrong[0]}' does not name these pictures, or some twice")
    return None


def _places(name: str, columns: dict[str, np.ndarray], count: int, shown: Sequence[Path]) -> np.ndarray:
    frames = len(shown)
    if "frame" not in columns:
        step = columns.get(roles.find(columns, STEPS) or "")
        if step is not None and len(np.unique(step)) == count and set(step.tolist()) <= set(range(frames)):
            return step.astype(np.int64)
        if count not in (frames, frames - 1):
            raise ReverieError(f"{name} has {count} rows for {frames} frames")
        return np.arange(count)
    given = columns["frame"]
    digits = [files.ROW.findall(file.stem) for file in shown]
    table = {int(each[-1]): place for place, each in enumerate(digits) if each}  # numbers in the names of the files
    if len(np.unique(given)) < len(given):
        raise ReverieError(f"{name} names some frames twice")
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
    """Return the actions (R,) or (R,A) in columns, and what their names say about them."""
    if key:
        names = tuple(roles.chosen(one, columns, "column") for one in key.split(","))
        parts = [columns[name] for name in names]
        return (parts[0], Declared()) if len(parts) == 1 else (np.stack(parts, 1), Declared(names=names))
    held = {match[1]: array for name, array in columns.items() if (match := KEY.fullmatch(name))}
    if held:
        return _stacked(held), Declared(names=tuple(held), held=True)
    parts = {match[1]: array for name, array in columns.items() if (match := PART.fullmatch(name))}
    name = roles.find(columns, roles.ACTIONS)
    if name is not None and not (len(parts) > 1 and PART.fullmatch(name)):  # "action.a" is a part beside "action.b"
        return columns[name], Declared(held=roles.last(name) in roles.HELD)
    return (_stacked(parts), Declared(names=tuple(parts))) if parts else (None, Declared())


def _stacked(parts: dict[str, np.ndarray]) -> np.ndarray:
    if len({array.shape for array in parts.values()}) > 1:
        raise ReverieError(f"the columns of its actions have different lengths: {', '.join(parts)[:200]}")
    return np.stack(list(parts.values()), 1)


def cells(path: Path) -> Iterator[list[str]]:
    """Yield the cells of a text file, line by line: separated by commas, semicolons or tabs; empty lines left out."""
    text = bounded.read_bytes(path, BYTES).decode("utf-8-sig")
    mark = max(",;\t", key=text.strip().partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    for line in lines:
        found = [cell.strip() for cell in line]
        if mark != ",":
            found = [cell.replace(",", ".") if DECIMAL.fullmatch(cell) else cell for cell in found]
        if any(found):
            yield found


def _csv(path: Path) -> dict[str, np.ndarray | list[str]]:
    lines = list(cells(path))
    if not lines:
        raise ReverieError(f"{path.name} is empty")
    head = [cell.lower() for cell in lines[0]]
    if all(_is_number(cell) for cell in head):
        if len(head) > 1:
            raise ReverieError(f"{path.name} has several columns; name them in its first line: frame,action,reward")
        head, lines = ["action"], [head, *lines]
    if any(len(line) != len(head) for line in lines[1:]):
        raise ReverieError(f"{path.name} has lines that are shorter or longer than its first")
    words = list(zip(*lines[1:], strict=True)) or [()] * len(head)
    columns = {name: list(w) if (n := _numbers(w)) is None else n for name, w in zip(head, words, strict=True)}
    _refuse_words(path, columns, roles.ACTIONS)
    return columns


def _refuse_words(path: Path, columns: dict[str, np.ndarray | list[str]], needed: Iterable[str]) -> None:
    for name in needed:
        if isinstance(column := columns.get(name), list):
            row, word = next((row, word) for row, word in enumerate(column) if _numbers([word]) is None)
            raise ReverieError(f"{path.name}, row {row}: {word[:40]!r} is not a number, as '{name}' should be")


def _jsonl(path: Path) -> dict[str, np.ndarray | list[str]]:
    lines = bounded.read_lines(path, BYTES)
    return _of_rows([bounded.parse_json(line, path.name, finite=False) for line in lines])


def _json(path: Path) -> dict[str, np.ndarray | list[str]]:
    return of_json(bounded.parse_json(bounded.read_bytes(path, BYTES), path.name))


def of_json(found: Any) -> dict[str, np.ndarray | list[str]]:
    """Return the columns in the value of a JSON text: a list of rows, or lists by name."""
    if not isinstance(found, dict):
        return _of_rows(found if isinstance(found, list) else [])
    columns: dict[str, np.ndarray | list[str]] = {}
    for name, value in found.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            columns |= _of_rows(value)
        elif isinstance(value, list):
            columns |= _numeric(_of_values(name, value))
    return columns


def _of_rows(rows: list[Any]) -> dict[str, np.ndarray | list[str]]:
    rows = [row if isinstance(row, dict) else {"action": row} for row in rows]
    columns: dict[str, np.ndarray | list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        columns |= _of_values(name, [row.get(name) for row in rows])
    return columns


def _of_values(name: str, values: list[Any]) -> dict[str, np.ndarray | list[str]]:
    """Return the column of some values: numbers or words, or of lists of keys held a column for each key."""
    held = [value for value in values if isinstance(value, list) and all(isinstance(key, str) for key in value)]
    missing = values.count(None) if held else 0
    if len(held) + missing == len(values):
        keys = sorted({key for value in held for key in value})
        kind = np.float64 if missing else np.int64
        return {f"key.{key}": np.array([np.nan if v is None else key in v for v in values], kind) for key in keys}
    if (array := _numbers(values)) is not None:
        return {name.lower(): array}
    words = any(isinstance(value, (str, dict, list)) for value in values)  # else numbers too large
    return {name.lower(): [str(value) for value in values]} if words else {}


def _npy(path: Path) -> dict[str, np.ndarray | list[str]]:
    array = np.asarray(bounded.map_npy(path))  # a false header cannot allocate memory
    if not array.ndim or len(array) > BYTES:
        raise Damaged("it holds no rows, or too many")
    return {"action": array}


def _npz(path: Path) -> dict[str, np.ndarray | list[str]]:
    headers, _ = bounded.npz_headers(path)
    return {**bounded.read_npz(path, BYTES, [name for name, (_, shape) in headers.items() if shape])}


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
        array = array.astype(np.int64) if array.dtype.kind == "b" else array
        array = array if array.dtype.kind in "iu" and not texts else array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    whole = texts and all(text in words or text.lstrip("+-").isdecimal() for text in texts)
    if whole and np.isfinite(array).all() and np.abs(array).max(initial=0) < 2**53:
        array = array.astype(np.int64)
    return array


def _plain(value: Any, words: dict[str, float]) -> Any:
    if isinstance(value, str):
        return words.get(value.strip().lower(), value.strip())
    return np.nan if value is None else int(value) if isinstance(value, bool) else value
