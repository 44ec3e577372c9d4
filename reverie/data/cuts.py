"""Detection of cuts between scenes. H W C image.

A cut is a single large change: larger than the changes right before and right after it. Fast motion changes as much,
but repeatedly. A change is measured in three ways: per pixel; after the best shift of one picture over the other; and
by colours alone, independent of position. On each side, any of the three may show the cut.

A change is no cut if the same view is seen before and after it (a flash, a menu, a glance aside), in whatever light.
Of several others within the shortest scene, at most the clearest one is a cut. In doubt the scene continues, and no
frame is lost. Results are in docs/log.md, the test films in tests/motions.py.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

SIDE = 32  # pixels of a side of the compared pictures
AROUND = 4  # changes before and after a cut that it must exceed
ALONE = 1.5  # factor of that, on each side, in one of the three measures
CERTAIN = 4.0  # in pixels and colours, without another change nearby, for cuts close to the start or end of a film
DARK = 64.0  # of 255: for darker pictures the threshold falls in proportion, down to a quarter
QUIET = 2.0  # of 255: added to every change, so that compression noise never stands out
FLAT = 4.0  # of 255: pictures with no more contrast are blank; up to AROUND of them are skipped
ALIKE = 0.25  # share of a picture's contrast: pictures of one view differ by less
OVERLAP = 0.3  # share of the area: the least overlap of two compared pictures
SHARED = 0.5  # the same for one view, since different places of a game share sky and ground

T = TypeVar("T")


@dataclass
class _Step(Generic[T]):
    """One item, its small picture (SIDE,SIDE,3) float32, its change from the previous one, and the decision."""

    item: T
    picture: np.ndarray
    changes: np.ndarray  # (3,): pixels, best fit, colours
    alone: float = 0.0  # how much it exceeds its neighbours in the clearest measure; 0: no cut
    certain: bool = False


def cuts(frames: Iterable[tuple[T, np.ndarray]], threshold: float, apart: int = 1) -> Iterator[tuple[T, bool]]:
    """Yield every item with whether its frame (H,W,C) uint8 starts a new scene; the first one does not.

    threshold: the least change of a cut, 0..255 per pixel. apart: frames of the shortest scene.
    Looks ``max(apart, AROUND) + AROUND`` frames ahead.
    """
    reach = max(apart, AROUND)
    steps: deque[_Step[T]] = deque()  # from ``reach`` before the next to be yielded, to as many and AROUND after it
    coming, index, judged, ended = _steps(frames), 0, 0, False  # index, judged: places in steps
    count = 0  # frames yielded so far
    while True:
        while not ended and len(steps) <= index + reach + AROUND:
            if (new := next(coming, None)) is None:
                ended = True
            else:
                steps.append(new)
        if index == len(steps):
            return
        while judged < len(steps) and (ended or judged + AROUND < len(steps)):
            _judge(steps, judged, threshold)
            judged += 1
        left = len(steps) - index  # frames to the end, if it is in sight
        yield steps[index].item, _is_cut(steps, index, apart, reach, count < apart or (ended and left < apart))
        count, index = count + 1, index + 1
        if index > reach + AROUND:
            steps.popleft()
            index, judged = index - 1, judged - 1


def _steps(frames: Iterable[tuple[T, np.ndarray]]) -> Iterator[_Step[T]]:
    last = spectrum = None
    overlooked = 0
    for item, frame in frames:
        picture = np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
        if picture.std((0, 1)).max() < FLAT and overlooked < AROUND:
            overlooked += 1
            yield _Step(item, picture if last is None else last, np.zeros(3))
            continue
        overlooked, before = 0, spectrum
        spectrum = _spectrum(picture)
        if last is None or before is None:
            changes = np.zeros(3)
        else:
            colours = [np.sort(each.reshape(-1, 3), axis=0) for each in (last, picture)]
            pixels = float(np.abs(picture - last).mean())
            fit = pixels if pixels <= QUIET else _misfit(before, spectrum)
            changes = np.array([pixels, fit, float(np.abs(colours[1] - colours[0]).mean())])
        last = picture
        yield _Step(item, picture, changes)


def _judge(steps: deque[_Step[T]], place: int, threshold: float) -> None:
    """Store how much the change of one step exceeds those around it."""
    step = steps[place]
    light = max(float(steps[near].picture.max()) for near in (max(0, place - 1), place)) / DARK
    if step.changes[0] <= threshold * min(max(light, 0.25), 1.0):
        return
    before = [steps[i].changes for i in range(max(0, place - AROUND), place)] or [np.zeros(3)]
    after = [steps[i].changes for i in range(place + 1, min(len(steps), place + AROUND + 1))] or [np.zeros(3)]
    ratios = np.array([step.changes / (np.max(side, axis=0) + QUIET) for side in (before, after)])
    alone = float(ratios.max(1).min())
    if alone > ALONE:
        step.alone, step.certain = alone, bool(ratios[:, [0, 2]].min() > CERTAIN)


def _is_cut(steps: deque[_Step[T]], place: int, apart: int, reach: int, at_an_end: bool) -> bool:
    step = steps[place]
    if not step.alone or (at_an_end and not step.certain):
        return False
    near = (other for other in range(max(0, place - apart + 1), min(len(steps), place + apart)) if other != place)
    rivals = (other for other in near if steps[other].alone)
    better = (other for other in rivals if at_an_end or (steps[other].alone, -other) > (step.alone, -place))
    return not _is_aside(steps, place, reach) and all(_is_aside(steps, other, reach) for other in better)


def _is_aside(steps: deque[_Step[T]], place: int, reach: int) -> bool:
    """Return whether one view is seen before and after a step."""
    before, after = _whitened(steps[place - 1].picture), _whitened(steps[place].picture)
    earlier = [steps[i].picture for i in range(max(0, place - reach), place)]
    later = [steps[i].picture for i in range(place, min(len(steps), place + reach))]
    pairs = [(before, _whitened(picture)) for picture in later] + [(_whitened(picture), after) for picture in earlier]
    return any(_misfit(_spectrum(a), _spectrum(b), SHARED) <= ALIKE for a, b in pairs)


def _whitened(picture: np.ndarray) -> np.ndarray:
    """Return a picture with each colour normalised to mean 0 and standard deviation 1."""
    return (picture - picture.mean((0, 1))) / np.maximum(picture.std((0, 1)), FLAT)


def _spectrum(picture: np.ndarray) -> np.ndarray:
    """Return the Fourier transform of three colours and of their squares, with room to move: (2 SIDE, SIDE + 1, 4)."""
    planes = np.concatenate([picture, (picture**2).sum(-1, keepdims=True)], axis=-1)
    return np.fft.rfft2(planes, (2 * SIDE, 2 * SIDE), axes=(0, 1))


_WINDOW = np.fft.rfft2(np.ones((SIDE, SIDE)), (2 * SIDE, 2 * SIDE))
_AREA = np.rint(np.fft.irfft2(_WINDOW * _WINDOW.conj(), (2 * SIDE, 2 * SIDE)))  # in which two overlap, by their shift


def _misfit(a: np.ndarray, b: np.ndarray, overlap: float = OVERLAP) -> float:
    """Return the root mean square difference in the overlap of two pictures, at the best shift."""
    enough = overlap * SIDE**2 <= _AREA
    crossed = (a[..., :3] * b[..., :3].conj()).sum(-1)
    squares = a[..., 3] * _WINDOW.conj() + _WINDOW * b[..., 3].conj()
    total = np.fft.irfft2(squares - 2 * crossed, (2 * SIDE, 2 * SIDE))[enough] / _AREA[enough]
    return math.sqrt(max(0.0, float(total.min())) / 3)
