"""Episodes in HDF5: robomimic's (one group per episode), D4RL's (one table, cut by flags), and files of one episode
each.

Every group that holds an array of actions is one table of steps; arrays below it belong to it by their paths, such as
"obs/agentview_image" and "next_obs/agentview_image". ``bundles`` says which step an entry belongs to.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from reverie.bounded import ROOM, parse_json, room_for
from reverie.data.sources import bundles, files, roles
from reverie.data.sources.bundles import Bundle, BundleSource, Column
from reverie.data.sources.pictures import is_encoded
from reverie.data.sources.recordings import UNREADABLE, Found
from reverie.errors import Damaged, ReverieError

ENDINGS = (".hdf5", ".h5", ".he5")
DEPTH = 8  # of groups in groups


@dataclass(frozen=True, kw_only=True)
class HDF5Config(BundleSource):
    """HDF5 files of robomimic, D4RL, ALOHA and others."""

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds HDF5 files that are not Minari's."""
        found = files.ending(inside, ENDINGS)
        return cls(path=str(path)) if found and all(file.name != "main_data.hdf5" for file in found) else None

    def look(self, inside: list[Path]) -> Found:
        """Return the recordings of all files, in the order of their names, and of their groups."""
        h5py()  # if it is missing, that is one line, not one for each file
        found, root, made = Found(), Path(self.path), []
        for file in sorted(files.ending(inside, ENDINGS), key=files.natural):
            name = files.name_of(file, root)
            try:
                with opened(file) as handle:
                    found.fps = found.fps or _rate(handle)
                    groups = list(_groups(handle))
                    if not groups:
                        raise ReverieError("it holds no group with actions and pictures")
                    for group, columns in _tables(file, handle, groups).items():
                        where = f"{name}, {group.strip('/')}" if len(groups) > 1 or len(inside) == 1 else name
                        task = _task(handle[group])
                        made.append(Bundle(where.strip(", "), columns, task=task, whole=group != "/"))
            except UNREADABLE as error:
                found.skip(name, error)
        bundles.add(found, made, camera=self.camera, actions=self.actions, alignment=self.alignment)
        return found


def h5py() -> Any:
    """Return the package h5py; ReverieError if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise ReverieError("this format needs h5py: pip install 'reverie-worlds[hdf5]'") from None
    return h5py


def opened(file: Path) -> Any:
    """Return an HDF5 file, open for reading."""
    try:
        return h5py().File(file, "r")
    except OSError as error:
        raise Damaged(f"it is not an HDF5 file, or damaged ({str(error)[:100]})") from None


def columns_below(file: Path, group: Any) -> dict[str, Column]:
    """Return all arrays below a group by their paths from it."""
    prefix = group.name.rstrip("/") + "/"
    found = ((path, _column(file, array)) for path, array in _arrays(group))
    return {path.removeprefix(prefix): column for path, column in found if column is not None}


def _tables(file: Path, handle: Any, groups: list[str]) -> dict[str, dict[str, Column]]:
    """Return the arrays of each table; a single one with pictures also has what lies beside it (meta/episode_ends)."""
    tables = {group: columns_below(file, handle[group]) for group in groups}
    shown = [group for group, columns in tables.items() if bundles.cameras_of(columns)]
    if len(shown) != 1 or shown == ["/"]:
        return tables
    own, inside = tables[shown[0]], shown[0].strip("/") + "/"
    others = {name: one for name, one in columns_below(file, handle).items() if not name.startswith(inside)}
    return {shown[0]: own | {name: one for name, one in others.items() if name not in own}}


def _task(group: Any) -> str:
    """Return the text of the task that the attributes of a group, or of those above it, hold."""
    for place in (group, group.parent):
        texts = [value for key, value in place.attrs.items() if key in roles.TASKS and isinstance(value, str | bytes)]
        if texts:
            return texts[0] if isinstance(texts[0], str) else texts[0].decode(errors="replace")
    return ""


def _members(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a group holds itself, in natural order; not what a link into another file leads to."""
    library = h5py()
    for name in sorted(group, key=lambda name: files.natural(Path(name))):
        if isinstance(group.get(name, getlink=True), library.HardLink):
            yield name, group.get(name)


def _groups(group: Any, depth: int = 0) -> Iterator[str]:
    """Yield the paths of the groups that are tables of steps: those with actions in them, or pictures alone."""
    library = h5py()
    members = dict(_members(group))
    own = [name for name, item in members.items() if isinstance(item, library.Dataset)]
    inner = [item for item in members.values() if isinstance(item, library.Group)]
    if roles.find(members, roles.ACTIONS) is not None or depth == DEPTH:
        yield group.name
        return
    below = [path for item in inner for path in _groups(item, depth + 1)]
    yield from below
    if not below and depth < 2 and any(_column(None, members[name]) is not None for name in own):
        yield group.name


def _arrays(group: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    library = h5py()
    for _, item in _members(group):
        if isinstance(item, library.Dataset):
            yield item.name, item
        elif depth < DEPTH:
            yield from _arrays(item, depth + 1)


def _column(file: Path | None, array: Any) -> Column | None:
    """Return an array as a column, which opens the file again to read; None where it holds no numbers or pictures.

    What lies in other files is not read: links, virtual arrays, arrays with external storage.
    """
    library = h5py()
    if array.is_virtual or array.external or not array.shape:
        return None
    encoded = array.dtype.kind == "O" and library.check_vlen_dtype(array.dtype) == np.dtype(np.uint8)
    if array.dtype.kind in "SV" and len(array.shape) == 1 and array.shape[0] and array.dtype.itemsize <= ROOM:
        encoded = is_encoded(bytes(array[0])[:8])
    if not encoded and array.dtype.kind not in "biuf":
        return None
    if not encoded and array.dtype == np.uint8 and len(array.shape) == 2 and array.shape[0] and array.shape[1] > 64:
        encoded = is_encoded(array[0, :8].tobytes())  # pictures in rows of one length, filled up behind
    path = array.name
    limit = room_for(Path(array.file.filename))

    def read(first: int, stop: int) -> Any:
        with opened(file or Path(array.file.filename)) as handle:
            part = handle[path]
            size = math.prod((stop - first, *part.shape[1:])) * part.dtype.itemsize
            if size > limit:
                raise Damaged(f"'{path}' would take {size / 1e6:.0f} MB: more than the {limit / 1e6:.0f} MB allowed")
            return part[first:stop]

    return Column(tuple(array.shape), array.dtype.str[1:], read, "encoded" if encoded else "numbers")


def _rate(handle: Any) -> float:
    """Return the frames per second that an attribute states, or robomimic's for its simulator; 0 if there are none."""
    data = handle.get("data")
    for place in (handle, data):
        if place is not None and (rate := roles.rate(place.attrs.get("fps"))):
            return rate
    text = data.attrs.get("env_args") if data is not None else None
    if not isinstance(text, str | bytes):
        return 0.0
    try:
        return roles.rate(float(parse_json(text, "env_args")["env_kwargs"]["control_freq"]))
    except (Damaged, KeyError, TypeError, ValueError):
        return 0.0
