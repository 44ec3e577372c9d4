"""Reading JSON and arrays from files that anybody may have written: limits are checked before memory is allocated.

No pickle, no evaluation of text. What is wrong with the content of a file raises ``Damaged``, in one line. What the
system refuses (no such file, a failing disk) stays an OSError: it says nothing about the content.
"""

import contextlib
import errno
import io
import json
import math
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from reverie.errors import Damaged

JSON_BYTES, DEPTH = 2**24, 64  # larger or deeper than any JSON file of this package, except the manifest of a store
ARRAYS = 100  # in one .npz
ROOM, RATIO = 2**28, 300  # an .npz may unpack to so many bytes, or to so many times its size: deflate reaches 1032
HEADER = 4096  # bytes; numpy writes 118
MAGIC = b"\x93NUMPY"
_ENTRY = r"""['"](descr|fortran_order|shape)['"]\s*:\s*('[^']*'|"[^"]*"|True|False|\([\d,\s]*\))"""
_HEADER = re.compile(rf"\{{\s*{_ENTRY}\s*,\s*{_ENTRY}\s*,\s*{_ENTRY}[,\s]*\}}\s*")
_KIND = re.compile(r"[<>|=]?(\?|[biufc]\d{1,2}|[SU]\d{1,7})")  # no objects, no records


def parse_json(text: str | bytes, what: str, *, finite: bool = True) -> Any:
    """Return the data of a JSON text; ``what`` names it in the error. ``finite``: NaN and Infinity are refused."""
    number = _finite if finite else float
    try:
        data = json.loads(text, parse_float=number, parse_constant=number)
    except RecursionError:
        raise Damaged(f"{what} is nested too deeply.") from None
    except ValueError as error:  # no JSON, or bytes that are not text
        raise Damaged(f"{what} is not JSON ({error}).") from None
    level = [data]
    for _ in range(DEPTH):
        texts = [item for item in level if isinstance(item, str)]
        texts += [key for item in level if isinstance(item, dict) for key in item]
        if any("\ud800" <= character <= "\udfff" for text in texts if not text.isascii() for character in text):
            raise Damaged(f"{what} holds half a character, which cannot be printed.")
        level = [part for item in level if isinstance(item, list | dict) for part in _parts(item)]
        if not level:
            return data
    raise Damaged(f"{what} is nested too deeply.")


def read_lines(path: Path, limit: int, errors: str = "strict") -> list[str]:
    """Return the lines of a text file that are not empty, at most ``limit`` bytes of them; Damaged if it is not text.

    Only a line feed ends a line: a JSON text may hold the other characters at which ``str.splitlines`` ends one.
    """
    try:
        return [line for line in read_bytes(path, limit).decode("utf-8-sig", errors).split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise Damaged(f"'{path}' is not text ({error}).") from None


def read_json_lines(path: Path, limit: int) -> list[Any]:
    """Return the values of a file with one JSON value a line, at most ``limit`` bytes of them; Damaged as above."""
    return [parse_json(line, path.name) for line in read_lines(path, limit)]


def _finite(text: str) -> float:
    """Return a number; NaN and Infinity are not JSON, and mean nothing in any file of this package."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def number(value: Any) -> float | None:
    """Return a JSON value as a float; None unless it is a finite number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if good else None


def _parts(item: list | dict) -> Any:
    return item.values() if isinstance(item, dict) else item


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Return the data of a JSON file of at most ``limit`` bytes."""
    return parse_json(read_bytes(path, limit), f"'{path}'")


def room_for(path: Path) -> int:
    """Return the most bytes that a compressed file may unpack to: 256 MiB, or 300 times its size if more."""
    return max(ROOM, RATIO * path.stat().st_size)


def read_bytes(path: Path, limit: int) -> bytes:
    """Return what is in a file of at most ``limit`` bytes."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Damaged(f"'{path}' is larger than {limit} bytes.")
    return data


def open_npy(path: Path) -> tuple[io.BufferedReader, np.dtype, tuple[int, ...]]:
    """Return an .npy file at the first byte of its array, whose rows follow each other: (file, type, shape)."""
    file = path.open("rb")
    try:
        kind, shape, order = _header(file, path.stat().st_size, f"'{path}'")
        if order != "C" or not shape:
            raise Damaged(f"'{path}' does not hold rows that follow each other.")
    except BaseException:
        file.close()
        raise
    return file, kind, shape


def map_npy(path: Path) -> np.ndarray:
    """Return the array of an .npy file, memory-mapped and read-only; the file holds exactly that array."""
    with path.open("rb") as file:
        size = path.stat().st_size
        kind, shape, order = _header(file, size, f"'{path}'")
        at = file.tell()
    if not math.prod(shape):
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", at, shape, order)


def read_npy(data: bytes, what: str) -> np.ndarray:
    """Return the array that the bytes of an .npy file hold; ``what`` names it in the error."""
    file = io.BytesIO(data)
    kind, shape, order = _header(file, len(data), what)
    return np.frombuffer(data, kind, math.prod(shape), file.tell()).reshape(shape, order=order)


def read_npz(path: Path, limit: int | None = None, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; only those of ``names`` where given.

    Together they may take ``limit`` bytes; by default 256 MiB, or 300 times the file's size where that is more.
    """
    with _archive(path, limit, names) as (archive, members):
        return {name: _member(path, archive, info) for name, info in members.items()}


def npz_headers(path: Path) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...]]], list[str]]:
    """Return (type, shape) of the arrays of an .npz file by name, and the names of other members."""
    found, others = {}, []
    with _archive(path, None, None) as (archive, members):
        for name, info in members.items():
            try:
                with archive.open(info) as stream:
                    found[name] = _header(stream, info.file_size, f"'{path}' ({name[:80]!r})")[:2]
            except Damaged:
                others.append(name)
    return found, others


@contextlib.contextmanager
def _archive(
    path: Path, limit: int | None, names: Collection[str] | None
) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open an .npz file and check what its table of contents claims of the members called ``names``."""
    with opened_zip(path, ".npz file") as archive:
        named = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        members = {name: info for name, info in named.items() if names is None or name in names}
        if limit is None:
            limit = room_for(path)
        check_members(path, list(members.values()) if names is not None else archive.infolist(), limit)
        yield archive, members


@contextlib.contextmanager
def opened_zip(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip file that should be a ``what``; inside, every error that damage can cause is ``Damaged``."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, NotImplementedError) as error:
        raise Damaged(f"'{path}' is not a {what}, or it is damaged ({str(error)[:200]}).") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Damaged(f"'{path}' is damaged: its table of contents points outside it.") from None


def check_members(
    path: Path, members: list[zipfile.ZipInfo], limit: int, most: int = ARRAYS, what: str = ".npz file"
) -> None:
    """Raise ``Damaged`` unless these are at most ``most`` members that would unpack to ``limit`` bytes in all."""
    if len(members) > most:
        raise Damaged(f"'{path}' is not a {what} of ours: it has {len(members)} members, more than {most}.")
    if len({info.filename for info in members}) < len(members):
        raise Damaged(f"'{path}' is not a {what}: two of its members have the same name.")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members):
        raise Damaged(f"'{path}' is compressed in a way that no {what} is.")
    if any(info.flag_bits & 1 for info in members):
        raise Damaged(f"'{path}' is encrypted.")
    if (total := sum(info.file_size for info in members)) > limit:
        raise Damaged(f"'{path}' would unpack to {total / 1e6:.0f} MB: more than the {limit / 1e6:.0f} MB allowed.")


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    what = f"'{path}' ({info.filename[:80]!r})"
    with archive.open(info) as stream:
        kind, shape, order = _header(stream, info.file_size, what)
        data = bytearray()
        while block := stream.read(2**22):  # in pieces: memory is taken for what is there, not for what is claimed
            data += block
    if len(data) != math.prod(shape) * kind.itemsize:
        raise Damaged(f"{what} ends too early.")
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _header(file: IO[bytes], size: int, what: str) -> tuple[np.dtype, tuple[int, ...], Any]:
    """Return (type, shape, order) of an .npy file of ``size`` bytes that holds exactly the array it claims to."""
    head = file.read(8)
    major = head[6] if len(head) == 8 and head[:6] == MAGIC else 0
    if major not in (1, 2, 3):
        raise Damaged(f"{what} is no .npy file.")
    length = int.from_bytes(file.read(2 if major == 1 else 4), "little")
    text = file.read(length).decode("latin-1") if length <= HEADER else ""
    match = _HEADER.fullmatch(text)
    fields = dict(zip(match.groups()[::2], match.groups()[1::2], strict=True)) if match else {}
    kind, order, shape = (fields.get(name, "") for name in ("descr", "fortran_order", "shape"))
    if not _KIND.fullmatch(kind[1:-1]) or order not in ("True", "False") or not shape.startswith("("):
        raise Damaged(f"{what} has a header that numpy does not write for arrays of numbers.")
    lengths = shape[1:-1].replace(",", " ").split()
    if len(lengths) > 32 or any(len(text) > 18 for text in lengths):
        raise Damaged(f"{what} claims the shape {shape[:80]}.")
    try:
        dtype = np.dtype(kind[1:-1])
    except TypeError:
        raise Damaged(f"{what} claims numbers of type {kind}.") from None
    sizes = tuple(int(text) for text in lengths)
    claimed, there = math.prod(sizes) * dtype.itemsize, size - file.tell()
    if claimed != there:
        raise Damaged(f"{what} claims {claimed} bytes of numbers and has {there}.")
    return dtype, sizes, "F" if order == "True" else "C"
