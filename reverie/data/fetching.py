"""OpenAI's Minecraft recordings (VPT) from the web: an index names videos, each with a file of actions beside it.

Several files are fetched at a time. Each is checked when it is complete: its length is the one that the server claimed,
a video's boxes end where the file does, and every line of actions is JSON. Complete files are not fetched again, and an
interrupted one is continued (``reverie.download``).
"""

import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from reverie import bounded
from reverie.download import Refused, checked_address, download, is_address
from reverie.errors import Damaged, ReverieError, first_line

VIDEO_BYTES, TABLE_BYTES, INDEX_BYTES = 2**31, 2**28, 2**28  # the most that a file may have
ATTEMPTS, PAUSE = 4, 1.0  # of a file; seconds before the second attempt, twice as many before each further one
MOST_WORKERS = 16
GONE = (401, 403, 404, 410)  # answers that do not change when the question is repeated


def fetch(index: str, folder: Path, *, count: int = 0, first: int = 0, workers: int = 4) -> str:
    """Fetch the recordings that an index (a file or its address) names into ``folder``; return a line about them.

    count: at most this many, from the ``first`` on; 0: all. Recordings that cannot be fetched are named on stderr, and
    the others are kept. ReverieError if none could be fetched.
    """
    if count < 0 or first < 0 or not 1 <= workers <= MOST_WORKERS:
        raise ReverieError(f"fetching needs count and first >= 0, and 1 to {MOST_WORKERS} workers.")
    folder.mkdir(parents=True, exist_ok=True)
    base, names = _index(index)
    names = names[first : first + count] if count else names[first:]
    done, pool = 0, ThreadPoolExecutor(workers)
    try:
        for name, problem in zip(names, pool.map(partial(_recording, base, folder), names), strict=True):
            done += not problem
            if problem:
                print(f"{name}: {problem}", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    if not done:
        raise ReverieError(f"none of {len(names)} recordings of '{index}' could be fetched.")
    return f"{folder}: {done} of {len(names)} recordings are there"


def _index(index: str) -> tuple[str, list[str]]:
    """Return where an index's files lie, and the names of its videos; ReverieError if it is not an index."""
    if is_address(index):
        with tempfile.TemporaryDirectory() as place:
            found = bounded.read_json(download(index, Path(place) / "index.json", INDEX_BYTES), INDEX_BYTES)
    else:
        found = bounded.read_json(Path(index), INDEX_BYTES)
    if not isinstance(found, dict) or not isinstance(found.get("basedir"), str):
        raise ReverieError(f"'{index}' is not an index of VPT: it needs 'basedir' and 'relpaths'.")
    names = found.get("relpaths")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ReverieError(f"'{index}' is not an index of VPT: its 'relpaths' are not a list of names.")
    for name in names:
        if PurePosixPath(name).is_absolute() or {"..", "."} & set(name.split("/")) or not name.endswith(".mp4"):
            raise ReverieError(f"'{index}' names '{name[:100]}', which is not a video inside its folder.")
    return checked_address(found["basedir"].rstrip("/") + "/"), names


def _recording(base: str, folder: Path, name: str) -> str:
    """Fetch a video and its actions; return what is wrong, or ""."""
    table = f"{name.removesuffix('.mp4')}.jsonl"  # first: some videos have none, and are of no use without
    for file, limit, check in ((table, TABLE_BYTES, _check_table), (name, VIDEO_BYTES, _check_video)):
        if problem := _file(base + file, folder / file, limit, check):
            return problem
    return ""


def _file(address: str, out: Path, limit: int, check: Callable[[Path], None]) -> str:
    """Fetch one file unless it is there; return what is wrong, or ""."""
    if out.is_file():
        return ""
    out.parent.mkdir(parents=True, exist_ok=True)
    new, problem = out.with_name(f"{out.name}.new"), ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            download(address, new, limit)
            check(new)
            new.replace(out)
            return ""
        except Refused as error:
            problem = first_line(error)
            if error.code in GONE:
                break
        except ReverieError as error:
            new.unlink(missing_ok=True)
            problem = first_line(error)
    return problem


def _check_video(path: Path) -> None:
    """Raise Damaged unless the boxes of an mp4 end where the file does."""
    size, at = path.stat().st_size, 0
    kinds = set()
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length, kind = struct.unpack(">I4s", head[:8]) if len(head) >= 8 else (0, b"")
            length = struct.unpack(">Q", head[8:])[0] if length == 1 and len(head) == 16 else length
            if length < 8:
                raise Damaged("the video is damaged")
            kinds.add(kind)
            at += length
    if at != size or not {b"moov", b"mdat"} <= kinds:
        raise Damaged("the video is not complete")


def _check_table(path: Path) -> None:
    """Raise Damaged unless every line of actions is a JSON object."""
    for number, line in enumerate(_lines(path), start=1):
        try:
            sound = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            sound = False
        if not sound:
            raise Damaged(f"line {number} of the actions is damaged")


def _lines(path: Path) -> Iterator[str]:
    found = bounded.read_lines(path, TABLE_BYTES, errors="replace")
    if not found:
        raise Damaged("the actions are empty")
    yield from found
