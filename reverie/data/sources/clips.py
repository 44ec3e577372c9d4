"""Videos inside other formats: every frame as it is, by number or by time, at its own size.

Nothing is resampled: lengths are those of the tables beside them. Damaged frames are None. H W C image.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from reverie.data.sources import decode, film
from reverie.data.sources.decode import Shown, Tally, Track, Unusable
from reverie.errors import Damaged

HIDDEN = (".webm", ".ivf")  # may hold pictures that are never shown: their frames are counted by decoding


def track(path: Path) -> Track:
    """Return the stream of a video; Damaged if there is none."""
    try:
        return decode.track(path)
    except Unusable as error:
        raise Damaged(str(error)) from None


def count(one: Track) -> int:
    """Return how many frames a video shows."""
    if one.path.suffix.lower() not in HIDDEN:
        return one.packets
    return sum(1 for _ in decode.frames(one, Tally()))


def pictures(one: Track) -> Iterator[np.ndarray | None]:
    """Yield all frames of a video."""
    scaler = VideoReformatter()
    for shown in decode.frames(one, Tally()):
        yield None if shown.frame is None else film.whole(shown.frame, one.aspect, scaler)


class Reel:
    """A video of which frames are taken by ascending times, one recording after the other."""

    def __init__(self, path: Path):
        self.track = track(path)
        self._scaler = VideoReformatter()
        self._begin()

    def _begin(self) -> None:
        known = (shown for shown in decode.frames(self.track, Tally()) if shown.time == shown.time)
        self._frames: Iterator[Shown] = known
        self._now = next(known, None)
        self._next = next(known, None)

    def at(self, times: np.ndarray) -> Iterator[np.ndarray | None]:
        """Yield the frame nearest to each time (T,) in seconds; None where none is within half a frame's interval."""
        slack = 0.5 / self.track.rate
        if len(times) and self._now is not None and self._now.time > times[0] + slack:
            self._begin()
        for time in times.tolist():
            while self._now is not None and self._next is not None and self._nearer(time):
                self._now, self._next = self._next, next(self._frames, None)
            near = self._now is not None and abs(self._now.time - time) <= slack
            frame = self._now.frame if self._now is not None and near else None
            yield None if frame is None else film.whole(frame, self.track.aspect, self._scaler)

    def _nearer(self, time: float) -> bool:
        assert self._now is not None and self._next is not None
        return abs(self._next.time - time) <= abs(self._now.time - time)
