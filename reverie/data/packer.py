"""Writing one ArrayRecord file, in this process or as the program of another; ``records.Packed`` chooses.

The program reads from its input what ``message`` returns. It imports nothing of Reverie, so that it starts in 20 ms.
"""

import struct
import sys
import threading
from queue import Queue
from typing import Any, BinaryIO

WRITE, COPY, END = b"W", b"C", b"E"
MESSAGE, SIZES = struct.Struct("<cQ"), struct.Struct("<QQII")
AHEAD = 4  # records that are read before they are packed
FAILED, UNREADABLE = 1, 2  # exit statuses: the file cannot be written, a record to copy cannot be read


class Unreadable(Exception):
    """A record that was to be copied is not what it should be."""


class File:
    """An ArrayRecord file that is written."""

    def __init__(self, path: str, options: str):
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        self._module, self._read = array_record_module, ("", None)
        self._writer = array_record_module.ArrayRecordWriter(path, options)

    def record(self, kind: bytes, data: bytes) -> bytes:
        """Return the record of a message, b"" at the end; other threads run while another file is read."""
        return data if kind != COPY else self._copied(data)

    def add(self, record: bytes) -> None:
        """Write a record, or complete the file; array_record holds Python's lock meanwhile."""
        if record:
            self._writer.write(record)
        else:
            self._writer.close()

    def _copied(self, data: bytes) -> bytes:
        place, payload, path_size, old_size = SIZES.unpack_from(data)
        at = SIZES.size + path_size
        name, old, new = data[SIZES.size : at].decode(), data[at : at + old_size], data[at + old_size :]
        try:
            if self._read[0] != name:
                options = "readahead_buffer_size:0,max_parallelism:0"
                self._read = name, self._module.ArrayRecordReader(name, options)
            record = self._read[1].read([place])[0]  # pyright: ignore[reportOptionalMemberAccess]
        except (RuntimeError, IndexError, ValueError) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Unreadable(f"record {place} of '{name}' cannot be read ({problem[:200]}).") from None
        head = len(record) - payload
        if head < 0 or not _same(record[:head], old):
            raise Unreadable(f"record {place} of '{name}' disagrees with the manifest; fetch or write it again.")
        return b"".join([new, memoryview(record)[head:]])


def message(kind: bytes, data: bytes = b"") -> tuple[bytes, bytes]:
    """Return a message in two parts: WRITE with a record, COPY with what ``copy_of`` returns, or END."""
    return MESSAGE.pack(kind, len(data)), data


def kind_of(head: bytes) -> bytes:
    """Return the kind of a message."""
    return MESSAGE.unpack(head)[0]


def copy_of(path: str, place: int, payload: int, old: bytes, new: bytes) -> bytes:
    """Return the order to copy record ``place`` of a file: ``payload`` bytes behind a header, behind a new header."""
    name = path.encode()
    return SIZES.pack(place, payload, len(name), len(old)) + name + old + new


def follow(messages: BinaryIO, path: str, options: str) -> int:
    """Write a file by messages; return the exit status, 0 if it is complete. Records are read ahead in a thread."""
    ready: Queue[bytes | Exception] = Queue(AHEAD)

    def read() -> None:
        try:
            kind = b""
            while kind != END:
                kind, size = MESSAGE.unpack(messages.read(MESSAGE.size))
                ready.put(file.record(kind, messages.read(size)))
        except Exception as error:  # struct.error: the process that sends was killed
            ready.put(error)

    try:
        file = File(path, options)
        threading.Thread(target=read, daemon=True).start()
        record: bytes | Exception = b"-"
        while record:
            record = ready.get()
            if isinstance(record, Exception):
                raise record
            file.add(record)
    except (RuntimeError, ValueError, OSError, Unreadable, struct.error) as error:
        print(error, file=sys.stderr)
        return UNREADABLE if isinstance(error, Unreadable) else FAILED
    return 0


def _same(found: bytes, expected: bytes) -> bool:
    """Whether two headers say the same; other programs may pack them otherwise."""
    if found == expected:
        return True
    import msgpack

    def said(head: bytes) -> Any:
        (size,) = struct.unpack_from("<I", head)
        return size == len(head) - 4 and msgpack.unpackb(head[4:])

    try:
        return said(found) == said(expected)
    except (ValueError, struct.error, msgpack.UnpackException):
        return False


if __name__ == "__main__":
    sys.exit(follow(sys.stdin.buffer, *sys.argv[1:]))
