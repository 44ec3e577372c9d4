"""Writing a source's episodes to a store, with its notes about its files, and progress."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from reverie import config
from reverie.data.codecs import AUTO, ZSTD, codec_of
from reverie.data.copying import Concatenated, chosen_for, key_of, workplace
from reverie.data.counted import counted
from reverie.data.filling import SCHEMA, About, fill
from reverie.data.importing import is_divisible, pieces_of
from reverie.data.store import VAL, begin, divided_entries, finish, refuse_existing, refuse_sizes, write_store
from reverie.errors import ReverieError

PART = "part"  # the one split of a part of an array job


def write_source(
    path: str | Path,
    source: Any,
    *,
    val: float = VAL,
    shard: tuple[int, int] | None = None,
    licence: str = "",
    codec: str = AUTO,
) -> Path:
    """Write all episodes of a source, of which about a share ``val`` is held out; or part i of n of an array job.

    The store keeps the source's config, and its notes about files: what was left out, repaired or guessed. Parts are
    divided into splits when they are merged (``data.combining``). A source that has ``write`` writes itself. If the
    process is killed, the same call goes on from what is complete (``data.importing``); a path that ends in .npz is
    built in memory and begun again. codec: a name of ``codecs.CODECS``, or "auto" for a probe. Parts of an array job
    are packed with zstd, and with this codec when they are merged.
    """
    path = Path(path)
    if codec != AUTO:
        codec_of(codec)
        if path.suffix == ".npz" or hasattr(source, "write"):
            raise ReverieError(f"'{path}' is one file or a mixture, whose frames no codec packs; leave out --codec.")
    if shard and not 0 <= shard[0] < shard[1]:
        raise ReverieError(f"there is no part {shard[0]} of {shard[1]}; parts are counted from 0.")
    if shard and not is_divisible(source):
        raise ReverieError(f"a source such as {type(source).__name__} cannot be divided; write it without --shard.")
    if hasattr(source, "write"):
        source.write(path)
        return path
    said = _Said()
    logger = logging.getLogger("reverie.data.sources")
    logger.addHandler(said)
    try:
        more = {"shard": [*shard, val, codec]} if shard else {}
        provenance, codec = json.dumps(config.to_json(source)), ZSTD if shard else codec
        about = About(licence, provenance, said.lines, codec=codec, more=more)
        if path.suffix == ".npz":
            episodes = counted(source.episodes(), source)
            return write_store(path, source.spec(), {PART: episodes} if shard else episodes, val=val)
        return _imported(path, source, about, val, shard, said)
    finally:
        logger.removeHandler(said)


def _imported(path: Path, source: Any, about: About, val: float, shard: tuple[int, int] | None, said: "_Said") -> Path:
    """Write a folder, in pieces first."""
    refuse_sizes(val, about.chunk)
    spec = source.spec()
    begin(path)
    with workplace(path, "import") as part:
        refuse_existing(path)
        stamps = source.stamps() if hasattr(source, "stamps") else ()
        key = key_of(about.provenance, str(shard), str(stamps), str(SCHEMA))
        whole = Concatenated(pieces_of(part, key, source, spec, shard, said))
        about = replace(about, codec=chosen_for(about.codec, whole))
        entries = divided_entries(whole, val) if val and not shard else whole.entries(PART if shard else "train")
        new = part / f"store-{val}-{about.codec}"  # its files depend on these, unlike the pieces
        new.mkdir(exist_ok=True)
        fill(new, spec, entries, about, journal=True)
        finish(new, path)
    return path


class _Said(logging.Handler):
    """Keeps the lines that a source logs and prints them, as long as ``heard`` is True."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.heard = True

    def emit(self, record: logging.LogRecord) -> None:
        if not self.heard:
            return
        self.lines.append(record.getMessage())
        if not logging.getLogger().handlers:
            print(self.lines[-1], file=sys.stderr)
