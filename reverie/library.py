"""Worlds by name, path or address: those that ship with Reverie, folders, archives, and archives on the web.

What comes out of an archive lies in the user's cache, named after the archive's content or address, and is not unpacked
or fetched twice.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reverie.bounded import number
from reverie.cache import cache
from reverie.catalogue import WORLDS, shipped
from reverie.checksums import read_signed, sha256
from reverie.download import download, is_address
from reverie.errors import Damaged, ReverieError, did_you_mean
from reverie.training import checkpoint
from reverie.training.archive import BYTES, is_archive, unpack
from reverie.training.folder import owned
from reverie.training.record import existing, find_run, read_record

CACHED = "worlds"
FIRST = "platformer"  # the world of `reverie play`


def load(world: str | Path, *, step: int | None = None) -> Any:
    """Return a trained model by the name of a world that ships, by path, or by https address.

    ``world``: a run's or a world's folder, or an archive of one; a folder wins over a name. An archive's names, sizes
    and checksums are verified and nothing in it is executed (``training.archive``). ``step``: of the checkpoint; the
    newest by default. Raises ReverieError.
    """
    return checkpoint.load(place(world), step=step)


def place(world: str | Path) -> Path:
    """Return the folder of a world given by name, path or address; an archive is unpacked to the user's cache first.

    Every command that takes a world begins here. Raises ReverieError if nothing is there.
    """
    if is_address(str(world)):
        return _fetched(str(world))
    path = Path(world)
    if path.is_file() and is_archive(path):
        return _unpacked(path)
    if not path.exists() and path.name == str(world):
        known = shipped()
        if path.name in known:
            return known[path.name]
        if (hint := did_you_mean(path.name, known)).startswith(" Did"):
            raise ReverieError(f"there is no folder and no world '{world}'.{hint}")
    existing(path)
    return path


def is_ours(folder: Path) -> bool:
    """Whether a world's folder is not the user's to write to: it ships with the package, or lies in the cache."""
    return folder.parent == WORLDS or cache(CACHED) in folder.parents


def results(folder: Path) -> Path | None:
    """Return where what is found out about a world goes, None for its own folder: ours stays as it is."""
    return Path("runs") / folder.name if is_ours(folder) else None


def described() -> Iterator[tuple[str, str]]:
    """Yield the name of each world that ships, and in one line its frames, size, licence, data and numbers."""
    for name, folder in shipped().items():
        record = read_record(find_run(folder))
        noted, numbers = read_signed(folder / "world.json"), read_signed(folder / "eval.json")
        height, width, _ = record.spec.frame
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        curve, gain, rate = numbers.get("psnr"), number(numbers.get("delta_psnr_4")), numbers.get("frames_per_second")
        facts = [
            f"{width} x {height} pixels",
            f"{size / 1e6:.1f} MB",
            f"licence: {noted.get('licence') or 'not recorded'}",
            f"data: {record.spec.source}",
            *([f"PSNR {curve[0]:.1f} .. {curve[-1]:.1f} dB over {len(curve)} frames"] if curve else []),
            *([f"delta-PSNR {gain:.1f} dB"] if gain is not None else []),
            *([f"{rate:.0f} frames/s"] if rate else []),
        ]
        yield name, "; ".join(facts)


def _unpacked(archive: Path) -> Path:
    return _kept(cache(CACHED) / f"{_named(archive.stem)}-{sha256(archive)[:16]}", lambda out: unpack(archive, out))


def _fetched(address: str) -> Path:
    stem = Path(urlsplit(address).path).stem
    kept = cache(CACHED) / f"{_named(stem)}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"

    def make(out: Path) -> None:
        archive = download(address, out.with_suffix(".zip"), BYTES)
        try:
            unpack(archive, out)
        except Damaged as error:
            raise ReverieError(f"what is at '{address}' is not a world that can be used: {error}") from None
        finally:
            archive.unlink(missing_ok=True)

    return _kept(kept, make)


def _kept(kept: Path, make: Any) -> Path:
    """Return the folder ``kept/world``; it is made once, by one process at a time."""
    world = kept / _named(kept.name.rpartition("-")[0])
    if not world.is_dir():
        with owned(kept):
            if not world.is_dir():
                make(world)
    return world


def _named(text: str) -> str:
    """Return a name for a folder, of a text that may hold anything."""
    return re.sub(r"[^\w-]+", "-", text, flags=re.ASCII).strip("-")[:60] or "world"
