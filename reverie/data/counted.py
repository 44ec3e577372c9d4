"""How far the writing of episodes has come: a line now and then, for a person or for a file."""

import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from reverie.data.episode import Episode

SHOWN, LOGGED = 0.5, 30.0  # seconds between two lines: to a person, to a file
BAR = 12  # characters


def counted(source: Any, shard: tuple[int, int] | None = None) -> Iterator[Episode]:
    """Yield the episodes of a source, or of part i of n; say on stderr how many there were, and how long it will go on.

    A source with a field ``count`` has so many episodes; one with a method ``expected_frames`` about so many frames.
    """
    shown, began = sys.stderr.isatty(), time.monotonic()
    said, number, frames = began, 0, 0
    count = getattr(source, "count", None)
    by_number = not hasattr(source, "expected_frames")
    total = count if by_number else source.expected_frames()
    if total and shard:
        total /= shard[1]
    for episode in source.episodes(shard=shard) if shard else source.episodes():
        yield episode
        number, frames, now = number + 1, frames + len(episode.frames), time.monotonic()
        if now - said > (SHOWN if shown else LOGGED):
            said, share = now, (number if by_number else frames) / total if total else 0.0
            line = f"{left(share, now - began)}{number} episodes, {frames} frames, at {episode.source}"
            line = f"\r{line[: shutil.get_terminal_size().columns - 1]}\033[K" if shown else f"{line}\n"
            print(line, end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def left(share: float, seconds: float) -> str:
    """Return a bar and the time left of work of which a share took so many seconds; "" if the share is unknown."""
    if not share:
        return ""
    share = min(share, 1.0)
    full = round(BAR * share)
    rest = round(seconds * (1 - share) / share)
    return f"{'━' * full}{'╌' * (BAR - full)} {share:4.0%}, {rest // 60}:{rest % 60:02d} left, "
