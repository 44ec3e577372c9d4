"""One video file: its properties, and its frames at another size and rate.

Frames are found by their time stamps (``decode.py``), never by counting. Sample k of an unbroken stretch shows the last
frame with

    time <= start of the stretch + k / fps + SLACK * interval,      interval = 1 / (the video's own frame rate)

where the slack absorbs rounding by containers (1 ms in webm, 10 ms in gif). In memory are only as many pictures as the
decoder needs to reorder them. H W C image.
"""

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from reverie.data.sources import action_files, decode
from reverie.data.sources.action_files import ActionRows, Row
from reverie.data.sources.decode import Tally, Track, Unusable

SLACK = 0.3  # of a frame's interval; not 0.5: with whole multiples of the interval that would tie at every sample
HOLD = 2.0  # seconds: a picture that stands longer is a break in the recording, not a still
UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED
HD = 1280, 576  # untagged colours of pictures wider or higher are BT.709's, as video players take them

Fit = Literal["crop", "pad", "stretch"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Film:
    """The properties of a video. shape: (height, width) as displayed, upright and with square pixels."""

    path: Path
    name: str
    track: Track
    shape: tuple[float, float]
    rows: ActionRows | None = None

    @property
    def rate(self) -> float:
        """The video's own frames per second."""
        return self.track.rate


class Sample(NamedTuple):
    """One frame at the target size and rate, and the action that led to it. first: it starts an unbroken stretch."""

    picture: np.ndarray
    action: Row
    first: bool


def look(path: Path, name: str) -> Film:
    """Return a video's properties from its time stamps and two decoded frames; raises Unusable."""
    track, tally = decode.track(path), Tally()
    sound = (shown.frame for shown in decode.frames(track, tally) if shown.frame is not None)
    found = list(itertools.islice(sound, 2))
    if not found and not track.sized:
        raise Unusable(f"its pictures have no size, or more than {decode.LARGEST} pixels")
    if len(found) < 2:
        why = f" ({tally})" if str(tally) else ""
        raise Unusable(f"it has {'a single frame' if found else 'no frame that decodes'}{why}")
    return Film(path, name, track, _shape(found[0], track.aspect))


def labelled(film: Film) -> Film:
    """Return the video with the actions of the file beside it; ReverieError if they are invalid.

    If they refer to frame numbers, the whole video is decoded to count its frames.
    """
    path = action_files.beside(film.path)
    if path is None:
        return film
    rows = action_files.read(path)
    if rows.by == "time":
        rows = rows.within(film.track.span, film.rate, path.name)
    else:
        tally = Tally()
        times = [shown.time for shown in decode.frames(film.track, tally) if shown.time == shown.time]
        rows = rows.placed(np.sort(np.array(times + tally.missing)), path.name)
    return dataclasses.replace(film, rows=rows)


def samples(film: Film, fps: float, size: tuple[int, int], fit: Fit) -> Iterator[Sample]:
    """Yield a video at ``fps`` and ``size``, with the most frequent of the actions between two samples.

    Logs one line about what was dropped or repaired.
    """
    scaler, interval, tally = VideoReformatter(), 1 / film.rate, Tally()
    blend = _mean if film.rows is not None and film.rows.actions.dtype.kind == "f" else _usual
    slack, hold = SLACK * min(interval, 1 / fps), max(HOLD, 4 * interval)
    start, k, shown, taken = 0.0, 0, None, []
    for item in itertools.chain(decode.frames(film.track, tally), (None,)):
        coming = (item.time, item.frame) if item is not None and item.frame is not None else None
        joined = shown is not None and coming is not None and coming[0] - shown[0] <= hold
        if shown is not None:
            time, frame = shown
            until = coming[0] if coming is not None and joined else time + interval
            action, picture = film.rows.taken(time, slack) if film.rows else None, None
            while start + k / fps + slack < until:
                picture = _picture(frame, film.track.aspect, scaler, size, fit) if picture is None else picture
                yield Sample(picture, blend(taken or [action]) if k else None, not k)
                taken, k = [], k + 1
            taken.append(action)
        if coming is not None and not joined:
            start, k, taken = coming[0], 0, []
        shown = coming
    if str(tally):
        log.warning("%s: %s", film.name, tally)


def _usual(actions: list[Row]) -> Row:
    """Return the most frequent action; the latest of equally frequent ones."""
    counts = Counter(reversed(actions))
    return max(counts, key=counts.__getitem__)


def _mean(actions: list[Row]) -> Row:
    """Return the mean of the actions that are known."""
    known = [action for action in actions if action is not None]
    return tuple(np.mean(known, axis=0).tolist()) if known else None


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return how to display a frame upright: whether to transpose it, then flip it vertically and horizontally.

    Its display matrix maps the stored point (x, y) to (m[0] x + m[3] y, m[1] x + m[4] y). All eight combinations occur,
    since front cameras mirror. Other matrices are rounded to one of them.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    m = np.frombuffer(bytes(data), np.int32).astype(np.float64)
    across = abs(m[1]) + abs(m[3]) > abs(m[0]) + abs(m[4])
    return (True, m[1] < 0, m[3] < 0) if across else (False, m[4] < 0, m[0] < 0)


def _shape(frame: av.VideoFrame, aspect: float) -> tuple[float, float]:
    """Return (height, width) of the frame as displayed, upright, with square pixels."""
    height, width = float(frame.height), frame.width * aspect
    return (width, height) if _turn(frame)[0] else (height, width)


def whole(frame: av.VideoFrame, aspect: float, scaler: VideoReformatter) -> np.ndarray:
    """Return a frame as uint8 (H,W,3) of its own size, upright and with square pixels."""
    height, width = (max(1, round(side)) for side in _shape(frame, aspect))
    return _picture(frame, aspect, scaler, (height, width), "stretch")


def _picture(
    frame: av.VideoFrame, aspect: float, scaler: VideoReformatter, size: tuple[int, int], fit: Fit
) -> np.ndarray:
    """Return a frame as uint8 (H,W,3) of the target size; every source pixel counts (area averaging)."""
    height, width = size
    if fit == "stretch":
        to = size
    else:
        shape = _shape(frame, aspect)
        scales = [target / seen for target, seen in zip(size, shape, strict=True)]
        scale = max(scales) if fit == "crop" else min(scales)
        to = tuple(max(1, round(seen * scale)) for seen in shape)
    across, down, left = _turn(frame)
    stored = to[::-1] if across else to
    large = frame.width >= HD[0] or frame.height > HD[1]
    colours = Colorspace.ITU709 if large and frame.colorspace == UNTAGGED else None
    scaled = scaler.reformat(
        frame, width=stored[1], height=stored[0], format="rgb24", interpolation="AREA", src_colorspace=colours
    )
    picture = scaled.to_ndarray()
    picture = picture.swapaxes(0, 1) if across else picture
    picture = picture[:: -1 if down else 1, :: -1 if left else 1]
    top, side = max(0, (to[0] - height) // 2), max(0, (to[1] - width) // 2)
    picture = picture[top : top + height, side : side + width]
    rows, columns = height - picture.shape[0], width - picture.shape[1]
    bars = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.ascontiguousarray(np.pad(picture, bars))
