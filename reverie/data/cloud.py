"""Stores in the cloud: copied into the cache to be read, made here and then uploaded to be written.

ArrayRecord reads local files only. What is read is named by its manifest, and each file has the size and checksum that
the manifest says. A store is uploaded with its manifest last, so no half of one is ever read. Needs fsspec, and the
package of the service: gcsfs, s3fs or adlfs.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reverie.bounded import parse_json
from reverie.cache import cache
from reverie.checksums import checked, sha256
from reverie.data.filling import FORMAT, MANIFEST, file_name
from reverie.data.store import MANIFEST_BYTES
from reverie.errors import Damaged, ReverieError, first_line

PROTOCOLS = ("gs", "gcs", "s3", "abfs", "az", "memory", "file")
ADDRESS = re.compile(rf"({'|'.join(PROTOCOLS)}):/+(.+)")  # a Path has one slash where an address has two
BLOCK = 2**22
EXTRA = "pip install 'reverie-worlds[cloud]'"


def is_cloud(path: str | Path) -> bool:
    """Whether a path is the address of something in the cloud."""
    return ADDRESS.fullmatch(str(path)) is not None


def local_copy(path: str | Path) -> Path:
    """Return a local copy of a store in the cloud, or the path itself if it is on this machine.

    The copy lies in the cache, under the checksum of its manifest: complete files are not fetched again.
    """
    if not is_cloud(path):
        return Path(path)
    system, root, address = _place(path)
    raw = _asked(address, lambda: system.cat_file(f"{root}/{MANIFEST}", start=0, end=MANIFEST_BYTES))
    wanted = _files(raw, address)
    folder = cache("stores") / hashlib.sha256(raw).hexdigest()[:16] / root.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    missing = {name: size for name, (size, _) in wanted.items() if not _has(folder / name, size)}
    if missing:
        size = sum(missing.values()) / 1e6
        print(f"{address}: fetching {len(missing)} files, {size:.1f} MB, to {folder}", file=sys.stderr)
    for name, size in missing.items():
        _fetched(system, f"{root}/{name}", folder / name, size, wanted[name][1], address)
    (folder / MANIFEST).write_bytes(raw)
    return folder


def written(path: str | Path, work: str, write: Callable[[Path], Any]) -> Any:
    """Call ``write`` with a path on this machine; upload what it wrote if ``path`` is in the cloud. Return its result.

    work: names what is written, so that a killed command resumes from its own leftovers, here or in the upload.
    """
    if not is_cloud(path):
        return write(Path(path))
    system, root, address = _place(path)
    if _asked(address, lambda: system.exists(f"{root}/{MANIFEST}")):
        raise ReverieError(f"'{address}' exists already; choose another name, or remove it first.")
    folder = cache("outgoing") / hashlib.sha256(f"{address} {work}".encode()).hexdigest()[:16]
    local = folder / root.rpartition("/")[2]
    found = None if (local / MANIFEST).is_file() else write(local)
    if not (local / MANIFEST).is_file():
        raise ReverieError(f"'{address}': only stores in folders are uploaded, no mixtures and no .npz files.")
    names = sorted((file.name for file in local.iterdir()), key=lambda name: (name == MANIFEST, name))
    _asked(address, lambda: system.makedirs(root, exist_ok=True))
    for name in names:
        print(f"{address}: uploading {name}", file=sys.stderr)
        _asked(address, lambda name=name: system.put_file(str(local / name), f"{root}/{name}"))
    shutil.rmtree(folder)
    return found.replace(str(local), address) if isinstance(found, str) else found


def address_of(path: str | Path) -> str:
    """Return a path, or an address with both slashes."""
    found = ADDRESS.fullmatch(str(path))
    if not found:
        return str(path)
    rooted = found[1] in ("memory", "file")  # these have no bucket
    return f"{found[1]}://{'/' if rooted else ''}{found[2]}".rstrip("/")


def refuse_cloud(path: str | Path, what: str) -> None:
    """Raise ReverieError if a path is in the cloud."""
    if is_cloud(path):
        raise ReverieError(
            f"'{address_of(path)}' is in the cloud, where nothing is {what}; copy the store to this machine first."
        )


def _place(path: str | Path) -> tuple[Any, str, str]:
    """Return the file system of an address, the path there, and the address as people write it."""
    address = address_of(path)
    try:
        import fsspec

        system = fsspec.filesystem(address.partition(":")[0])
    except (ImportError, ValueError) as error:
        raise ReverieError(f"'{address}' needs a package that is missing ({first_line(error)}); {EXTRA}") from None
    return system, system._strip_protocol(address), address


def _asked(address: str, ask: Callable[[], Any]) -> Any:
    """Return the service's answer; any error of its packages becomes one line."""
    try:
        return ask()
    except FileNotFoundError:
        raise ReverieError(f"there is no dataset at '{address}', or you may not read it.") from None
    except Exception as error:  # each service has errors of its own
        raise ReverieError(f"'{address}' cannot be used ({type(error).__name__}: {first_line(error)}).") from None


def _files(raw: bytes, address: str) -> dict[str, tuple[int, str]]:
    """Return (bytes, SHA-256) of each file that a manifest names; ReverieError if it is not a manifest."""
    try:
        manifest = checked(parse_json(raw, f"'{address}/{MANIFEST}'"), "its content")
        if manifest["format"] != FORMAT or not all(split.isidentifier() for split in manifest["splits"]):
            raise Damaged("it is of another program")
        return {
            file_name(split, index): (int(file["bytes"]), str(file["sha256"]))
            for split, part in manifest["splits"].items()
            for index, file in enumerate(part["files"])
        }
    except (Damaged, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ReverieError(f"the manifest of '{address}' is damaged ({first_line(error)}).") from None


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetched(system: Any, source: str, out: Path, size: int, checksum: str, address: str) -> None:
    """Fetch one file of a known size and checksum; it gets its name when it is complete."""
    part = out.with_name(f"{out.name}.{os.getpid()}")

    def copy() -> None:
        left = size
        with system.open(source, "rb") as file, part.open("wb") as copied:
            while left and (block := file.read(min(BLOCK, left))):
                copied.write(block)
                left -= len(block)

    _asked(address, copy)
    if not _has(part, size) or sha256(part) != checksum:
        part.unlink()
        raise ReverieError(f"'{address}': {out.name} is damaged: its size or checksum differs.")
    part.replace(out)
