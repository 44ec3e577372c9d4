"""A source's episodes in finished pieces, so that an import that was killed goes on from where it was.

Each piece is a store of its own. ``progress.json`` says how many are complete, and where in the source the next one
begins. Episodes depend on nothing but the source's config and files, so all pieces together hold the same ones, however
often an import was killed and wherever a piece ends.
"""

import inspect
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from reverie.checksums import read_signed, write_json
from reverie.data.counted import counted
from reverie.data.episode import Episode, Share, Spec, numbers_of
from reverie.data.filling import About, entry_of, fill
from reverie.data.store import MANIFEST_BYTES, StoreDataset
from reverie.errors import ReverieError

PROGRESS = "progress.json"
SECONDS = 20.0  # of work in a piece: what a kill costs ...
SHARE = 0.05  # ... or this share of the work so far, so that ten hours make about a hundred pieces
PACKING = "zstd:1"  # of pieces, which are read once: for CoinRun a fifth faster than zstd:3, and 5 % larger
ALL = "all"  # the one split of a piece


class Lines(Protocol):
    """What a source has reported about its files. heard: whether further lines are kept and printed."""

    lines: list[str]
    heard: bool


@dataclass(frozen=True)
class Progress:
    """Where the next piece begins: behind ``inside`` episodes of thing ``number`` of the source.

    key: of the work. pieces: how many are complete. counts: those of ``Share`` when that thing was begun. lines: what
    the source has said. ended: it has no further episode.
    """

    key: str
    pieces: int = 0
    number: int = 0
    inside: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    ended: bool = False


def pieces_of(
    folder: Path, key: str, source: Any, spec: Spec, shard: tuple[int, int] | None, said: Lines
) -> list[StoreDataset]:
    """Write all episodes of a source, or of part i of n, to pieces in ``folder``, and return these.

    Complete pieces of the same ``key`` are kept, and what they hold is not drawn again. The exception is a thing that
    is half done, such as a long video: its first episodes are drawn again and dropped.
    """
    at, pieces = _found(folder, key)
    drawn = _Drawn(source, Share(*(shard or (0, 1)), at.number, Counter(at.counts)))
    there = [int(length) for piece in pieces for length in piece.lengths]
    if there:
        total = f" of {drawn.total}" if drawn.total else ""
        print(f"continues from episode {len(there)}{total}", file=sys.stderr)
        said.lines[:], said.heard = at.lines, False
        for _ in range(0 if at.ended else at.inside):
            next(drawn, None)
        said.heard = True
    episodes, began = counted(drawn, source, drawn.share.parts, there), time.monotonic()
    while not at.ended:
        head = list(islice(episodes, 1))
        ended = not head
        if not ended:
            pieces.append(_piece(folder / f"{at.pieces:05d}", spec, _some(head, episodes, began)))
        number, counts = drawn.share.number, dict(drawn.share.begun)
        at = Progress(key, len(pieces), number, drawn.inside, counts, said.lines, ended)
        write_json(folder / PROGRESS, asdict(at))
    if not pieces:
        raise ReverieError("there are no episodes to write.")
    return pieces


def is_divisible(source: Any) -> bool:
    """Whether a source can be divided among the parts of an array job."""
    return hasattr(source, "episodes") and "shard" in inspect.signature(source.episodes).parameters


class _Drawn:
    """The episodes of a source one by one. inside: how many were drawn of the thing that the last one belongs to."""

    def __init__(self, source: Any, share: Share):
        self.share, self.inside, self._number = share, 0, share.number
        self.total = len(numbers_of((share.part, share.parts), getattr(source, "count", None) or 0))
        self._episodes = source.episodes(shard=share) if is_divisible(source) else source.episodes()

    def __iter__(self) -> Iterator[Episode]:
        return self

    def __next__(self) -> Episode:
        episode = next(self._episodes)
        self.inside = self.inside + 1 if self.share.number == self._number else 1
        self._number = self.share.number
        return episode


def _found(folder: Path, key: str) -> tuple[Progress, list[StoreDataset]]:
    """Return the progress of this key's import in a folder. Leftovers of another import are deleted, with a line."""
    why = ""
    try:
        at = Progress(**read_signed(folder / PROGRESS, required=True, limit=MANIFEST_BYTES))
        if at.key == key:
            return at, [StoreDataset(folder / f"{n:05d}", ALL, checksums=True) for n in range(at.pieces)]
        why = "is of other flags or files"
    except FileNotFoundError:
        pass
    except (ReverieError, ValueError, TypeError, OSError):
        why = "is damaged"
    if why:
        print(f"the unfinished import in '{folder}' {why}: this one starts over", file=sys.stderr)
    shutil.rmtree(folder)
    folder.mkdir()
    return Progress(key), []


def _piece(folder: Path, spec: Spec, episodes: Iterator[Episode]) -> StoreDataset:
    shutil.rmtree(folder, ignore_errors=True)  # a killed process may have begun it
    folder.mkdir()
    fill(folder, spec, (entry_of(ALL, episode, spec) for episode in episodes), About(packing=PACKING))
    return StoreDataset(folder, ALL)


def _some(head: list[Episode], episodes: Iterator[Episode], began: float) -> Iterator[Episode]:
    """Yield the episode in ``head`` and those behind it, one in memory at a time, until the piece took long enough."""
    start = time.monotonic()
    while head:
        yield head.pop()
        now = time.monotonic()
        if now - start < max(SECONDS, SHARE * (now - began)):
            head.extend(islice(episodes, 1))
