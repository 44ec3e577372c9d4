"""A world in one file: a zip of its weights-only export with a checksum manifest. Made here and unpacked here.

An archive may come from anybody. Its table of contents is checked before anything is unpacked: number, names, kinds and
sizes of its members. Unpacked bytes are counted, and compared with the manifest before the world gets its place.
Nothing in an archive is executed, now or when the world is loaded.
"""

import os
import re
import shutil
import stat
import zipfile
from pathlib import Path

from reverie import config
from reverie.bounded import check_members, opened_zip
from reverie.checksums import check_manifest, write_manifest
from reverie.errors import Damaged, ReverieError, first_line
from reverie.training.export import export
from reverie.training.folder import LOCK, owned
from reverie.training.record import RECORD, find_run, read_record

BYTES, UNPACKED, MEMBERS = 2**31, 2**32, 5000  # the most of an archive; a world of this package has about 40 members
KIND = "world archive"
# Plain names without hidden parts: nothing leaves the folder, and nothing is another system's device or stream.
NAME = re.compile(r"\w[\w-]{0,99}(\.[\w-]{1,40}){0,4}", re.ASCII)
DEEP, LONG = 8, 240  # parts and characters of a name
DATE = (1980, 1, 1, 0, 0, 0)  # of every member: nothing of this machine's clock
END, LOCATOR = b"PK\x05\x06", b"PK\x06\x07"  # marks of the table of contents' end, and of one of 64 bits
END_BYTES, ENTRY_BYTES = 22, 46 + LONG + 128


def is_archive(path: Path) -> bool:
    """Whether a path names an archive: by its ending, as for datasets in one .npz file."""
    return path.suffix == ".zip"


def write_archive(run: str | Path, out: Path, licence: str = "", bits: int = 32) -> Path:
    """Write the weights-only ``export`` of a run or a world to one zip file; ReverieError if ``out`` exists."""
    out = Path(os.path.abspath(out))
    if out.exists():
        raise ReverieError(f"'{out}' exists already: choose another name for the archive.")
    half = out.with_name(f".{out.name}.{os.getpid()}.part")
    with owned(half):
        try:
            folder = export(run, half / "world", licence, bits)
            write_manifest(folder, {"what": KIND})
            with zipfile.ZipFile(half / "zip", "w") as archive:
                for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                    info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), DATE)
                    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
                    archive.writestr(info, file.read_bytes(), compresslevel=9)
            os.replace(half / "zip", out)
        finally:
            shutil.rmtree(half / "world", ignore_errors=True)
            (half / "zip").unlink(missing_ok=True)
    return out


def unpack(path: Path, out: Path) -> Path:
    """Unpack an archive to the new folder ``out``; ``Damaged``, and nothing is left, unless all of it is as written."""
    half = out.with_name(f"{out.name}.unpacked")
    with owned(half):
        try:
            for left in half.iterdir():  # by a killed process
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            _check_end(path)
            with opened_zip(path, KIND) as archive:
                members = archive.infolist()
                check_members(path, members, UNPACKED, MEMBERS, KIND)
                for info in members:
                    _check_name(path, info)
                _check_places(path, [info.filename for info in members])
                for info in members:
                    _write_member(path, archive, info, half / info.filename)
            try:
                about = check_manifest(half)
            except Damaged as error:
                raise Damaged(f"'{path}' is damaged: {first_line(error)}.") from None
            if about is None or about.get("what") != KIND:
                raise Damaged(f"'{path}' is not a {KIND}: 'reverie export RUN OUT.zip' writes one.")
            find_run(half)
            for record in half.rglob(RECORD):
                _check_runs(path, record.parent, half)
            (half / LOCK).unlink()
            os.replace(half, out)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return out


def _check_end(path: Path) -> None:
    """Raise ``Damaged`` if the table of contents would take much memory; it is read before its entries are counted."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END_BYTES - 20))
        tail = file.read()
    end = tail[-END_BYTES:]
    if len(end) < END_BYTES or not end.startswith(END):
        raise Damaged(f"'{path}' is not a {KIND}, or its end is missing.")
    count, table = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if count > MEMBERS or table > MEMBERS * ENTRY_BYTES or tail[:-END_BYTES].startswith(LOCATOR):
        raise Damaged(f"'{path}' is not a {KIND}: its table of contents has {count} entries in {table} bytes.")


def _check_name(path: Path, info: zipfile.ZipInfo) -> None:
    """Raise ``Damaged`` unless a member is a plain file inside the folder."""
    parts = info.filename.split("/")
    plain = len(info.filename) <= LONG and len(parts) <= DEEP and all(NAME.fullmatch(part) for part in parts)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if not plain or info.orig_filename != info.filename:
        raise Damaged(f"'{path}' has a member of a name that no world has: {info.orig_filename[:80]!r}.")
    if kind not in (0, stat.S_IFREG):
        raise Damaged(f"'{path}' has a member that is not a plain file: {info.filename[:80]!r}.")


def _check_places(path: Path, names: list[str]) -> None:
    """Raise ``Damaged`` if two members would have one place, on a disk that ignores case."""
    lower = {name.lower() for name in names}
    inside = {name.lower() for name in names for deep in Path(name).parents if deep.as_posix().lower() in lower}
    if len(lower) < len(names) or inside:
        raise Damaged(f"'{path}' has two members in one place.")


def _write_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(info) as stream, out.open("xb") as file:
        while block := stream.read(2**20):
            written += len(block)
            file.write(block)
    if written != info.file_size:
        raise Damaged(f"'{path}' is damaged: {info.filename!r} ends too early.")


def _check_runs(path: Path, stage: Path, half: Path) -> None:
    """Raise ``Damaged`` if a run names data or another run that is not in the archive."""
    for name, value in config.flatten(read_record(stage).run).items():
        place = os.path.abspath(stage / value) if isinstance(value, str) and re.search(r"[/\\]", value) else str(half)
        if not Path(place).is_relative_to(half):
            raise Damaged(f"'{path}' names a place outside it: {name} of its {stage.name} is {value[:80]!r}.")
