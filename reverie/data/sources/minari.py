"""Minari's datasets: metadata.json beside main_data.hdf5, or beside a folder of Arrow or Parquet files for each
episode.

T steps have T + 1 observations, so nothing is lost. Pictures are JPEG bytes unless "jpeg_encoding" says otherwise.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie import bounded
from reverie.data.sources import bundles, files
from reverie.data.sources.bundles import Bundle
from reverie.data.sources.hdf5 import columns_below, opened
from reverie.data.sources.parquet import column_of, pyarrow, table_of
from reverie.data.sources.recordings import UNREADABLE, FileSource, Found
from reverie.data.sources.spaces import Declared
from reverie.errors import Damaged, first_line

METADATA, MAIN = "metadata.json", "main_data.hdf5"
BYTES = 2**28  # of the metadata: it lists the bounds of every pixel
ENDS = (".arrow", ".parquet")


@dataclass(frozen=True, kw_only=True)
class MinariConfig(FileSource):
    """Minari's datasets of environments with pictures."""

    camera: str = ""  # of several pictures in an observation, which; several, joined by commas, are put side by side
    actions: str = ""  # of an action with several parts, which

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds a Minari dataset."""
        roots = {file.parent for file in inside if file.name == MAIN}
        roots |= {file.parents[1] for file in inside if file.suffix in ENDS and (file.parents[1] / METADATA).is_file()}
        return cls(path=str(path)) if roots else None

    def look(self, inside: list[Path]) -> Found:
        """Return the recordings of the dataset."""
        roots = [file.parent for file in inside if file.name == MAIN]
        roots += [file.parents[1] for file in inside if file.suffix in ENDS]
        root, found = self.one_of(roots), Found()
        if root is None:
            return found
        about = _metadata(root / METADATA, found)
        observed = _space(about.get("observation_space"))
        found.declared = _declared(_space(about.get("action_space")), self.actions)
        made = list(_hdf5(root / MAIN, found) if (root / MAIN).is_file() else _tables(root, observed, found))
        bundles.add(found, made, camera=self.camera, actions=_key(self.actions), alignment=None)
        return found


def _key(actions: str) -> str:
    return ",".join(key if key.startswith("actions") else f"actions/{key}" for key in actions.split(",") if key)


def _metadata(path: Path, found: Found) -> dict[str, Any]:
    try:
        about = bounded.parse_json(bounded.read_bytes(path, BYTES), f"'{path.name}'", finite=False)
    except (Damaged, OSError) as error:
        found.say(f"the metadata cannot be read ({first_line(error)}): kinds of actions are taken from their numbers")
        return {}
    return about if isinstance(about, dict) else {}


def _space(text: Any) -> dict[str, Any]:
    """Return a space as Minari writes it, a text of JSON in JSON; {} if it is not one."""
    try:
        found = bounded.parse_json(text, "a space", finite=False) if isinstance(text, str) else text
    except Damaged:
        found = {}
    return found if isinstance(found, dict) else {}


def _leaf(space: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the space at a path of Dict and Tuple spaces ("a/_index_0")."""
    for part in path.split("/") if path else ():
        inner = space.get("subspaces")
        if isinstance(inner, list):
            place = re.sub(r"\D", "", part)
            space = inner[int(place)] if place and int(place) < len(inner) else {}
        else:
            space = inner.get(part, {}) if isinstance(inner, dict) else {}
    return space if isinstance(space, dict) else {}


def _declared(space: dict[str, Any], actions: str) -> Declared:
    """Return what an action space declares, or the chosen part of it."""
    space = _leaf(space, actions) if actions else space
    try:
        if space.get("type") == "Discrete":
            return Declared(sizes=(int(space["n"]),), first=(int(space.get("start", 0)),))
        if space.get("type") == "MultiBinary":
            return Declared(held=True)
        if space.get("type") == "MultiDiscrete":
            sizes = tuple(int(n) for n in np.ravel(space["nvec"]))
            first = space.get("start", [0] * len(sizes))
            return Declared(sizes=sizes, first=tuple(int(n) for n in np.ravel(first)))
        if space.get("type") == "Box" and str(space.get("dtype")).startswith("float"):
            low, high = (np.broadcast_to(np.array(space[end], float), space["shape"]) for end in ("low", "high"))
            return Declared(low=tuple(low.ravel().tolist()), high=tuple(high.ravel().tolist()))
    except (KeyError, TypeError, ValueError):
        pass
    return Declared()


def _hdf5(file: Path, found: Found) -> Iterator[Bundle]:
    with opened(file) as handle:
        for name in sorted(handle, key=lambda name: files.natural(Path(name))):
            try:
                columns = columns_below(file, handle[name])
                yield Bundle(
                    name, {key: column for key, column in columns.items() if not key.startswith("infos")}, whole=True
                )
            except UNREADABLE as error:
                found.skip(name, error)


def _tables(root: Path, observed: dict[str, Any], found: Found) -> Iterator[Bundle]:
    """Yield the episodes, each a folder NUMBER/*.arrow, whose last row holds an observation and no step."""
    pyarrow()  # if it is missing, that is one line, not one for each episode
    inside = [file for file in files.inside(root) if file.suffix in ENDS]
    folders = sorted({file.parent for file in inside}, key=files.natural)
    for folder in folders:
        try:
            table = table_of([file for file in inside if file.parent == folder])
            columns = {}
            for name, array in _leaves(table):
                space = _leaf(observed, name.partition("/")[2]) if name.startswith("observations") else {}
                shape = tuple(space.get("shape", ())) if len(space.get("shape", ())) > 1 else ()
                column = column_of(array, shape)
                steps = column.shape and not name.startswith("observations")
                columns[name] = replace(column, shape=(column.shape[0] - 1, *column.shape[1:])) if steps else column
            yield Bundle(f"episode {folder.name}", columns, whole=True)
        except UNREADABLE as error:
            found.skip(folder.name, error)


def _leaves(table: Any) -> Iterator[tuple[str, Any]]:
    for name in table.column_names:
        if name not in ("infos", "episode_id"):
            yield from _fields(name, table[name].combine_chunks())


def _fields(name: str, array: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(array.type, "num_fields") and str(array.type).startswith("struct"):
        for index in range(array.type.num_fields):
            field = array.type.field(index).name
            part = f"_index_{field}" if field.isdecimal() else field
            yield from _fields(f"{name}/{part}", array.field(index))
    else:
        yield name, array
