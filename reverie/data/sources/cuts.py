"""Where one scene ends and the next begins. H W C image.

A cut is a change that stands alone: large beside the changes right before and right after it. Fast motion changes as
much, but again and again. A change is measured in three ways: pixel by pixel; after one picture was moved over the
other so that they fit best; by the colours alone, wherever they are. On either side, any of the three may stand out.

A change is no cut if the same view was or will be seen on its other side (a flash, a light, a glance aside), whatever
the light. Of several changes closer together than the shortest scene, at most the one that stands out most is a cut: in
doubt a scene goes on, and no frame is lost. What is found and what is not: docs/log.md; the films: tests/motions.py.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

SIDE = 32  # pixels of a side that are compared
AROUND = 4  # changes before and after a cut, all of which it must exceed
ALONE = 1.5  # so many times, on each side in one of the three measures
CERTAIN = 4.0  # in pixels and colours, and no other near, where a cut leaves little of a film's beginning or end
DARK = 64.0  # of 255: where no pixel is lighter, less is asked of a change, in proportion, down to a quarter
QUIET = 2.0  # of 255: added to every change, so that of two that compression made neither stands out
FLAT = 4.0  # of 255: a picture of no more contrast shows nothing; up to AROUND of them are overlooked
ALIKE = 0.25  # of a picture's contrast: two pictures of one view differ by less
OVERLAP = 0.3  # of a picture's area: the least by which two must overlap to be compared
SHARED = 0.5  # and to be of one view: other places of one game have as much sky and ground alike

T = TypeVar("T")


@dataclass
class _Step(Generic[T]):
    """One item, its small picture (SIDE,SIDE,3) float32, how it differs from the one before, and what was decided."""

    item: T
    picture: np.ndarray
    changes: np.ndarray  # (3,): pixels, best fit, colours
    alone: float = 0.0  # how far it stands out in the clearest measure; 0: no cut
    certain: bool = False


def cuts(frames: Iterable[tuple[T, np.ndarray]], threshold: float, apart: int = 1) -> Iterator[tuple[T, bool]]:
    """Yield every item with whether its frame (H,W,C) uint8 begins a new scene; the very first one does not.

    threshold: how much must change at least, 0..255 per pixel. apart: frames of the shortest scene.
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
    """Say of one step how far its change stands out among those around it."""
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
    near = range(max(0, place - apart + 1), min(len(steps), place + apart))
    rivals = [(steps[other].alone, -other) for other in near if other != place and steps[other].alone]
    if rivals and (at_an_end or max(rivals) > (step.alone, -place)):
        return False
    before, after = _whitened(steps[place - 1].picture), _whitened(step.picture)
    earlier = [steps[i].picture for i in range(max(0, place - reach), place)]
    later = [steps[i].picture for i in range(place, min(len(steps), place + reach))]
    pairs = [(before, _whitened(picture)) for picture in later] + [(_whitened(picture), after) for picture in earlier]
    return all(_misfit(_spectrum(a), _spectrum(b), SHARED) > ALIKE for a, b in pairs)


def _whitened(picture: np.ndarray) -> np.ndarray:
    """Return a picture without its light: each colour with mean 0 and standard deviation 1."""
    return (picture - picture.mean((0, 1))) / np.maximum(picture.std((0, 1)), FLAT)


def _spectrum(picture: np.ndarray) -> np.ndarray:
    """Return the Fourier transform of three colours and of their squares, with room to move: (2 SIDE, SIDE + 1, 4)."""
    planes = np.concatenate([picture, (picture**2).sum(-1, keepdims=True)], axis=-1)
    return np.fft.rfft2(planes, (2 * SIDE, 2 * SIDE), axes=(0, 1))


_WINDOW = np.fft.rfft2(np.ones((SIDE, SIDE)), (2 * SIDE, 2 * SIDE))
_AREA = np.rint(np.fft.irfft2(_WINDOW * _WINDOW.conj(), (2 * SIDE, 2 * SIDE)))  # in which two overlap, by their shift


def _misfit(a: np.ndarray, b: np.ndarray, overlap: float = OVERLAP) -> float:
    """Return the root mean square difference where two pictures overlap, moved so that it is smallest."""
    enough = overlap * SIDE**2 <= _AREA
    crossed = (a[..., :3] * b[..., :3].conj()).sum(-1)
    squares = a[..., 3] * _WINDOW.conj() + _WINDOW * b[..., 3].conj()
    total = np.fft.irfft2(squares - 2 * crossed, (2 * SIDE, 2 * SIDE))[enough] / _AREA[enough]
    return math.sqrt(max(0.0, float(total.min())) / 3)
