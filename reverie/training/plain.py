"""Plain weights: every array of a model in one .safetensors file, and all configs in a JSON file beside it.

Any program can read both. The JSON file states the size and checksum of the other, and has the records of all runs that
the model is made of: of dynamics, those of its tokenizer and latent actions too. No pickle, no paths of this machine.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from reverie.checksums import crc, read_signed, signed, write_json
from reverie.errors import Damaged, ReverieError, first_line
from reverie.training.record import Record, record_from, record_to

SUFFIX = ".safetensors"
FORMAT = 1  # of the JSON file
DTYPES = {
    "bool",
    "float16",
    "float32",
    "float64",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


class Plain(NamedTuple):
    """A model as plain data. others: the runs on top of which it was trained, by path relative to its own folder."""

    record: Record
    others: dict[str, Record]
    weights: dict[str, np.ndarray]


def write(file: Path, plain: Plain) -> None:
    """Write ``file`` and the JSON file beside it; the JSON file comes last and makes the pair whole."""
    if other := sorted({array.dtype.name for array in plain.weights.values()} - DTYPES):
        raise ReverieError(f"NumPy has no type {', '.join(other)}, so these weights cannot be written as plain arrays.")
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file({name: np.asarray(array, order="C") for name, array in plain.weights.items()}, fresh)
        fresh.chmod(file.parent.stat().st_mode & 0o666)  # whoever may read the folder; safetensors makes it private
        os.replace(fresh, file)
    except safetensors.SafetensorError as error:  # a full disk, no such folder
        raise ReverieError(f"cannot write '{file}': {first_line(error)}.") from error
    finally:
        fresh.unlink(missing_ok=True)
    others = {path: signed(record_to(record)) for path, record in plain.others.items()}
    about = {"plain": FORMAT, "bytes": file.stat().st_size, "crc": crc(file)}
    write_json(beside(file), {**about, "record": signed(record_to(plain.record)), "others": others})


def read(file: Path) -> Plain:
    """Read what ``write`` wrote; ``Damaged`` if either file is not what was written.

    No more is read than the JSON file says, and no array is larger than the file.
    """
    if not beside(file).is_file():
        raise ReverieError(f"'{file}' needs '{beside(file).name}' beside it, which says what the weights are of.")
    about = read_signed(beside(file), required=True)
    if about.get("plain") != FORMAT:
        raise ReverieError(f"'{beside(file)}' does not describe plain weights of this version of Reverie.")
    if file.stat().st_size != about.get("bytes") or crc(file) != about.get("crc"):
        raise Damaged(f"'{file}' is not what was written: its size or its checksum differs.")
    try:
        weights = load_file(file)
    except (safetensors.SafetensorError, KeyError) as error:
        raise Damaged(f"'{file}' is not a file of plain weights ({first_line(error)}).") from error
    if not isinstance(others := about.get("others"), dict):
        raise Damaged(f"'{beside(file)}' has no records of other runs.")

    def record(data: Any) -> Record:
        return record_from(lambda: data, f"'{beside(file)}'")

    return Plain(record(about.get("record")), {path: record(each) for path, each in others.items()}, weights)


def beside(file: Path) -> Path:
    """Return the JSON file of a file of weights."""
    return file.with_suffix(".json")
