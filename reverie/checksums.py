"""Checksums of all files that Reverie writes and reads again: inside JSON files, and in manifests of folders.

A checksum manifest lies in the folder it describes. It lists every file with its size and CRC-32, and states what the
folder is (for a checkpoint: its step and its items). So missing, added or misplaced files are detected like a flipped
bit. Checksums detect accidents; they are no signature against an attacker.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reverie.bounded import JSON_BYTES, read_json
from reverie.errors import Damaged

CHECKSUM = "checksum"  # the key of a JSON object's checksum of everything else in it
MANIFEST = "seal.json"  # sizes and checksums of a folder's files
FORMAT = 2  # of the manifest; in the first it was nothing but {name: [size, checksum]}
LATE = ("commit_success.txt", "_CHECKPOINT_METADATA")  # orbax writes them last; nothing that is loaded is in them


def signed(data: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of its content."""
    return {**data, CHECKSUM: _of(data)}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(signed(data), indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def read_signed(path: Path, *, required: bool = False, limit: int = JSON_BYTES) -> dict[str, Any]:
    """Return a JSON object without its checksum; ``Damaged`` unless that is right.

    Files of earlier versions have none; ``required``: this one must.
    """
    return checked(read_json(path, limit), f"'{path}'", required=required)


def checked(data: Any, what: str, *, required: bool = False) -> dict[str, Any]:
    """Return a JSON object without its checksum; ``Damaged`` if that is wrong, or is missing and ``required``."""
    if not isinstance(data, dict):
        raise Damaged(f"{what} is damaged: it is not a JSON object.")
    rest = {key: value for key, value in data.items() if key != CHECKSUM}
    if (CHECKSUM in data or required) and data.get(CHECKSUM) != _of(rest):
        raise Damaged(f"{what} is damaged: its checksum {'differs' if CHECKSUM in data else 'is missing'}.")
    return rest


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Note size and checksum of every file in ``folder``, and what the folder is: ``about``, plain JSON data."""
    files = {name: [file.stat().st_size, crc(file)] for name, file in _files(folder).items() if file.name not in LATE}
    write_json(folder / MANIFEST, {"format": FORMAT, **about, "files": files})


def check_manifest(folder: Path, whole: Callable[[str], bool] = lambda name: True) -> dict[str, Any] | None:
    """Return what the manifest of ``folder`` says about it, None if it has none; ``Damaged`` unless it is so.

    Every file must be there with its size, and no other. Those of which ``whole(name)`` is true are read and compared
    with their checksums. Of a manifest of format 1 the result is ``{"files": ...}`` alone.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    data = read_json(path)
    if isinstance(data, dict) and "format" in data:
        data = checked(data, f"'{path}'", required=True)
        strict = True
    else:
        data, strict = {"files": data}, False
    noted, found = data.get("files"), _files(folder)
    if not isinstance(noted, dict) or not all(_is_entry(entry) for entry in noted.values()):
        raise Damaged(f"'{path}' is not a checksum manifest.")
    for name, (size, checksum) in noted.items():
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name].stat().st_size != size or (whole(name) and crc(found[name]) != checksum):
            raise Damaged(f"{name} is not what was written")
    extra = sorted(name for name, file in found.items() if name not in noted and file.name not in LATE)
    if strict and extra:
        raise Damaged(f"{extra[0]} does not belong there")
    return data


def crc(file: Path) -> int:
    """Return the CRC-32 of a file's content."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            value = zlib.crc32(block, value)
    return value


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _of(data: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(data))  # as it is read again: keys are texts
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(number, int) for number in entry)


def _files(folder: Path) -> dict[str, Path]:
    """Every file in a folder by its name there, except the manifest and hidden ones, which systems leave behind."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file for name, file in files.items() if file.name != MANIFEST and "/." not in f"/{name}"}
