"""Files of records: ArrayRecord, which stores are made of, by number."""

from pathlib import Path
from typing import Any

from reverie.errors import Damaged, ReverieError, first_line


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


def new_records(path: Path, packing: str) -> Any:
    """Return a writer of an ArrayRecord file; packing: how each record is packed, such as "zstd:3" or "uncompressed".

    group_size:1, since a record is read alone: larger groups make random reads 4-10 times slower.
    """
    return array_record().ArrayRecordWriter(str(path), f"group_size:1,{packing}")


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
