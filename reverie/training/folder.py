"""Locks and transactions on the folder of a run or a world, so that no command leaves it worse than before.

A replacement (a longer run, a run with --fresh) is built in a folder ``.next`` inside, in the same layout. Until it is
complete, nothing else changes. It is then committed: ``.next`` is renamed ``.commit``, and its content is moved out. If
the process is killed in between, the next command finishes the move. If it is killed earlier, ``.next`` stays, and the
next try resumes from it.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from reverie.checksums import read_signed, write_json
from reverie.errors import ReverieError
from reverie.locks import lock
from reverie.training.sharding import by_first

LOCK, NEXT, COMMIT, OLD, PLAN = ".lock", ".next", ".commit", ".old", ".plan"
RECORD = "run.json"
# A small dataset of initial frames, for a world without its data, and the limit on the memory that it takes.
STARTS, STARTS_BYTES = "starts.npz", 2**28
# The files of a run and of a world. Anything else in their folders is the user's and is never touched. RECORD comes
# last, since a folder with it counts as a run and needs the other files.
RUN = (
    *("checkpoints", "report", "report.html", "cache", "stalls", "profile", "tensorboard", "wandb", "wandb-id"),
    *("metrics.jsonl", "timing.jsonl", "start.json", RECORD),
)
WORLD = (
    STARTS,
    "eval",
    "eval.json",
    "report.html",
    "actions.json",
    "atlas.html",
    "card",
    "card.md",
    "card.html",
    "world.json",
)
STAGES = ("tokenizer", "lam", "dynamics", "agent", "policy")  # of a world, in the order in which they are trained
FIXED = ("checkpoints", "cache")  # files that never change again, so a hard link replaces a copy
# Unfinished files and folders of killed processes.
LEFT = (".*.json.*", "metrics.[0-9]*", "timing.[0-9]*", ".*.part", ".trial-*", "cache/.*", OLD)
# Errors of a disk: it is full or read-only, access is forbidden, or a file is in the place of a folder.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}

_mine: set[Path] = set()  # folders that this process has locked


@contextmanager
def owned(*folders: Path) -> Iterator[None]:
    """Create and lock folders, and remove leftovers in them; ReverieError if another process holds one.

    Disk errors inside the block become a ReverieError. Folders that stay empty are removed at the end.
    """
    try:
        with ExitStack() as stack:
            for folder in folders:
                if folder not in _mine:
                    stack.enter_context(_locked(folder))
            yield
    except OSError as error:
        if error.errno not in FULL | CLOSED:
            raise
        raise ReverieError(f"cannot write to '{folders[0]}': {error.strerror}.") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    locks: list[IO] = []
    made = not folder.exists()

    def begin() -> None:
        locks.append(_lock(folder))
        settle(folder)
        for pattern in LEFT:
            for left in folder.glob(pattern):
                _remove(left)

    _mine.add(folder)
    try:
        by_first(begin)
        yield
    finally:
        _mine.discard(folder)
        for lock in locks:
            with suppress(OSError):  # Windows removes no open file
                (folder / LOCK).unlink()
            lock.close()
            with suppress(OSError):  # unless it is empty
                if made:
                    folder.rmdir()


def _lock(folder: Path) -> IO:
    """Return the lock of a folder; the system releases it however the process ends."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / LOCK).open("w")
        except FileNotFoundError:
            continue  # its last owner removed the folder
        try:
            lock(file)
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        except FileNotFoundError:
            pass  # its last owner removed the lock file, and another one has its name
        except OSError as error:
            file.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise ReverieError(f"another process is at work in '{folder}': wait, or choose another.") from None
        file.close()


def begin(folder: Path, keeps: Callable[[Path], bool]) -> Path:
    """Make and return the folder for a replacement, with the files that it ``keeps`` (by their path in the folder)."""
    new = folder / NEXT
    discard(folder)
    half = folder / f"{NEXT}.part"
    _remove(half)
    half.mkdir()
    for item in _items(folder):
        if keeps(item):
            _copy(folder / item, half / item, item, keeps)
    if (folder / "data").exists():
        link(half / "data", Path("..") / "data")
    os.replace(half, new)
    return new


def link(place: Path, target: Path) -> None:
    """Make ``place`` a link to ``target``, a path relative to its folder; a copy of a file where no link can be made.

    Windows makes links for administrators only.
    """
    there = place.parent / target
    try:
        place.symlink_to(target, target_is_directory=there.is_dir())
    except OSError:
        if not there.is_file():
            raise
        shutil.copy2(there, place)


def named(folder: Path) -> Path:
    """Return the path by which a run is known: of a replacement, the path of the folder that it replaces."""
    return Path(*(part for part in folder.parts if part != NEXT))


def discard(folder: Path) -> None:
    """Delete an unfinished replacement."""
    _remove(folder / NEXT)


def commit(folder: Path) -> None:
    """Replace the content of ``out`` by the complete replacement."""
    new = folder / NEXT
    moved = [item.as_posix() for item in _items(new)]
    removed = [item.as_posix() for item in _items(folder) if item.as_posix() not in moved]
    _remove(folder / COMMIT)
    write_json(new / PLAN, {"moved": moved, "removed": removed})
    os.replace(new, folder / COMMIT)
    settle(folder)


def settle(folder: Path) -> None:
    """Finish an interrupted ``commit``. The folder must be ``owned``."""
    done = folder / COMMIT
    if not done.is_dir():
        return
    plan = read_signed(done / PLAN, required=True) if (done / PLAN).is_file() else {"moved": [], "removed": []}
    for name in plan["moved"]:
        if os.path.lexists(done / name):
            _set_aside(folder, name)
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(done / name, folder / name)
    for name in plan["removed"]:
        _set_aside(folder, name)
    _remove(done)
    _remove(folder / OLD)


def settled(path: Path) -> None:
    """Finish an interrupted ``commit`` in a folder, or in its parent, before something is read there."""
    for folder in (path, path.parent):
        for _ in range(100):
            if not (folder / COMMIT).is_dir() or folder in _mine:
                break
            with suppress(ReverieError), owned(folder):
                break
            time.sleep(0.05)


def _items(folder: Path) -> list[Path]:
    """Return the files of a run or world, by their path in its folder, in the order in which they are replaced."""
    stages = sorted(path.parent.name for path in folder.glob(f"[!.]*/{RECORD}"))
    names = [Path(stage, name) for stage in stages for name in RUN] + [Path(name) for name in (*WORLD, *RUN)]
    return [name for name in names if os.path.lexists(folder / name)]


def _copy(source: Path, target: Path, item: Path, keeps: Callable[[Path], bool]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir()
        for inside in source.iterdir():
            if keeps(item / inside.name):
                _copy(inside, target / inside.name, item / inside.name, keeps)
        return
    if set(FIXED) & set(item.parts):
        with suppress(OSError):  # a disk without hard links
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _set_aside(folder: Path, name: str) -> None:
    if os.path.lexists(folder / name):
        gone = folder / OLD / name
        _remove(gone)
        gone.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, gone)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
