"""A source's episodes to a store by Apache Beam: its workers write parts of an array job, and one of them joins these.

The store has the bytes that one process would have written. Workers share a disk: the parts lie beside the store until
it is complete. A worker that fails is called again by Beam, and goes on from what is there.
"""

import importlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from reverie import config
from reverie.data.combining import merge
from reverie.data.filling import MANIFEST
from reverie.data.importing import is_divisible
from reverie.data.store import refuse_existing
from reverie.data.writing import write_source
from reverie.errors import ReverieError


def write_by_beam(path: str | Path, source: Any, how: str, **kept: Any) -> Path:
    """Write all episodes of a source in parts. how: the number of parts and Beam's options, "8 --runner=FlinkRunner".

    kept: ``val``, ``licence`` and ``codec``, see ``write_source``.
    """
    path = Path(path).absolute()
    number, *options = shlex.split(how) or [""]
    if not number.isdecimal() or int(number) < 2:
        raise ReverieError(f"--beam takes a number of parts of 2 or more, then options of Beam's; not '{how}'.")
    if path.suffix == ".npz" or hasattr(source, "write") or not is_divisible(source):
        raise ReverieError(f"'{path.name}' cannot be written in parts; leave out --beam.")
    beam, count = _beam(), int(number)
    refuse_existing(path)
    source.spec()  # what is wrong with it is said here, not by a worker
    parts, about = path.with_name(f".{path.name}.beam"), json.dumps(config.to_json(source))
    try:
        with beam.Pipeline(argv=options) as pipeline:
            numbers = pipeline | beam.Create(range(count)) | beam.Reshuffle()
            written = numbers | beam.Map(_part, str(parts), count, about, kept)
            _ = written | beam.combiners.ToList() | beam.Map(_joined, str(path))
    except RuntimeError as error:  # a worker's traceback, as text
        said = [line for line in str(error).splitlines() if "ReverieError: " in line]
        if not said:
            raise
        raise ReverieError(said[-1].partition("ReverieError: ")[2]) from None
    shutil.rmtree(parts)
    return path


def _part(number: int, folder: str, count: int, about: str, kept: dict[str, Any]) -> str:
    """Write a part, unless it is complete; return its path."""
    path = Path(folder, f"{number:05d}-of-{count:05d}")
    if not (path / MANIFEST).is_file():
        path.parent.mkdir(exist_ok=True)
        write_source(path, config.from_json(json.loads(about)), shard=(number, count), **kept)
    return str(path)


def _joined(parts: list[str], path: str) -> str:
    return merge(Path(path), [Path(part) for part in sorted(parts)])


def _beam() -> Any:
    try:
        return importlib.import_module("apache_beam")
    except ImportError:
        raise ReverieError("--beam needs Apache Beam: pip install 'reverie-worlds[beam]'") from None
