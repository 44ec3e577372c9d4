"""One look at every frame of an episode: the numbers from which the doctor tells what is wrong.

Frames are read by windows of one record, so memory does not grow with their length. An episode leaves a few hundred
bytes a frame at most: a thumbnail, and how the frame differs from the one before it.

Legend: T frames of an episode, H W C image, h w C a smaller one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from reverie.data.cuts import cuts
from reverie.data.episode import CHUNK, Dataset, windows
from reverie.errors import ReverieError

SIDE, THUMB = 96, 16  # pixels of the longer side that is looked at, and of a thumbnail
THUMBS = 200_000  # thumbnails of a dataset, at most: 50 MB
CUT = 9.0  # change per pixel, of 255, that may be a cut
BINS = 4  # of each colour in a histogram
NOISE = 3  # of 255: smaller changes of grey pixels are no motion


@dataclass
class Looked:
    """What was seen of an episode. damage: why it cannot be read; then the rest is empty.

    digest: of all frames. change, largest (T,): mean and largest difference from the frame before, 0..255; 0 first.
    bright, spread (T,): the brightest value, and the largest contrast of a colour. thumbs (n, THUMB * THUMB): grey
    thumbnails of every ``every``-th frame. colours (BINS, BINS, BINS): share of pixels. brightest (h, w): of each pixel
    over time. motion (T, 8): see ``motion``. cuts: the frames at which another scene begins.
    """

    split: str
    episode: int
    source: str
    length: int
    damage: str = ""
    digest: bytes = b""
    change: np.ndarray = field(default_factory=lambda: np.zeros(0))
    largest: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bright: np.ndarray = field(default_factory=lambda: np.zeros(0))
    spread: np.ndarray = field(default_factory=lambda: np.zeros(0))
    thumbs: np.ndarray = field(default_factory=lambda: np.zeros((0, THUMB * THUMB), np.uint8))
    colours: np.ndarray = field(default_factory=lambda: np.zeros((BINS,) * 3))
    brightest: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), np.uint8))
    motion: np.ndarray = field(default_factory=lambda: np.zeros((0, 8), np.float32))
    actions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    cuts: tuple[int, ...] = ()


def look(dataset: Dataset, split: str, episode: int, source: str, every: int = 1) -> Looked:
    """Return what is seen of an episode; ``every``: the step between thumbnails, in frames."""
    seen = Looked(split, episode, source, int(dataset.lengths[episode]))
    try:
        return _look(dataset, seen, every)
    except ReverieError as error:
        return Looked(split, episode, source, seen.length, damage=str(error))


def _look(dataset: Dataset, seen: Looked, every: int) -> Looked:
    digest, actions, last, rows = hashlib.sha256(), [], None, []
    thumbs: list[np.ndarray] = []

    def pictures() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal last
        for start, stop in windows(seen.length, CHUNK):
            arrays = dataset.read(seen.episode, start, stop - start, ("frames", "actions"))
            frames = arrays["frames"]
            digest.update(np.ascontiguousarray(frames).data)
            actions.append(arrays["actions"])
            small = _small(frames)
            joined = small if last is None else np.concatenate([last, small])
            rows.append(_measured(joined, first=last is None))
            seen.brightest = np.maximum(rows[-1][3], seen.brightest)
            seen.colours = seen.colours + _colours(small)
            thumbs.extend(_thumb(frame) for at, frame in zip(range(start, stop), small, strict=True) if at % every == 0)
            last = small[-1:]
            yield from zip(range(start, stop), small, strict=True)

    seen.cuts = tuple(at for at, begins in cuts(pictures(), CUT, CHUNK // 2) if begins)
    seen.change, seen.largest = (np.concatenate([row[0][index] for row in rows]) for index in (0, 1))
    seen.bright, seen.spread = (np.concatenate([row[1][index] for row in rows]) for index in (0, 1))
    seen.motion = np.concatenate([row[2] for row in rows])
    seen.thumbs, seen.actions, seen.digest = np.stack(thumbs), np.concatenate(actions), digest.digest()
    seen.colours = seen.colours / seen.colours.sum()
    return seen


def _small(frames_THWC: np.ndarray) -> np.ndarray:
    """Return every n-th pixel, so that no side is longer than SIDE; always three colours."""
    step = -(-max(frames_THWC.shape[1:3]) // SIDE)
    small = frames_THWC[:, ::step, ::step]
    return np.broadcast_to(small, (*small.shape[:3], 3))


def _measured(frames: np.ndarray, *, first: bool) -> tuple:
    """Return the measures of frames, of which the first belongs to an earlier window unless it is ``first``."""
    wide = frames.astype(np.int16)
    differ = np.abs(np.diff(wide, axis=0))
    change, largest = differ.mean((1, 2, 3)), differ.max((1, 2, 3))
    grey = wide.mean(-1, dtype=np.float32)
    moved = motion(grey)
    new = wide if first else wide[1:]
    highest, lowest = new.max((1, 2)), new.min((1, 2))  # of each colour
    if first:
        change, largest = np.concatenate([[0.0], change]), np.concatenate([[0], largest])
        moved = np.concatenate([np.zeros((1, moved.shape[1]), np.float32), moved])
    pixels = (frames if first else frames[1:]).max((0, 3))
    return (change, largest), (highest.max(1), (highest - lowest).max(1)), moved, pixels


def motion(grey_Thw: np.ndarray) -> np.ndarray:
    """Return how each frame but the first moved from the one before it, (T - 1, 8) float32.

    Where pixels changed, a motion by (u, v) changes them by about -(u, v) times their gradient. The features are u and
    v by least squares, the correlations they come from, the change's size, its sign and where it is.
    """
    before, after = grey_Thw[:-1], grey_Thw[1:]
    change = after - before
    change = np.where(np.abs(change) > NOISE, change, 0)
    down, right = np.gradient((after + before) / 2, axis=(1, 2))
    height, width = change.shape[1:]
    weight = np.abs(change)
    power, total = (change**2).sum((1, 2)) + 1, weight.sum((1, 2)) + 1
    columns = []
    for slope in (right, down):
        energy = (slope**2 * (weight > 0)).sum((1, 2)) + 1
        product = -(slope * change).sum((1, 2))
        columns += [product / np.sqrt(energy * power), np.clip(product / energy, -2, 2)]
    columns += [np.log1p(total / (height * width)), change.sum((1, 2)) / total]
    columns += [(weight.sum(1) * np.linspace(-1, 1, width)).sum(1) / total]
    columns += [(weight.sum(2) * np.linspace(-1, 1, height)).sum(1) / total]
    return np.stack(columns, axis=-1).astype(np.float32)


def _colours(frames: np.ndarray) -> np.ndarray:
    codes = (frames[..., 0] // 64 * BINS + frames[..., 1] // 64) * BINS + frames[..., 2] // 64
    return np.bincount(codes.ravel(), minlength=BINS**3).reshape(BINS, BINS, BINS).astype(float)


def _thumb(frame_hwC: np.ndarray) -> np.ndarray:
    """Return a grey thumbnail (THUMB * THUMB,) uint8: means of areas."""
    grey = frame_hwC.mean(-1)
    for axis in (0, 1):
        size = grey.shape[axis]
        edges = (np.arange(min(THUMB, size)) * size // min(THUMB, size)).astype(int)
        grey = np.add.reduceat(grey, edges, axis) / np.diff([*edges, size]).reshape((-1, 1) if axis == 0 else (1, -1))
    shown = np.zeros((THUMB, THUMB), np.uint8)
    shown[: grey.shape[0], : grey.shape[1]] = np.round(grey)
    return shown.ravel()
