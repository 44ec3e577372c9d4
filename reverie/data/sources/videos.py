"""Episodes from a folder of ordinary videos of any size, frame rate and length.

Each video is decoded once, from start to end, with at most one episode in memory.
"""

import itertools
import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from reverie.data.cuts import cuts
from reverie.data.episode import Episode, Share, Spec, share_of
from reverie.data.sources import action_files, files, film
from reverie.data.sources.decode import Unusable
from reverie.data.sources.film import Film, Fit, Sample
from reverie.data.sources.recognise import recognise, refuse_formats
from reverie.data.sources.spaces import Coding, coding, merged
from reverie.errors import ReverieError

ENDINGS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".divx", ".gif", ".flv"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".wmv", ".asf", ".ogv", ".mxf", ".dv"),
    *(".m1v", ".m2p", ".h264", ".264", ".h265", ".265", ".hevc", ".mjpeg", ".mjpg", ".ivf", ".y4m"),
)
RATE = 15.0  # frames per second: more give longer sequences of smaller changes, and no better play
DARK = 64  # of 255
# Files in which people keep actions; only those of ``action_files`` are read.
ARRAYS = (".parquet", ".pkl", ".pickle", ".h5", ".hdf5", ".mat")  # of these, whatever they are called
TABLES = (*action_files.ENDINGS, *ARRAYS, ".json", ".txt", ".tsv")
LINES = 10  # about files of one kind, at most
WIDEST = 8.0  # a picture whose aspect ratio differs by more from the target's is a mistake

log = logging.getLogger(__name__)


class _Looked(NamedTuple):
    """What a look into the videos found: those that can be used, how their rows become actions, a line on the rest."""

    films: tuple[Film, ...]
    coding: Coding
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """Videos of any size, length and frame rate, with action files beside them or without."""

    path: str = field(kw_only=False)  # a folder, searched with all its subfolders, or one video
    size: tuple[int, int] = (64, 64)  # height and width of the frames
    fps: float = 0.0  # frames per second; 0: the videos' typical rate, divided until it is 15 or less
    fit: Fit = "stretch"  # for another shape: the middle (crop), all within black bars (pad), or distorted (stretch)
    shortest: int = 16  # fewest frames of an episode
    frames: int = 128  # most frames of an episode
    cuts: float = 9.0  # change at once, 0..255, that ends a scene; 0: never
    # a pixel keeps its colour until it differs by more than this, 0..255; compression noise would count as events
    still: int = 8
    actions: bool = True  # read the action files beside the videos

    def __post_init__(self):
        if min(self.size) < 1 or not 0 <= self.fps <= 240 or not 0 <= self.cuts <= 255 or not 0 <= self.still <= 255:
            raise ReverieError("videos need a size of at least 1 x 1, 0 <= fps <= 240, and cuts and still in 0..255.")
        if self.fit not in ("crop", "pad", "stretch"):
            raise ReverieError(f"fit cannot be '{self.fit}'; choose crop, pad or stretch.")
        if self.shortest < 2 or self.frames < 2 * self.shortest:
            raise ReverieError("videos need shortest >= 2 and frames >= 2 * shortest.")

    @classmethod
    def of(cls, path: Path, inside: list[Path]) -> Self | None:
        """Return this source of ``path`` if it holds ordinary videos."""
        found = files.ending(inside, ENDINGS)
        return cls(path=str(path)) if found and recognise(path, inside, found) is None else None

    def spec(self) -> Spec:
        """Return what all episodes have in common, by a first look into every file; ReverieError if none can serve."""
        films, codes, _ = self._look()
        typical = statistics.median_low(film.rate for film in films)  # the rate of some video
        fps = self.fps or round(typical / max(1, math.ceil(typical / RATE - 0.01)), 3)
        return Spec((*self.size, 3), codes.space, fps, "videos")

    def episodes(self, shard: Share | tuple[int, int] = (0, 1)) -> Iterator[Episode]:
        """Yield the episodes in the order of the files' names.

        Logs one line per file that cannot be used. Raises ReverieError if nothing was long enough.
        """
        (films, codes, notes), fps, share = self._look(), self.spec().fps, share_of(shard)
        for note in notes:
            log.warning("%s", note)
        for one in (films[index] for index in share.of(len(films))):
            short = []
            for piece in _pieces(film.samples(one, fps, self.size, self.fit), self):
                if len(piece) >= self.shortest:
                    share.counts["episodes"] += 1
                    yield _episode(piece, fps, one.name, self.still, codes)
                else:
                    short.append(len(piece))
            if short:
                said = f"{sum(short)} frames in {len(short)} scenes shorter than {self.shortest} frames"
                log.warning("%s: left out %s", one.name, said)
        if not share.counts["episodes"]:
            raise ReverieError(
                f"no piece of the videos in '{self.path}' is {self.shortest} frames long at {fps:g} frames per second; "
                "bring longer videos, or choose a smaller shortest, a larger fps, or cuts 0."
            )

    def expected_frames(self) -> int:
        """Return about how many frames the episodes have together: what is too short for one counts as well."""
        return round(self.spec().fps * sum(film.track.span for film in self._look().films))

    def labelled(self) -> float:
        """Return the share of the videos that have actions."""
        films = self._look().films
        return sum(film.rows is not None for film in films) / len(films)

    def contents(self) -> dict[str, str]:
        """Return a hash of each video by its name, of its size, beginning and end."""
        root = Path(self.path)
        return {files.name_of(path, root): files.fingerprint(path) for path in _files(root)}

    def stamps(self) -> tuple:
        """Return the path, time and size of each video, and those of each file of actions beside one."""
        found = _files(Path(self.path))
        beside = [path for file in found for end in action_files.ENDINGS if (path := file.with_suffix(end)).is_file()]
        return files.stamps(found), files.stamps(beside)

    def _look(self) -> _Looked:
        return _look(self, self.stamps())


def _files(path: Path) -> list[Path]:
    """Return the videos at ``path`` in the order of their names; ReverieError if there are none."""
    if path.is_file():
        refuse_formats(path, [path], [path] if path.suffix.lower() in ENDINGS else [])
        return [path]
    if not path.is_dir():
        raise ReverieError(f"there is no file or folder '{path}'.")
    here = files.inside(path)
    videos = [file for file in here if file.suffix.lower() in ENDINGS]
    refuse_formats(path, here, videos)
    if not videos:
        kinds = Counter(file.suffix.lower() or "without ending" for file in here).most_common(5)
        found = ", ".join(f"{number} {kind}" for kind, number in kinds) or "nothing"
        raise ReverieError(f"'{path}' holds no videos (found: {found}); bring files such as .mp4, .webm, .mkv or .gif.")
    return videos


@lru_cache(maxsize=4)  # spec() and episodes() look at the same files; one that changed has another stamp
def _look(config: VideosConfig, stamps: tuple) -> _Looked:
    """Open every file once; return those that can be used, and a line about each that cannot. ReverieError if none."""
    root, films, reasons, notes = Path(config.path), [], [], []
    videos = [path for path, *_ in stamps[0]]
    for path in videos:
        name = files.name_of(path, root)
        try:
            one = film.look(path, name)
            long = one.shape[1] / one.shape[0] * config.size[0] / config.size[1]
            if config.fit != "stretch" and not 1 / WIDEST <= long <= WIDEST:
                raise Unusable(
                    f"{one.shape[1]}x{one.shape[0]} is too long a shape for {config.size}; fit stretch takes it"
                )
            films.append(_labelled(one, notes) if config.actions else one)
        except Unusable as reason:
            reasons.append(f"{name}: {reason}")
            notes.append(f"skipped {reasons[-1]}")
    if not films:
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise ReverieError(f"none of {len(videos)} videos in '{root}' can be used ({'; '.join(reasons[:5])}{more}).")
    if reasons:
        notes.append(f"skipped {len(reasons)} of {len(videos)} videos")
    if config.actions:
        unused = _unused(root, videos) if root.is_dir() else []
        for path in unused[:LINES]:
            place = path.relative_to(root)
            notes.append(f"{place} is not read: actions of VIDEO.mp4 are in VIDEO.npy, .csv, .jsonl or .npz")
        if len(unused) > LINES:
            notes.append(f"{len(unused) - LINES} more such files are not read")
        labelled = sum(film.rows is not None for film in films)
        if labelled or unused:
            notes.append(f"{labelled} of {len(films)} videos had actions")
    parts, declared = merged([(one.rows.actions, one.rows.declared) for one in films if one.rows is not None])
    rows = iter(parts)
    same = [one if one.rows is None else _with(one, next(rows)) for one in films]
    return _Looked(tuple(same), coding(parts, declared, notes.append), tuple(notes))


def _with(one: Film, rows: np.ndarray | None) -> Film:
    """Return a video with other rows of actions at the same places."""
    assert one.rows is not None and rows is not None
    return replace(one, rows=replace(one.rows, actions=rows))


def _unused(root: Path, videos: list[Path]) -> list[Path]:
    """Return the files that seem to hold actions but do not lie beside a video of the same name."""
    used = {video.with_suffix(ending) for video in videos for ending in action_files.ENDINGS}
    stems = {(video.parent, video.stem.lower()) for video in videos}
    elsewhere = {stem for _, stem in stems}  # tables of a folder, videos of another

    def telling(path: Path) -> bool:
        name = path.name.lower()
        if (
            path.suffix.lower() in (*action_files.ENDINGS, *ARRAYS)
            or "action" in name
            or path.stem.lower() in elsewhere
        ):
            return True
        return any((path.parent, name[:end]) in stems for end, letter in enumerate(name) if letter in "._-")

    tables = (path for path in files.inside(root) if path.suffix.lower() in TABLES)
    return [path for path in tables if path not in used and telling(path)]


def _labelled(one: Film, notes: list[str]) -> Film:
    """Return a video with the actions beside it; where they are wrong, note so and use it without."""
    try:
        return film.labelled(one)
    except ReverieError as reason:
        notes.append(f"{one.name} is used without actions: {reason}")
        return one


def _pieces(samples: Iterator[Sample], config: VideosConfig) -> Iterator[list[Sample]]:
    """Yield unbroken stretches of at most ``frames``, some too short; a long scene leaves no short rest."""
    piece, marked = [], ((sample, False) for sample in samples)
    if config.cuts:
        marked = cuts(((sample, sample.picture) for sample in samples), config.cuts, config.shortest)
    for sample, begins in marked:
        if begins or sample.first:
            yield from _split(piece, config)
            piece = []
        piece.append(sample)
        if len(piece) == config.frames + config.shortest:
            yield piece[: config.frames]
            piece = piece[config.frames :]
    yield from _split(piece, config)


def _split(piece: list[Sample], config: VideosConfig) -> Iterator[list[Sample]]:
    at = len(piece) - config.shortest if len(piece) > config.frames else len(piece)
    yield from (part for part in (piece[:at], piece[at:]) if part)


def _episode(piece: list[Sample], fps: float, name: str, still: int, codes: Coding) -> Episode:
    rows = [sample.action for sample in piece[1:]]
    width = next((len(row) for row in rows if row is not None), 0)
    known = np.array([row or (np.nan,) * width for row in rows]) if width else None
    return Episode(
        frames=steadied(np.stack([sample.picture for sample in piece]), still),
        actions=np.concatenate([codes.space.start((1,)), codes.actions(known, len(rows))]),
        rewards=np.zeros(len(piece), np.float32),
        ends=np.zeros(len(piece), np.bool_),
        fps=fps,
        source=name,
    )


def steadied(frames_THWC: np.ndarray, still: int) -> np.ndarray:
    """Return uint8 frames in which a pixel keeps its colour until one of its channels changes by more.

    For dark pixels (brightest channel below ``DARK``) the threshold is proportionally lower, down to a quarter. There a
    step of 6 is as visible as one of 24 in bright ones, and whole figures move in such steps.
    """
    steady = frames_THWC.copy()
    for before, frame in itertools.pairwise(steady):
        light = np.clip(np.minimum(before.max(-1), frame.max(-1)) / np.float32(DARK), 0.25, 1)
        same = np.abs(frame.astype(np.int16) - before).max(axis=-1) <= still * light
        np.copyto(frame, before, where=same[..., None])
    return steady
