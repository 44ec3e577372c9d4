"""The frames of a video file with their times: one stream, in display order, without damaged pictures.

Order and number are those of the decoder, as in ``ffmpeg -fps_mode passthrough``: packets that an edit list hides and
frames before the first key frame are dropped. Times are the decoder's best estimate (``_Clock``), made to ascend.

A frame is damaged if its packet or picture is marked so, or if its packet does not decode. So are the frames after it
up to the next key frame, in *decoding* order, because they may refer to the damaged picture.
"""

import math
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
from av.stream import Discard, Disposition
from av.video.frame import PictureType

LARGEST = 2**25  # pixels of a picture: 8K is just within. A gif of 88 KB may claim 16000 x 16000
OPTIONS = {"protocol_whitelist": "file", "max_pixels": str(LARGEST)}  # a playlist named .mp4 must not reach the network
TEXT = {"tty", "bin", "xbin", "adf", "idf"}  # ffmpeg shows any .txt as a film of a terminal
LEAP = 10.0  # seconds: in broadcast streams a longer step is a new clock and no pause (as in ffmpeg)
BACK = 1.0  # seconds: in any file a longer step back is a new clock; a shorter one is an error of the muxer
AHEAD, CLOSE = 3, 0.1  # intervals by which a clock may be ahead of its frames; between those of one that is further
REACH = 20  # packets: in H.264 and HEVC at most 16 frames lie between a picture and one predicted from it
# Share of packets: if fewer have times (small pictures in MPEG-PS), some of these are wrong by some frames.
SPARSE = 0.75
LOOSE = 0.5  # seconds by which the times of such a file are allowed to differ from those of a constant rate
LATEST = 2 * REACH  # packets after which a packet gives no frame any more; some never do, such as VP8's "altref"
DEPENDENT = (PictureType.P, PictureType.B)  # may mark key frames in streams with gradual refresh


class Unusable(Exception):
    """The video cannot be used, for the reason in the message."""


@dataclass(frozen=True)
class Track:
    """The video stream of a file that is used.

    rate: its usual frames per second; span: seconds; aspect: a pixel's width / height; sized: its head states a size.
    packets: the shown ones, usually one per frame. ascending: each has a time of presentation, in decoding order.
    loose: seconds by which a time is to differ from the next expected one, or it is ignored.
    """

    path: Path
    stream: int
    rate: float
    span: float
    aspect: float
    sized: bool
    packets: int = 0
    ascending: bool = False
    loose: float = 0.0


class Shown(NamedTuple):
    """One frame. time: seconds after the first; nan: frames are missing here. frame: None if it is damaged."""

    time: float
    frame: av.VideoFrame | None


@dataclass
class Tally:
    """Counts of a video's frames. missing: times of frames without a picture; leaps: new clocks that were joined."""

    shown: int = 0
    damaged: int = 0
    leaps: int = 0
    missing: list[float] = field(default_factory=list)
    ended: str = ""

    def __str__(self) -> str:
        """Return one line about what was dropped or repaired; "" if nothing was."""
        lost, parts = self.damaged + len(self.missing), []
        if lost:
            parts.append(f"{lost} of {self.shown + len(self.missing)} frames damaged, left out")
        if self.leaps:
            parts.append(f"its clock restarts {self.leaps} times, joined")
        if self.ended:
            parts.append(f"it ends early, after {self.shown} frames ({self.ended})")
        return "; ".join(parts)


def track(path: Path) -> Track:
    """Return the stream to use, from all its time stamps; raises Unusable if there is none.

    Of several streams (a still picture does not count), it is ffmpeg's choice: the default one, then the largest.
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
                # The attached picture is the cover of an audio file.
                if stream.codec_context and not stream.disposition & Disposition.attached_pic
            }
            if not streams:
                raise Unusable("it has no moving pictures, only sound, text or a cover")
            stamps = {index: array("d") for index in streams}
            facts = {index: _facts(stream) for index, stream in streams.items()}
            bare, broadcast = _has(container, FormatFlags.no_timestamps), _has(container, FormatFlags.ts_discont)
            lacking = _read_stamps(container, list(streams.values()), stamps)
    except (FFmpegError, ValueError) as error:
        raise Unusable(f"it is not a video, or damaged ({_reason(error)})") from None
    lasts = {index: np.ptp(times) if len(times := [t for t in stamps[index] if t == t]) else 0.0 for index in facts}
    long = {index: 2 * lasts[index] >= max(lasts.values()) for index in facts}
    index = max(facts, key=lambda i: (long[i] and len(stamps[i]) > 1, facts[i].default, facts[i].area))
    chosen = facts[index]
    if chosen.area > LARGEST:
        raise Unusable(f"its pictures are {chosen.width} x {chosen.height}; at most {LARGEST} pixels can be read")
    times = np.array(stamps[index])
    if bare:  # a stream of H.264 has no times, and its demuxer says 25 of every one; that of MPEG-1 makes some up
        times[:] = np.nan
    timed = float(np.isfinite(times).mean()) if len(times) else 0.0
    rate, span = _rate(times, chosen.average if timed else chosen.coded or chosen.average, broadcast)
    loose = math.inf if bare else LOOSE if timed < SPARSE else 0.0
    ascending = index not in lacking and bool((np.diff(times) > 0).all())
    return Track(path, index, rate, span, chosen.aspect, chosen.area > 0, len(times), ascending, loose)


def frames(one: Track, tally: Tally) -> Iterator[Shown]:
    """Yield the frames of a video in display order, and count into ``tally``; damage never raises."""
    clock = _Clock(one.rate, one.loose)
    try:
        with _opened(one.path) as container:
            clock.broadcast = _has(container, FormatFlags.ts_discont)
            for frame, good in _sound(container, one, clock, tally):
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
    container: InputContainer, one: Track, clock: "_Clock", tally: Tally
) -> Iterator[tuple[av.VideoFrame | None, bool]]:
    """Yield every frame of the decoder with whether it is sound; None for a packet that failed.

    A frame is held until earlier decoded ones are out, since B-frames come out before the damaged picture they refer
    to. Packets that never give a frame (hidden pictures, second fields) delay it only for a limited time. A packet
    carries its number in its time stamp, which the decoder copies to its frame. (PyAV's ``copy_opaque`` calls Python
    from the decoder's threads, and deadlocks if Python waits for them.)

    Where times ascend although frames are reordered, they are those of decoding (H.264 in MXF): the next frame has the
    earliest of them.
    """
    stream = container.streams[one.stream]
    assert isinstance(stream, av.VideoStream)
    context, damage, held = stream.codec_context, _Damage(), deque()
    # With frame threads, the result for broken files depends on timing.
    context.thread_type, context.options = "SLICE", {"max_pixels": str(LARGEST)}
    waiting: dict[int, _Stamps] = {}  # packets that have given no frame yet, by their number in decoding order
    swapped = one.ascending and context.has_b_frames
    unused: deque[_Stamps] = deque(maxlen=REACH)  # where they are swapped, those that no frame has had yet
    for number, packet in enumerate(container.demux(stream)):
        flush = not packet.size
        if flush and packet.dts is not None:
            continue  # an empty chunk (in AVI a repeated frame) would end the decoder
        if not flush:
            waiting[number] = _Stamps(packet.pts, packet.dts, packet.time_base, packet.is_discard)
            unused.append(waiting[number])
            packet.pts = number
            if packet.is_corrupt:
                damage.at(number)
        earliest = max(0, number + 1 - max(1, context.thread_count))  # the first packet that an error may belong to
        for frame in _decoded(packet, flush, damage, earliest):
            own = number if frame.pts is None else frame.pts
            stamps = waiting.pop(own, UNKNOWN)
            frame.pts = (unused.popleft() if swapped and unused else stamps).pts
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
        tally.missing = [time for time in lost if time > 0]  # players show nothing before the first intact picture


def _decoded(packet: av.Packet, flush: bool, damage: "_Damage", earliest: int) -> Iterator[av.VideoFrame]:
    """Yield the decoder's frames for a packet, or the rest at the end; a failure may stem from ``earliest`` on."""
    for call in range(1024 if flush else 1):
        try:
            found = packet.decode()
        except EndOfStream:
            return
        except FFmpegError:
            damage.fails(earliest)
            continue
        if call and found:
            damage.fails(earliest)  # at the end, a call gives all remaining frames unless an error ends it
        yield from found


class _Damage:
    """The frames that damage reaches, by their packets' numbers in decoding order."""

    def __init__(self):
        self.first: int | None = None
        self.failed = False
        self._marks: list[int] = []

    def at(self, number: int) -> None:
        """Note that the picture of a packet is damaged."""
        self.first = number if self.first is None else min(self.first, number)
        self._marks.append(number)

    def fails(self, number: int) -> None:
        """Note that a packet gave no frame."""
        self.failed = True
        self.at(number)

    def spares(self, number: int, frame: av.VideoFrame) -> bool:
        """Return whether the next displayed frame is sound; a sound key frame ends all damage decoded before it."""
        if frame.key_frame and frame.pict_type not in DEPENDENT:
            self._marks = [mark for mark in self._marks if mark >= number]
        return not any(mark <= number for mark in self._marks)


class _Clock:
    """Ascending seconds after the first frame, from ffmpeg's two clocks, of which one may be missing or wrong.

    It uses presentation times, unless they are missing (AVI) or failed to ascend more often than decoding times. A
    frame without either follows the previous one by the usual interval, and so does one whose time does not ascend.
    Later ones, whose times ascend but have passed on this clock, keep their own distance, or less if it is far ahead.
    """

    def __init__(self, rate: float, loose: float = 0.0):
        self.broadcast, self.leaps = False, 0
        self._interval, self._loose, self._offset = 1 / rate, loose, 0.0
        self._known = False  # whether any time was
        self._last: float | None = None
        self._before: list[float | None] = [None, None]
        self._faults = [0, 0]

    def shown(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame."""
        both = [_seconds(stamp, frame.time_base) for stamp in (frame.pts, frame.dts)]
        gaps: list[float] = [0.0, 0.0]
        for which, stamp in enumerate(both):
            if stamp is not None:
                before = self._before[which]
                gaps[which] = 0.0 if before is None else stamp - before
                self._faults[which] += before is not None and stamp <= before
                self._before[which] = stamp
        pts, dts = both
        chosen = 0 if pts is not None and (dts is None or self._faults[0] <= self._faults[1]) else 1
        time = both[chosen]
        follows = 0.0 if self._last is None else self._last + self._interval
        if time is not None and not self._known:
            self._offset, self._known = follows - time, True
        if self._last is None:
            self._last = 0.0
            return 0.0
        step = self._interval if time is None else time + self._offset - self._last
        if time is not None and self._loose < math.inf and (step < -BACK or (self.broadcast and step > LEAP)):
            self.leaps += 1
            self._offset, step = follows - time, self._interval
        gap = gaps[chosen]
        if abs(step - self._interval) <= self._loose or (step <= 0 and gap <= 0):
            step = self._interval
        elif step <= 0:
            step = min(gap, self._interval) if -step < AHEAD * self._interval else CLOSE * self._interval
        self._last += step
        return self._last

    def of(self, time: float) -> float:
        """Return the time on this clock of a time stamp without a frame."""
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
    coded: float
    aspect: float

    @property
    def area(self) -> int:
        return self.width * self.height


def _facts(stream: av.VideoStream) -> _Facts:
    width, height, aspect = stream.codec_context.width, stream.codec_context.height, stream.sample_aspect_ratio
    default, coded = bool(stream.disposition & Disposition.default), float(stream.codec_context.framerate or 0)
    return _Facts(default, width, height, float(stream.average_rate or 0), coded, _plausible(aspect))


def _plausible(aspect) -> float:
    return float(aspect) if aspect and 0.1 <= aspect <= 10 else 1.0


def _opened(path: Path) -> InputContainer:
    # "file:", since a name may contain a colon
    container = av.open(f"file:{path.resolve()}", options=OPTIONS, metadata_errors="ignore")
    container.flags &= ~Flags.gen_pts.value  # PyAV's default generates wrong times for AVI's B-frames
    for stream in container.streams:
        if stream.type != "video":
            stream.discard = Discard.all
    return container


def _read_stamps(container: InputContainer, streams: list[av.VideoStream], stamps: dict[int, array]) -> set[int]:
    """Note the time of every packet that is shown, as far as the file can be read; nan where it has none.

    Returns the streams of which not every packet has a time of presentation.
    """
    lacking = set()
    try:
        for packet in container.demux(streams):
            if packet.size and not packet.is_discard:
                time = _Stamps(packet.pts, packet.dts, packet.time_base).time
                stamps[packet.stream_index].append(float("nan") if time is None else time)
                lacking |= {packet.stream_index} if packet.pts is None else set()
    except (FFmpegError, ValueError):
        if not any(stamps.values()):
            raise
    return lacking


def _rate(stamps: np.ndarray, average: float, broadcast: bool) -> tuple[float, float]:
    """Return the usual frames per second, from all time stamps (T,), and the seconds that they cover.

    For variable rates, from typical intervals. The declared average is exact if it agrees, and absurd in some files.
    Where few packets have times, an interval is a share of the time between two, and imprecise.
    """
    places = np.flatnonzero(np.isfinite(stamps))
    known, sparse = stamps[places], len(places) < SPARSE * len(stamps)
    gaps = np.diff(known) / np.diff(places) if sparse else np.diff(np.unique(known))
    gaps = gaps[gaps > 0]
    usual = gaps[(gaps > 0.5 * np.median(gaps)) & (gaps < 1.5 * np.median(gaps))] if gaps.size else gaps
    measured = 1 / float(usual.mean()) if usual.size else average or 25.0
    agrees = 1 / 3 < average / measured < 3 if sparse else abs(average / measured - 1) < 0.02
    rate = min(max(average if agrees else measured, 0.05), 240.0)
    if len(known) < len(stamps):
        return rate, len(stamps) / rate
    parts = np.split(known, np.flatnonzero(np.diff(known) < -BACK) + 1)
    steps = np.concatenate([np.diff(np.sort(part)) for part in parts])
    return rate, float(steps[(steps <= LEAP) | (not broadcast)].sum()) + len(parts) / rate


def _has(container: InputContainer, flag: FormatFlags) -> bool:
    return bool(container.format.flags & flag.value)


def _seconds(stamp: int | None, base) -> float | None:
    return None if stamp is None or not base else float(stamp * base)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
