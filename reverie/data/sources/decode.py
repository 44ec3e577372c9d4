"""The packets of a video file as frames with times: one stream, in the order of showing, without damaged pictures.

Order and number are those of the decoder, as in ``ffmpeg -fps_mode passthrough``: packets that an edit list hides and
frames before the first key frame are not shown. Times are the decoder's best guess (``_Clock``), made to ascend.

A frame is damaged if its packet or picture is marked so, if its packet did not decode, or if it came after such a one
and before the next key frame, in the order of *decoding*: then it may refer to the damage, whenever it is shown.
"""

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.container.core import Flags
from av.error import EOFError as EndOfStream
from av.error import FFmpegError
from av.format import Flags as FormatFlags
from av.stream import Discard, Disposition, Stream
from av.video.frame import PictureType

LARGEST = 2**25  # pixels of a picture: 8K is just within. A gif of 88 KB may claim 16000 x 16000
OPTIONS = {"protocol_whitelist": "file", "max_pixels": str(LARGEST)}  # a playlist named .mp4 must not reach the network
TEXT = {"tty", "bin", "xbin", "adf", "idf"}  # ffmpeg shows any .txt as a film of a terminal
LEAP = 10.0  # seconds: in streams made for broadcasting, a longer step is a new clock, not a pause (as for ffmpeg)
BACK = 1.0  # seconds: in any file, a step back by more is a new clock; by less, a slip of the muxer
REACH = 20  # packets: H.264 and HEVC put at most 16 frames between a picture and what is predicted from it
LATEST = 2 * REACH  # packets later no frame comes of a packet any more: some are never shown, as VP8's "altref"
DEPENDENT = (PictureType.P, PictureType.B)  # may be marked as key frames where a stream refreshes itself bit by bit


class Unusable(Exception):
    """Why a video cannot be used."""


@dataclass(frozen=True)
class Track:
    """The stream of a file that is shown.

    rate: its usual frames per second; span: seconds; aspect: a pixel's width / height; sized: its head tells a size.
    packets: those that are shown, as a rule one a frame.
    """

    path: Path
    stream: int
    rate: float
    span: float
    aspect: float
    sized: bool
    packets: int = 0


class Shown(NamedTuple):
    """One frame. time: seconds after the first; frame: None where it is damaged. Time nan: frames are missing here."""

    time: float
    frame: av.VideoFrame | None


@dataclass
class Tally:
    """What became of a video's frames. missing: times of frames that no picture came of; leaps: new clocks joined."""

    shown: int = 0
    damaged: int = 0
    leaps: int = 0
    missing: list[float] = field(default_factory=list)
    ended: str = ""

    def __str__(self) -> str:
        """Return what was left out or repaired, in one line; "" if nothing was."""
        lost, parts = self.damaged + len(self.missing), []
        if lost:
            parts.append(f"{lost} of {self.shown + len(self.missing)} frames damaged, left out")
        if self.leaps:
            parts.append(f"its clock starts anew {self.leaps} times, joined")
        if self.ended:
            parts.append(f"it ends early, after {self.shown} frames ({self.ended})")
        return "; ".join(parts)


def track(path: Path) -> Track:
    """Return the stream that is shown, by all its time stamps; Unusable if there is none.

    Of several that last (a still picture does not), ffmpeg's choice: the default one, then the largest.
    """
    if not path.stat().st_size:
        raise Unusable("the file is empty")
    stamps: dict[int, array] = {}
    try:
        with _opened(path) as container:
            if container.format.name in TEXT:
                raise Unusable("it is text")
            streams = {
                stream.index: stream
                for stream in container.streams.video
                if stream.codec_context and not stream.disposition & Disposition.attached_pic  # the cover of a sound
            }
            if not streams:
                raise Unusable("it has no moving pictures, only sound, text or a cover")
            stamps = {index: array("d") for index in streams}
            facts = {index: _facts(stream) for index, stream in streams.items()}
            broadcast = _broadcast(container)
            _read_stamps(container, list(streams.values()), stamps)
    except (FFmpegError, ValueError) as error:
        raise Unusable(f"it is no video, or damaged ({_reason(error)})") from None
    lasts = {index: np.ptp(times) if len(times := [t for t in stamps[index] if t == t]) else 0.0 for index in facts}
    long = {index: 2 * lasts[index] >= max(lasts.values()) for index in facts}
    index = max(facts, key=lambda i: (long[i] and len(stamps[i]) > 1, facts[i].default, facts[i].area))
    chosen = facts[index]
    if chosen.area > LARGEST:
        raise Unusable(f"its pictures are {chosen.width} x {chosen.height}; at most {LARGEST} pixels can be read")
    rate, span = _rate(np.array(stamps[index]), chosen.average, broadcast)
    return Track(path, index, rate, span, chosen.aspect, chosen.area > 0, len(stamps[index]))


def frames(one: Track, tally: Tally) -> Iterator[Shown]:
    """Yield the frames of a video in the order of showing, and count into ``tally``; damage never raises."""
    clock = _Clock(one.rate)
    try:
        with _opened(one.path) as container:
            clock.broadcast = _broadcast(container)
            for frame, good in _sound(container, container.streams[one.stream], clock, tally):
                if frame is None:
                    yield Shown(float("nan"), None)
                    continue
                tally.shown += 1
                tally.damaged += not good
                yield Shown(clock.shown(frame), frame if good else None)
    except (FFmpegError, ValueError) as error:
        tally.ended = _reason(error)
    tally.leaps = clock.leaps


def _sound(
    container: InputContainer, stream: Stream, clock: "_Clock", tally: Tally
) -> Iterator[tuple[av.VideoFrame | None, bool]]:
    """Yield every frame that comes out of the decoder with whether it is sound; None where a packet failed.

    A frame is held until those decoded earlier are out too: B-frames come out before the damaged picture they refer to.
    Of packets that never become a frame of their own (hidden pictures, second fields) only so much is waited for.
    Packets bear their number as a time through the decoder, which hands it on to their frames. (PyAV's way to say so,
    ``copy_opaque``, calls Python from the decoder's threads, and hangs where Python waits for them.)
    """
    assert isinstance(stream, av.VideoStream)
    context, damage, held = stream.codec_context, _Damage(), deque()
    # Threads for whole frames decode what is broken differently from time to time, as the machine is busy or not.
    context.thread_type, context.options = "SLICE", {"max_pixels": str(LARGEST)}
    waiting: dict[int, _Stamps] = {}  # packets no frame has come of, by number in the order of decoding
    for number, packet in enumerate(container.demux(stream)):
        flush = not packet.size
        if flush and packet.dts is not None:
            continue  # an empty chunk, AVI's "as before": to the decoder it would mean the end
        if not flush:
            waiting[number] = _Stamps(packet.pts, packet.dts, packet.time_base, packet.is_discard)
            packet.pts = number
            if packet.is_corrupt:
                damage.at(number)
        earliest = max(0, number + 1 - max(1, context.thread_count))  # the packet an error now may belong to
        for frame in _decoded(packet, flush, damage, earliest):
            own = number if frame.pts is None else frame.pts
            frame.pts = waiting.pop(own, UNKNOWN).pts
            if frame.is_corrupt:
                damage.at(own)
            held.append((own, frame))
        if damage.failed:
            damage.failed = False
            yield None, False
        while held:
            own, frame = held[0]
            if not flush and any(earlier in waiting for earlier in range(max(own - REACH, number - LATEST), own)):
                break
            held.popleft()
            yield frame, damage.spares(own, frame)
    if damage.first is not None:
        late = [stamps for number, stamps in waiting.items() if number >= damage.first and not stamps.hidden]
        lost = [clock.of(stamps.time) for stamps in late if stamps.time is not None]
        tally.missing = [time for time in lost if time > 0]  # before the first whole picture players show nothing


def _decoded(packet: av.Packet, flush: bool, damage: "_Damage", earliest: int) -> Iterator[av.VideoFrame]:
    """Yield what the decoder gives for a packet, or at the end all the rest; what fails began at ``earliest``."""
    for call in range(1024 if flush else 1):
        try:
            found = packet.decode()
        except EndOfStream:
            return
        except FFmpegError:
            damage.fails(earliest)
            continue
        if call and found:
            damage.fails(earliest)  # at the end, a call gives all the rest unless an error ends it
        yield from found


class _Damage:
    """Which frames damage reaches, all by their packets' numbers in the order of decoding."""

    def __init__(self):
        self.first: int | None = None
        self.failed = False
        self._marks: list[int] = []

    def at(self, number: int) -> None:
        """Note that the picture of a packet is not what was filmed."""
        self.first = number if self.first is None else min(self.first, number)
        self._marks.append(number)

    def fails(self, number: int) -> None:
        """Note that a packet gave no frame."""
        self.failed = True
        self.at(number)

    def spares(self, number: int, frame: av.VideoFrame) -> bool:
        """Return whether the next frame shown is sound; a sound key frame ends all damage decoded before it."""
        if frame.key_frame and frame.pict_type not in DEPENDENT:
            self._marks = [mark for mark in self._marks if mark >= number]
        return not any(mark <= number for mark in self._marks)


class _Clock:
    """Seconds after the first frame, ascending: ffmpeg's best guess of two clocks, of which one may be missing or lie.

    A presentation time is used unless such times have failed to ascend more often than decoding times, or is missing
    (AVI); without either, a frame follows the one before by the usual interval.
    """

    def __init__(self, rate: float):
        self.broadcast, self.leaps = False, 0
        self._interval, self._offset = 1 / rate, 0.0
        self._known = False  # whether any time was
        self._last: float | None = None
        self._before: list[float | None] = [None, None]
        self._faults = [0, 0]

    def shown(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame."""
        both = [_seconds(stamp, frame.time_base) for stamp in (frame.pts, frame.dts)]
        for which, stamp in enumerate(both):
            if stamp is not None:
                before = self._before[which]
                self._faults[which] += before is not None and stamp <= before
                self._before[which] = stamp
        pts, dts = both
        time = pts if pts is not None and (dts is None or self._faults[0] <= self._faults[1]) else dts
        follows = 0.0 if self._last is None else self._last + self._interval
        if time is not None and not self._known:
            self._offset, self._known = follows - time, True
        if self._last is None:
            self._last = 0.0
            return 0.0
        step = self._interval if time is None else time + self._offset - self._last
        if time is not None and (step < -BACK or (self.broadcast and step > LEAP)):
            self.leaps += 1
            self._offset, step = follows - time, self._interval
        self._last += max(0.0, step)
        return self._last

    def of(self, time: float) -> float:
        """Return where on this clock a time stamp lies that came with no frame."""
        return time + self._offset


class _Stamps(NamedTuple):
    pts: int | None = None
    dts: int | None = None
    base: Fraction | None = None
    hidden: bool = False

    @property
    def time(self) -> float | None:
        return _seconds(self.pts if self.pts is not None else self.dts, self.base)


UNKNOWN = _Stamps()


class _Facts(NamedTuple):
    default: bool
    width: int
    height: int
    average: float
    aspect: float

    @property
    def area(self) -> int:
        return self.width * self.height


def _facts(stream: av.VideoStream) -> _Facts:
    width, height, aspect = stream.codec_context.width, stream.codec_context.height, stream.sample_aspect_ratio
    default = bool(stream.disposition & Disposition.default)
    return _Facts(default, width, height, float(stream.average_rate or 0), _plausible(aspect))


def _plausible(aspect) -> float:
    return float(aspect) if aspect and 0.1 <= aspect <= 10 else 1.0


def _opened(path: Path) -> InputContainer:
    # "file:", as a name may hold a colon
    container = av.open(f"file:{path.resolve()}", options=OPTIONS, metadata_errors="ignore")
    container.flags &= ~Flags.gen_pts.value  # PyAV's default: times made up for AVI's B-frames, all wrong
    for stream in container.streams:
        if stream.type != "video":
            stream.discard = Discard.all
    return container


def _read_stamps(container: InputContainer, streams: list[av.VideoStream], stamps: dict[int, array]) -> None:
    """Note the time of every packet that is shown, as far as the file can be read; nan where it has none."""
    try:
        for packet in container.demux(streams):
            if packet.size and not packet.is_discard:
                time = _Stamps(packet.pts, packet.dts, packet.time_base).time
                stamps[packet.stream_index].append(float("nan") if time is None else time)
    except (FFmpegError, ValueError):
        if not any(stamps.values()):
            raise


def _rate(stamps: np.ndarray, average: float, broadcast: bool) -> tuple[float, float]:
    """Return the usual frames per second, from all time stamps (T,), and how many seconds they cover.

    Variable rates: typical intervals only. The declared average is exact where it agrees, and absurd in some files.
    """
    known = stamps[np.isfinite(stamps)]
    gaps = np.diff(np.unique(known))
    usual = gaps[(gaps > 0.5 * np.median(gaps)) & (gaps < 1.5 * np.median(gaps))] if gaps.size else gaps
    measured = 1 / float(usual.mean()) if usual.size else average or 25.0
    rate = min(max(average if abs(average / measured - 1) < 0.02 else measured, 0.05), 240.0)
    if len(known) < len(stamps) or not len(known):
        return rate, len(stamps) / rate
    parts = np.split(known, np.flatnonzero(np.diff(known) < -BACK) + 1)
    steps = np.concatenate([np.diff(np.sort(part)) for part in parts])
    return rate, float(steps[(steps <= LEAP) | (not broadcast)].sum()) + len(parts) / rate


def _broadcast(container: InputContainer) -> bool:
    return bool(container.format.flags & FormatFlags.ts_discont.value)


def _seconds(stamp: int | None, base) -> float | None:
    return None if stamp is None or not base else float(stamp * base)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
