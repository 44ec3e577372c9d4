"""The files of a source: which lie in a folder, in which order, and what is in each."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROW = re.compile(r"(\d+)")
One = TypeVar("One")


def inside(path: Path) -> list[Path]:
    """Return all files below a folder, also through links, in the order of their names; nothing hidden, none twice."""
    found, been = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and real not in been)
        if real not in been:
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        been.add(real)
    return sorted(file for file in found if file.is_file())


def at(path: Path) -> list[Path]:
    """Return the files at ``path``: those below a folder, or the one file it is."""
    return inside(path) if path.is_dir() else [path] if path.is_file() else []


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts names as people do: frame 2 before frame 10."""
    parts = ROW.split(path.as_posix())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def ending(files: Iterable[Path], endings: Sequence[str]) -> list[Path]:
    """Return the files whose names end in one of ``endings``, in any case."""
    return [file for file in files if file.name.lower().endswith(tuple(endings))]


def grouped(each: Iterable[One], key: Callable[[One], Any]) -> dict[Any, list[One]]:
    """Return files, or things about them, grouped by their ``key``, in the order they came in."""
    found: dict[Any, list[One]] = {}
    for one in each:
        found.setdefault(key(one), []).append(one)
    return found


def name_of(path: Path, root: Path) -> str:
    """Return a file's path below ``root``, or its name if it is ``root`` itself."""
    return path.name if path == root else path.relative_to(root).as_posix()


def fingerprint(path: Path) -> str:
    """Return a hash of a file's size, its first and its last megabyte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(f"{size}".encode() + file.read(2**20))
        file.seek(max(0, size - 2**20))
        digest.update(file.read(2**20))
    return digest.hexdigest()[:16]


def stamps(files: Iterable[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Return (path, time of the last change, bytes) of files, by which a change is noticed."""
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path in files for stat in [path.stat()])
