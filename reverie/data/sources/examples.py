"""TFRecord files and the tf.train.Example in each record, read without TensorFlow.

Only what is needed of protocol buffers: fields with their numbers, lengths and varints.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reverie.errors import Damaged

POLYNOMIAL = 0x82F63B78  # of CRC-32C
PIECE = 128  # bytes of a piece of a record whose checksum is computed
BYTES, FLOATS, INTEGERS = 1, 2, 3  # the field of a Feature says which kind of list it holds


def tfrecords(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (offset, bytes) of each record of a TFRecord file; Damaged where its framing is broken."""
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place < size:
            file.seek(place)
            head = file.read(12)
            if len(head) < 12 or _masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise Damaged(f"it is not a TFRecord file, or damaged at byte {place}")
            (length,) = struct.unpack("<Q", head[:8])
            if place + 16 + length > size:
                raise Damaged(f"it ends in the middle of a record, at byte {place}")
            yield place + 12, length
            place += 16 + length


def read_record(path: Path, offset: int, size: int) -> bytes:
    """Return the bytes of a record; Damaged if its checksum is wrong."""
    with path.open("rb") as file:
        file.seek(offset)
        data, check = file.read(size), file.read(4)
    if len(check) < 4 or _masked(data) != struct.unpack("<I", check)[0]:
        raise Damaged("its checksum is wrong: some of its bytes have changed")
    return data


def _masked(data: bytes) -> int:
    """Return the checksum of bytes as the format stores it: CRC-32C, turned and shifted."""
    crc = _crc(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc(data: bytes) -> int:
    """Return the CRC-32C of four bytes or more, of many pieces side by side: a megabyte takes 10 ms.

    The state after a piece is linear in its bytes and in the state before. So each piece can begin with 0, and states
    of neighbours are joined. Zeros in front of all change nothing.
    """
    raw = np.frombuffer(data, np.uint8)
    pieces = 1 << max(0, math.ceil(len(raw) / PIECE) - 1).bit_length()
    padded = np.concatenate([np.zeros(pieces * PIECE - len(raw), np.uint8), raw])
    padded[len(padded) - len(raw) :][:4] ^= 255  # the state before the first byte has all bits set
    states = np.zeros(pieces, np.uint32)
    moved = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))  # each bit of a state, a piece of zeros later
    for column in np.ascontiguousarray(padded.reshape(pieces, PIECE).T):
        states = _TABLE[(states ^ column) & 255] ^ states >> 8
        moved = _TABLE[moved & 255] ^ moved >> 8
    while len(states) > 1:
        states = _applied(moved, states[::2]) ^ states[1::2]
        moved = _applied(moved, moved)
    return int(states[0]) ^ 0xFFFFFFFF


def _applied(moved: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return states (n,) uint32 after a run of zeros; ``moved`` (32,) are those of single bits after it."""
    bits = states[:, None] >> np.arange(32, dtype=np.uint32) & 1
    return np.bitwise_xor.reduce(moved * bits, axis=1)


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ np.uint32(POLYNOMIAL) * (table & 1)
    return table


_TABLE = _table()


def example(data: bytes) -> dict[str, np.ndarray | list[memoryview]]:
    """Return the features of a tf.train.Example by name: floats, whole numbers, or bytes; Damaged if it is not one."""
    found: dict[str, np.ndarray | list[memoryview]] = {}
    try:
        for _, features in _fields(memoryview(data)):
            for _, entry in _fields(_bytes(features)):
                parts = dict(_fields(_bytes(entry)))
                name = bytes(_bytes(parts[1])).decode()
                found[name] = _values(_bytes(parts[2])) if 2 in parts else []
    except (KeyError, IndexError, UnicodeDecodeError, ValueError, struct.error) as error:
        raise Damaged(f"it is not an example of TensorFlow's, or damaged ({error})") from None
    return found


def _bytes(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
    raise ValueError("a number that does not end")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield (number, value) of a message's fields."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        else:
            size = {1: 8, 5: 4}.get(kind, len(data) + 1)
        if size > len(data) - place:
            raise ValueError("a field that is longer than its message")
        yield key >> 3, data[place : place + size]
        place += size


def _values(feature: memoryview) -> np.ndarray | list[memoryview]:
    for kind, body in _fields(feature):
        items = [value for _, value in _fields(_bytes(body))]
        if kind == BYTES:
            return [_bytes(item) for item in items]
        if kind == FLOATS:
            return np.frombuffer(b"".join(_bytes(item) for item in items), "<f4")
        parts = [np.array([item], np.uint64) if isinstance(item, int) else _varints(item) for item in items]
        return np.concatenate(parts or [np.zeros(0, np.uint64)]).view(np.int64)
    return []


def _varints(data: memoryview) -> np.ndarray:
    """Return packed varints as uint64 (n,)."""
    raw = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(raw < 128)
    if not len(raw):
        return np.zeros(0, np.uint64)
    if not len(last) or last[-1] != len(raw) - 1:
        raise ValueError("a number that does not end")
    starts = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(raw)) - np.repeat(starts, last - starts + 1)
    if place.max() > 9:
        raise ValueError("a number of more than 64 bits")
    return np.add.reduceat((raw & 127).astype(np.uint64) << (7 * place).astype(np.uint64), starts)
