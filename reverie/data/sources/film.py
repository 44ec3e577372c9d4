"""One video file: a first look at it, its decoding, and its frames at another size and rate.

Frames are found by their time stamps, never by counting. Sample k of an unbroken stretch shows the last frame with

    time <= start of the stretch + k / fps + SLACK * interval,      interval = 1 / (the video's own frame rate)

where the slack absorbs what containers round (1 ms in webm, 10 ms in gif). No more than one picture is held.
H W C image.
"""

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import EOFError as EndOfStream
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from reverie.actions import START, UNLABELLED
from reverie.data.sources.action_files import ActionRows

SLACK = 0.3  # of a frame's interval; not 0.5: with whole multiples of the interval that would tie at every sample
HOLD = 2.0  # seconds: a picture that stands longer is a break in the recording, not a still
PROBED = 120  # packets looked at to learn a video's frame rate
OPTIONS = {"protocol_whitelist": "file"}  # a playlist named .mp4 must not make ffmpeg reach for the network

Fit = Literal["crop", "pad", "stretch"]
log = logging.getLogger(__name__)


class Unusable(Exception):
    """Why a video cannot be used."""


@dataclass(frozen=True)
class Film:
    """What the first look at a video told. rate: its own frames per second; shape: (height, width) as it is seen."""

    path: Path
    name: str
    rate: float
    shape: tuple[float, float]
    rows: ActionRows | None = None


class Shown(NamedTuple):
    """One decoded frame. time: seconds after the first; index: frames before it, -1 once some were lost."""

    index: int
    time: float
    frame: av.VideoFrame


class Sample(NamedTuple):
    """One frame at the target size and rate, and the action that led to it. first: nothing before it is connected."""

    picture: np.ndarray
    action: int
    first: bool


def look(path: Path, name: str) -> Film:
    """Open a video and decode two of its frames; Unusable tells why that cannot be."""
    if not path.stat().st_size:
        raise Unusable("the file is empty")
    stamps, frames, average = set(), [], 0.0
    try:
        with _open(path) as container:
            stream = _stream(container)
            average = float(stream.average_rate or 0)
            for packet in container.demux(stream):
                if packet.pts is not None and packet.time_base:
                    stamps.add(float(packet.pts * packet.time_base))
                if len(frames) < 2:
                    frames += packet.decode()
                elif len(stamps) >= PROBED:
                    break
    except (FFmpegError, ValueError) as error:  # damaged further on: what decodes is used
        if len(frames) < 2:
            raise Unusable(f"it is no video, or damaged ({_reason(error)})") from None
    if len(frames) < 2:
        raise Unusable(f"it has {'a single frame' if frames else 'no frame that decodes'}")
    # Variable rates: typical intervals only. The declared average is exact where it agrees, and absurd in some files.
    gaps = np.diff(sorted(stamps))
    usual = gaps[(gaps > 0.5 * np.median(gaps)) & (gaps < 1.5 * np.median(gaps))] if gaps.size else gaps
    measured = 1 / float(usual.mean()) if usual.size else average or 25.0
    rate = average if abs(average / measured - 1) < 0.02 else measured
    return Film(path, name, min(max(rate, 0.05), 240.0), _shape(frames[0]))


def count(path: Path) -> int:
    """Return how many frames a video has, or had before it was damaged, without decoding them."""
    total = 0
    with contextlib.suppress(FFmpegError), _open(path) as container:
        stream = _stream(container)
        if stream.frames:
            return stream.frames
        for packet in container.demux(stream):
            total += packet.size > 0
    return total


def samples(film: Film, fps: float, size: tuple[int, int], fit: Fit) -> Iterator[Sample]:
    """Yield a video at ``fps`` and ``size``; see the head of this file. Of the actions in between, the usual."""
    scaler, interval = VideoReformatter(), 1 / film.rate
    slack, hold = SLACK * min(interval, 1 / fps), max(HOLD, 4 * interval)
    start, k, shown, taken = 0.0, 0, None, []
    for item in itertools.chain(_decode(film), (None,)):
        joined = shown is not None and item is not None and 0 <= item.time - shown.time <= hold
        if shown is not None:
            until = item.time if item is not None and joined else shown.time + interval
            action, picture = _taken(film.rows, shown, slack), None
            while start + k / fps + slack < until:
                picture = _picture(shown.frame, scaler, size, fit) if picture is None else picture
                yield Sample(picture, _usual(taken or [action]) if k else START, not k)
                taken, k = [], k + 1
            taken.append(action)
        if item is not None and not joined:
            start, k, taken = item.time, 0, []
        shown = item


def _decode(film: Film) -> Iterator[Shown | None]:
    """Yield the frames of a video; None where some in between were lost. Damage ends in a warning, not an exception."""
    index, lost, whole, start = 0, False, True, None
    try:
        with _open(film.path) as container:
            stream = _stream(container)
            stream.thread_type = "AUTO"
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except EndOfStream:
                    break
                except FFmpegError as error:
                    if not lost:
                        log.warning("%s is damaged after %d frames (%s)", film.name, index, _reason(error))
                    lost, whole = True, False
                    yield None
                    continue
                for frame in frames:
                    index += 1
                    whole = (
                        whole or frame.key_frame
                    ) and not frame.is_corrupt  # after damage: smeared until a key frame
                    if not whole:
                        yield None
                        continue
                    time = frame.time if frame.time is not None else (index - 1) / film.rate
                    start = time if start is None else start
                    yield Shown(-1 if lost else index - 1, time - start, frame)
    except (FFmpegError, ValueError) as error:
        log.warning("%s ends early, after %d frames (%s)", film.name, index, _reason(error))


def _open(path: Path) -> InputContainer:
    # "file:", as a name may hold a colon
    return av.open(f"file:{path.resolve()}", options=OPTIONS, metadata_errors="ignore")


def _stream(container: InputContainer) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a sound file
            return stream
    raise Unusable("it has no moving pictures, only sound, text or a cover")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _taken(rows: ActionRows | None, shown: Shown, slack: float) -> int:
    if rows is None or (shown.index < 0 and rows.by != "time"):
        return UNLABELLED
    return rows.taken(shown.index, shown.time, slack)


def _usual(actions: list[int]) -> int:
    """Return the most frequent action; of equals, the latest."""
    counts = Counter(reversed(actions))
    return max(counts, key=counts.__getitem__)


def _shape(frame: av.VideoFrame) -> tuple[float, float]:
    """Return (height, width) as the frame is meant to be seen, upright."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def _picture(frame: av.VideoFrame, scaler: VideoReformatter, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Return a frame as uint8 (H,W,3) of the target size; every source pixel counts (area averaging)."""
    height, width = size
    if fit == "stretch":
        to = size
    else:
        scales = [target / seen for target, seen in zip(size, _shape(frame), strict=True)]
        scale = max(scales) if fit == "crop" else min(scales)
        to = tuple(max(1, round(seen * scale)) for seen in _shape(frame))
    stored = to[::-1] if frame.rotation % 180 else to
    scaled = scaler.reformat(frame, width=stored[1], height=stored[0], format="rgb24", interpolation="AREA")
    picture = np.rot90(scaled.to_ndarray(), frame.rotation // 90)
    top, left = max(0, (to[0] - height) // 2), max(0, (to[1] - width) // 2)
    picture = picture[top : top + height, left : left + width]
    rows, columns = height - picture.shape[0], width - picture.shape[1]
    bars = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.ascontiguousarray(np.pad(picture, bars))
