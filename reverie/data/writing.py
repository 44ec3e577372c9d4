"""A source of episodes to a store, with what it said of its files and how far writing has come."""

import json
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reverie import config
from reverie.data.episode import Episode
from reverie.data.store import write_store

SHOWN, LOGGED = 0.5, 30.0  # seconds between two lines that say how far writing has come: to a person, to a file


def write_source(path: str | Path, source: Any, **options: Any) -> Path:
    """Write all episodes of a source; ``options`` are those of ``write_store``.

    The store keeps the source's config, and what it said of files: what was left out, repaired or guessed.
    """
    provenance, said = json.dumps(config.to_json(source)), _Said()
    logger = logging.getLogger("reverie.data.sources")
    logger.addHandler(said)
    try:
        episodes = _counted(source.episodes())
        return write_store(path, source.spec(), episodes, provenance=provenance, notes=said.lines, **options)
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


def _counted(episodes: Iterable[Episode]) -> Iterable[Episode]:
    """Yield episodes; say now and then on stderr how many there were."""
    frames, said, shown = 0, time.monotonic(), sys.stderr.isatty()
    for number, episode in enumerate(episodes, 1):
        yield episode
        frames += len(episode.frames)
        if time.monotonic() - said > (SHOWN if shown else LOGGED):
            said, line = time.monotonic(), f"{number} episodes, {frames} frames, at {episode.source[-60:]}"
            print(f"\r{line}\033[K" if shown else line, end="" if shown else "\n", file=sys.stderr, flush=True)
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
