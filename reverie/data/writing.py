"""A source of episodes to a store, with what it said of its files and how far writing has come."""

import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Any

from reverie import config
from reverie.data.counted import counted
from reverie.data.store import VAL, write_store
from reverie.errors import ReverieError

PART = "part"  # the one split of a part of an array job


def write_source(
    path: str | Path, source: Any, *, val: float = VAL, shard: tuple[int, int] | None = None, licence: str = ""
) -> Path:
    """Write all episodes of a source, of which about a share ``val`` is held out; or part i of n of an array job.

    The store keeps the source's config, and what it said of files: what was left out, repaired or guessed. Parts are
    divided into splits when they are merged (``data.combining``). A source that has ``write`` writes itself.
    """
    if hasattr(source, "write"):
        source.write(Path(path))
        return Path(path)
    provenance, said = json.dumps(config.to_json(source)), _Said()
    if shard and not 0 <= shard[0] < shard[1]:
        raise ReverieError(f"there is no part {shard[0]} of {shard[1]}; parts are counted from 0.")
    if shard and "shard" not in inspect.signature(source.episodes).parameters:
        raise ReverieError(f"a source such as {type(source).__name__} cannot be divided; write it without --shard.")
    logger = logging.getLogger("reverie.data.sources")
    logger.addHandler(said)
    try:
        episodes: Any = {PART: counted(source, shard)} if shard else counted(source)
        more = {"shard": [*shard, val]} if shard else {}
        facts = {"provenance": provenance, "notes": said.lines, "licence": licence, "more": more}
        return write_store(path, source.spec(), episodes, val=val, **facts)
    finally:
        logger.removeHandler(said)


class _Said(logging.Handler):
    """Keeps the lines that a source logs, and prints them as they would be without it."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if not logging.getLogger().handlers:
            print(self.lines[-1], file=sys.stderr)
