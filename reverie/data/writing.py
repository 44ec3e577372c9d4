"""A source of episodes to a store, with what it said of its files and how far writing has come."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from reverie import config
from reverie.data.counted import counted
from reverie.data.store import write_store


def write_source(path: str | Path, source: Any, **options: Any) -> Path:
    """Write all episodes of a source; ``options`` are those of ``write_store``.

    The store keeps the source's config, and what it said of files: what was left out, repaired or guessed.
    """
    provenance, said = json.dumps(config.to_json(source)), _Said()
    logger = logging.getLogger("reverie.data.sources")
    logger.addHandler(said)
    try:
        return write_store(path, source.spec(), counted(source), provenance=provenance, notes=said.lines, **options)
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
