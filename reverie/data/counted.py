"""How far the writing of episodes has come: a line now and then, for a person or for a file."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from reverie.data.episode import Episode

SHOWN, LOGGED = 0.5, 30.0  # seconds between two lines: to a person, to a file
BAR = 12  # characters


def counted(episodes: Iterable[Episode], source: Any, parts: int = 1, there: Sequence[int] = ()) -> Iterator[Episode]:
    """Yield episodes of a source, or of one of its parts; say on stderr how many there were, and how long it takes.

    there: lengths of the episodes before these, which were written earlier. A source's field ``count`` is its number of
    episodes, and its method ``expected_frames`` estimates its frames.
    """
    shown, began = sys.stderr.isatty(), time.monotonic()
    said, number, frames = began, len(there), sum(there)
    by_number = not hasattr(source, "expected_frames")
    total = ((getattr(source, "count", None) or 0) if by_number else source.expected_frames()) / parts
    before = (number if by_number else frames) / total if total else 0.0
    for episode in episodes:
        yield episode
        number, frames, now = number + 1, frames + len(episode.frames), time.monotonic()
        if now - said > (SHOWN if shown else LOGGED):
            said, share = now, (number if by_number else frames) / total if total else 0.0
            line = f"{left(share, now - began, before)}{number} episodes, {frames} frames, at {episode.source}"
            line = f"\r{line[: shutil.get_terminal_size().columns - 1]}\033[K" if shown else f"{line}\n"
            print(line, end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def left(share: float, seconds: float, before: float = 0.0) -> str:
    """Return a bar and the time left, "" if ``share`` is not known; ``seconds`` is the time since ``before``."""
    if not share > before:
        return ""
    share = min(share, 1.0)
    full = round(BAR * share)
    rest = round(seconds * (1 - share) / (share - before))
    return f"{'━' * full}{'╌' * (BAR - full)} {share:4.0%}, {rest // 60}:{rest % 60:02d} left, "
