"""Files of records: ArrayRecord, which stores are made of, by number."""

import contextlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

from reverie.data import packer
from reverie.errors import Damaged, ReverieError, first_line

LARGE = 2**22  # bytes of records from which a process of its own packs them, which takes 20 ms to start
PIPE = 2**20  # bytes that wait for it


def array_record() -> Any:
    """Return the package array_record; ReverieError if it is not installed."""
    try:
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        raise ReverieError(
            "datasets in folders need the package array_record, which is not installed here (some systems have no "
            "build of it); use a dataset in one file instead: a path that ends in .npz."
        ) from None
    return array_record_module


class Packed:
    """Writes an ArrayRecord file; from ``LARGE`` bytes on a process of its own does the work.

    A thread would not do: array_record packs with Python's lock held, so that all other threads wait. Methods raise
    RuntimeError if the file cannot be written, possibly later than the call that failed.
    """

    def __init__(self, path: Path, options: str):
        self._about = str(path), options
        self._process: Any = None
        self._waiting: list[tuple[bytes, bytes]] | None = []  # messages to the process; None: the file is closed
        self._size = 0

    def write(self, record: bytes) -> None:
        """Add a record."""
        self._send(packer.message(packer.WRITE, record), len(record))

    def copy(self, path: Path, place: int, payload: int, old: bytes, new: bytes) -> None:
        """Add record ``place`` of another file, behind ``new`` in place of its header; ReverieError unless this is so.

        payload: bytes behind its header, which says what ``old`` does.
        """
        self._send(packer.message(packer.COPY, packer.copy_of(str(path), place, payload, old, new)), payload)

    def end(self) -> None:
        """Take no further records. If a process packs them, it completes the file while the caller goes on."""
        if self._process is not None and not self._process.stdin.closed:
            self._send(packer.message(packer.END), LARGE)
            with contextlib.suppress(BrokenPipeError):  # ``close`` reads what went wrong
                self._process.stdin.close()

    def close(self) -> None:
        """Complete the file, unless an error closed it, and wait until it is complete."""
        self.end()
        if self._process is not None:
            self._finish()
        elif self._waiting is not None:
            array_record()
            waiting, self._waiting = self._waiting, None
            try:
                file = packer.File(*self._about)
                for head, data in (*waiting, packer.message(packer.END)):
                    file.add(file.record(packer.kind_of(head), data))
            except packer.Unreadable as error:
                raise ReverieError(str(error)) from None

    def _send(self, message: tuple[bytes, bytes], size: int) -> None:
        assert self._waiting is not None
        self._waiting.append(message)
        self._size += size
        if self._size < LARGE:
            return
        if self._process is None:
            command = [sys.executable, "-P", packer.__file__, *self._about]  # -P: the folder has a module "codecs"
            # in a process group of its own, since Ctrl-C is for the process that draws the records
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
            with contextlib.suppress(ImportError, AttributeError, OSError):  # other systems have pipes of one size
                import fcntl

                fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, PIPE)
        waiting, self._waiting = self._waiting, []
        try:
            for part in itertools.chain.from_iterable(waiting):
                self._process.stdin.write(part)
        except BrokenPipeError:
            self._finish()

    def _finish(self) -> None:
        """Wait for the end of the process; raise what went wrong there."""
        process = self._process
        self._process = self._waiting = None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with process.stderr as said:
            text = said.read().decode(errors="replace").strip()
        if process.wait():
            text = text or f"the process that packs ended with status {process.returncode}"
            raise (ReverieError if process.returncode == packer.UNREADABLE else RuntimeError)(text)


def new_records(path: Path, packing: str) -> Packed:
    """Return a writer of an ArrayRecord file; packing: how each record is packed, such as "zstd:3" or "uncompressed".

    group_size:1, since a record is read alone: larger groups make random reads 4-10 times slower.
    """
    return Packed(path, f"group_size:1,{packing}")


class Records:
    """An ArrayRecord file, read by number; Damaged says what is wrong with it or with a record."""

    def __init__(self, path: Path):
        self._name, module = path.name, array_record()
        try:
            self._reader = module.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
            sound = self._reader.ok()
        except (RuntimeError, ValueError, OSError) as error:
            raise Damaged(f"'{path.name}' is not an ArrayRecord, or damaged ({first_line(error)})") from None
        if not sound:
            raise Damaged(f"'{path.name}' is not an ArrayRecord, or damaged")

    def __len__(self) -> int:
        return int(self._reader.num_records())

    def __getitem__(self, place: int) -> bytes:
        try:
            return self._reader.read([place])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise Damaged(f"record {place} of '{self._name}' cannot be read ({first_line(error)})") from None
