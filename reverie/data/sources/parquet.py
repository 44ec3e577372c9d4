"""Tables of Parquet and Arrow files as columns of numbers, texts and pictures; needs pyarrow. R rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverie.bounded import room_for
from reverie.data.sources.bundles import Column
from reverie.errors import Damaged, ReverieError, first_line

ROWS = 10**8  # of one file


def pyarrow() -> Any:
    """Return the package pyarrow; ReverieError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ReverieError("this format needs pyarrow: pip install 'reverie-worlds[parquet]'") from None
    return pyarrow


def table_of(paths: Sequence[Path], columns: Sequence[str] | None = None) -> Any:
    """Return the rows of .parquet or .arrow files one after the other; Damaged names the file that cannot be read."""
    arrow = pyarrow()
    tables = []
    for path in paths:
        try:
            if path.suffix == ".parquet":
                file = arrow.parquet.ParquetFile(path)
                _check_size(path, file.metadata)
                names = file.schema_arrow.names
                tables.append(file.read(None if columns is None else [name for name in columns if name in names]))
            else:
                with arrow.memory_map(str(path)) as source:
                    whole = source.read(6) == b"ARROW1"
                    source.seek(0)
                    reader = arrow.ipc.open_file(source) if whole else arrow.ipc.open_stream(source)
                    tables.append(reader.read_all())
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise Damaged(f"'{path.name}' cannot be read ({first_line(error)})") from None
    try:
        return arrow.concat_tables(tables, promote_options="default")
    except (arrow.ArrowException, ValueError) as error:
        raise Damaged(f"its tables do not fit each other ({first_line(error)})") from None


def _check_size(path: Path, metadata: Any) -> None:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    limit = room_for(path)
    if size > limit or metadata.num_rows > ROWS:
        raise Damaged(f"'{path.name}' would unpack to {size / 1e6:.0f} MB in {metadata.num_rows} rows: too much")


def numbers(array: Any, shape: Sequence[int] = ()) -> np.ndarray:
    """Return a column of numbers, or of lists of as many numbers each, as an array (R, ...); nan where one is missing.

    Lists of lists become (R, numbers in all), or (R, *shape). Damaged where rows differ in length or hold no numbers.
    """
    arrow = pyarrow()
    if isinstance(array, arrow.ChunkedArray):
        array = array.combine_chunks()
    rows = len(array)
    while arrow.types.is_nested(array.type):
        if not hasattr(array, "flatten") or arrow.types.is_struct(array.type) or array.null_count:
            raise Damaged("a column of structures or missing lists where numbers belong")
        array = array.flatten()
    kind = array.type
    if arrow.types.is_boolean(kind):
        flat = np.asarray(array.to_pylist(), np.float64 if array.null_count else np.bool_)
    elif arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
        flat = array.to_numpy(zero_copy_only=False)
    else:
        raise Damaged(f"a column of {kind} where numbers belong")
    if rows and len(flat) % rows:
        raise Damaged("a column of lists of different lengths")
    if shape or len(flat) != rows:
        return flat.reshape(rows, *(shape or (-1,)))
    return flat


def column_of(array: Any, shape: Sequence[int] = ()) -> Column:
    """Return a column of a table: numbers of a ``shape`` a row, or bytes of encoded pictures."""
    arrow = pyarrow()
    if arrow.types.is_binary(array.type) or arrow.types.is_large_binary(array.type):
        return Column((len(array),), "O", lambda a, b: array[a:b].to_pylist(), "encoded")
    if arrow.types.is_nested(array.type) or arrow.types.is_primitive(array.type):
        return Column.of(numbers(array, shape))
    return Column((), "O", lambda a, b: None)
