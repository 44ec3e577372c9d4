"""How a store's frames are packed: one codec for all records of a store, chosen by name or by a probe.

``raw`` and ``zstd`` keep frames as they are, and ArrayRecord packs the whole record or not. The others pack the frames
of each record (16) by themselves, so a window still reads one record or two. T frames, H W C image.
"""

import math
import struct
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from reverie.data.records import Records, new_records
from reverie.errors import Damaged, ReverieError, did_you_mean

AUTO, ZSTD = "auto", "zstd"
SAVED = 0.25  # of the size: what a codec that reads more slowly must save
LEAST = 1000.0  # frames per second that one core must read
PROBED = 2**25  # bytes of frames that a probe packs, at most
LARGEST = 2**30  # bytes of frames of a record: a picture of some kilobytes may claim any size
BLOCK = 2**16  # bytes of a block of an ArrayRecord file
SLACK = 64  # pixels: decoders round sides up to whole blocks


@dataclass(frozen=True)
class Plain:
    """Frames as they are. packing: ArrayRecord's option for the record. nanoseconds: to read a byte of frames."""

    packing: str
    nanoseconds: float
    lossless = True

    def encode(self, frames: np.ndarray) -> memoryview:
        """Return frames uint8 (T,H,W,C) as they are, without a copy if they lie in order."""
        return np.ascontiguousarray(frames).data.cast("B")

    def decode(self, data: memoryview, shape: Sequence[int]) -> np.ndarray:
        """Return the frames of this shape; Damaged if the number of bytes is wrong."""
        if len(data) != np.prod(shape):
            raise Damaged(f"it has {len(data)} bytes of frames, not {np.prod(shape)}")
        return np.frombuffer(data, np.uint8).reshape(shape)


@dataclass(frozen=True)
class Coded:
    """Frames as pictures of FFmpeg. pixels: their format. tall: all frames of a record are stacked as one picture.

    nanoseconds: to read a byte of frames.
    """

    encoder: str
    decoder: str
    pixels: str
    nanoseconds: float
    lossless: bool = True
    tall: bool = True
    options: dict[str, str] = field(default_factory=dict)
    packing = "uncompressed"  # a second time would save nothing

    def encode(self, frames: np.ndarray) -> bytes:
        """Return frames uint8 (T,H,W,C) packed: the decoder's data, then packets, each behind its length."""
        _refuse_large(frames.shape)
        pictures = _rgb(frames.reshape(1, -1, *frames.shape[2:]) if self.tall else frames)
        try:
            parts = self._packets(pictures)
        except FFmpegError as error:
            height, width = frames.shape[1:3]
            raise ReverieError(
                f"frames of {height} x {width} cannot be packed by {self.encoder} ({error}); choose --codec zstd."
            ) from None
        return b"".join(piece for part in parts for piece in (struct.pack("<I", len(part)), part))

    def _packets(self, pictures: np.ndarray) -> list[bytes]:
        context = av.CodecContext.create(self.encoder, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.height, context.width = pictures.shape[1:3]
        context.pix_fmt, context.time_base, context.gop_size = self.pixels, Fraction(1, 15), len(pictures)
        context.options, context.thread_count = self.options, 1  # the same bytes on any number of cores
        packets = []
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=self.pixels)
            frame.pts = number
            packets += context.encode(frame)
        packets += context.encode(None)
        return [context.extradata or b"", *map(bytes, packets)]

    def decode(self, data: memoryview, shape: Sequence[int]) -> np.ndarray:
        """Return the frames of this shape; Damaged if their number or size is wrong."""
        _refuse_large(shape)
        count, height, width, channels = shape
        if self.tall:
            count, height = 1, count * height
        extra, *packets = _parts(data)
        context = av.CodecContext.create(self.decoder, "r")
        assert isinstance(context, av.VideoCodecContext)
        context.height, context.width, context.pix_fmt = height, width, self.pixels
        context.extradata, context.thread_count = extra or None, 1
        context.options = {"max_pixels": str((height + SLACK) * (width + SLACK)), "err_detect": "explode"}
        pictures = []
        try:
            for packet in [*packets, None]:
                pictures += context.decode(av.Packet(packet) if packet else None)
                if any((p.height, p.width) != (height, width) for p in pictures) or len(pictures) > count:
                    raise Damaged("its frames have another size or number")
        except (FFmpegError, ValueError) as error:
            raise Damaged(f"its frames cannot be decoded ({error})") from None
        if len(pictures) != count:
            raise Damaged(f"it has {len(pictures)} pictures, not {count}")
        frames = np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])
        return frames[..., :channels].reshape(shape)


# Nanoseconds are rounded from docs/data.md. They are constants, since a choice by the clock would give the same command
# other bytes on another day.
# fmt: off
CODECS: dict[str, Plain | Coded] = {
    "raw": Plain("uncompressed", 1.0),
    ZSTD: Plain("zstd:3", 5.0),
    "png": Coded("png", "png", "rgb24", 20.0),
    "ffv1": Coded("ffv1", "ffv1", "bgr0", 75.0),
    # With crf and a look ahead, 2 of 100 records had other bytes when they were packed again.
    "h264": Coded("libx264", "h264", "yuv444p", 25.0, lossless=False, tall=False,
                  options={"qp": "18", "preset": "veryfast", "tune": "zerolatency"}),
}
# fmt: on


def codec_of(name: str) -> Plain | Coded:
    """Return a codec by its name; ReverieError if there is none."""
    if name not in CODECS:
        raise ReverieError(f"there is no codec '{name}'.{did_you_mean(str(name), CODECS)}")
    return CODECS[name]


def probed(samples: Iterable[np.ndarray]) -> tuple[str, str]:
    """Return the lossless codec for frames like these, and a line that says why; samples: frames of records, each.

    Of codecs that read fast enough, from the fastest to the slowest, each is taken that saves a quarter of the size.
    """
    samples = list(samples)
    raw, count = sum(frames.nbytes for frames in samples), sum(len(frames) for frames in samples)
    best, least, said = "", float("inf"), []
    for name, codec in sorted(CODECS.items(), key=lambda item: item[1].nanoseconds):
        if not codec.lossless:
            continue
        size, seconds = _measured(codec, samples)
        said.append(f"{name} {raw / size:.1f} times smaller, {count / seconds:.0f} frames/s")
        if size <= least * (1 - SAVED) and (1e9 / codec.nanoseconds / (raw / count) >= LEAST or name == ZSTD):
            best, least = name, size
    return best, f"codec: {best} ({'; '.join(said)})"


def _measured(codec: Plain | Coded, samples: list[np.ndarray]) -> tuple[int, float]:
    """Return the bytes that records of these frames take, and the seconds that reading them takes."""
    packed = [bytes(codec.encode(frames)) for frames in samples]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.array_record"
        writer = new_records(path, codec.packing)
        for data in packed:
            writer.write(data)
        writer.close()
        records, began = Records(path), time.perf_counter()
        for number, frames in enumerate(samples):
            codec.decode(memoryview(records[number]), frames.shape)
        seconds = time.perf_counter() - began
        if codec.packing == "uncompressed":
            return sum(map(len, packed)), seconds
        file = path.read_bytes()  # records, zeros up to a whole block, and a block with the table of contents
        return len(file[: len(file.rstrip(b"\0")) // BLOCK * BLOCK].rstrip(b"\0")), seconds


def _refuse_large(shape: Sequence[int]) -> None:
    if (size := math.prod(shape)) > LARGEST:
        raise Damaged(f"a record of {size} bytes of frames is more than {LARGEST}; choose --codec zstd.")


def _rgb(frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frames if frames.shape[-1] == 3 else np.repeat(frames, 3, axis=-1))


def _parts(data: memoryview) -> list[bytes]:
    """Return the bytes that follow each length; Damaged if some are missing."""
    parts, at = [], 0
    while at < len(data):
        if at + 4 > len(data) or at + 4 + (size := struct.unpack_from("<I", data, at)[0]) > len(data):
            raise Damaged("its frames are cut short")
        parts.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if not parts:
        raise Damaged("it has no frames")
    return parts
