"""Frames to files that people look at: GIF, mp4, PNG; clips beside each other; a clip laid out on one sheet.

Frames are uint8, (T, H, W, C) with C 1 or 3. Sizes grow by whole numbers and nearest neighbour, so pixels stay crisp.

Legend: T time, H W C image, B batch (here: clips shown together).
"""

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

from reverie.errors import ReverieError

Out = str | Path | BinaryIO
Clip = tuple[str, np.ndarray]  # label, frames (T, H, W, C)

_BACK, _INK = (16, 17, 22), (214, 218, 228)
_H264 = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")  # whichever this build of ffmpeg has, best first
_SLOWEST_GIF = 2  # hundredths of a second: browsers play anything quicker at 10 frames per second


def enlarge(frames_THWC: np.ndarray, scale: int) -> np.ndarray:
    """Return the frames ``scale`` times as large, as RGB (T, H*scale, W*scale, 3). Raises ReverieError."""
    frames_THWC = np.asarray(frames_THWC)
    if frames_THWC.ndim != 4 or frames_THWC.shape[-1] not in (1, 3) or 0 in frames_THWC.shape:
        raise ReverieError(f"a clip is (T, H, W, 3) or (T, H, W, 1) with a frame at least, not {frames_THWC.shape}.")
    if frames_THWC.dtype != np.uint8:
        raise ReverieError(f"frames are uint8, 0 to 255, not {frames_THWC.dtype}: convert them first.")
    if scale < 1 or scale != int(scale):
        raise ReverieError(f"scale is a whole number from 1, not {scale}.")
    frames_THWC = np.broadcast_to(frames_THWC, (*frames_THWC.shape[:3], 3))
    return repeat(frames_THWC, "t h w c -> t (h y) (w x) c", y=int(scale), x=int(scale))


def scale_of(frames: np.ndarray) -> int:
    """Return by how much to enlarge frames (..., H, W, C), so that small ones are about 64 pixels high."""
    return max(1, round(64 / frames.shape[-3]))


def write_gif(out: Out, frames_THWC: np.ndarray, fps: float, scale: int = 1) -> None:
    """Write a looping GIF to a path or binary file; at most 50 frames per second, the fastest that browsers honour."""
    frames_THWC, fps = enlarge(frames_THWC, 1), _rate(fps)
    ends = np.round(np.arange(1, len(frames_THWC) + 1) * max(100 / fps, _SLOWEST_GIF)).astype(int)
    delays = np.diff(ends, prepend=0) * 10  # rounding the running time, not each delay, keeps the length right
    height, width = frames_THWC.shape[1:3]
    pictures = [
        Image.fromarray(frame)
        .quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        .resize((width * scale, height * scale), Image.Resampling.NEAREST)
        for frame in frames_THWC
    ]

    def save(file: BinaryIO) -> None:
        pictures[0].save(
            file, "GIF", save_all=True, append_images=pictures[1:], duration=delays.tolist(), loop=0, disposal=1
        )

    write_file(out, save)


def write_mp4(out: Out, frames_THWC: np.ndarray, fps: float, scale: int = 1) -> None:
    """Write an H.264 mp4 that browsers play to a path or binary file; odd sizes gain one row or column at the edge."""
    first, fps = enlarge(frames_THWC[:1], scale), _rate(fps)
    height, width = first.shape[1:3]
    even = ((0, height % 2), (0, width % 2), (0, 0))  # 4:2:0 colour halves both sides
    codec = next((name for name in _H264 if name in av.codecs_available), None)
    if codec is None:
        raise ReverieError("this build of PyAV can encode no mp4: install PyAV from PyPI, or write a GIF.")

    def save(file: BinaryIO) -> None:
        with av.open(file, "w", format="mp4") as box:
            stream = box.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = height + height % 2, width + width % 2
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "16", "preset": "veryfast"} if codec == "libx264" else {}
            for frame in frames_THWC:  # enlarged one by one: a minute at 512 pixels is a gigabyte
                picture = np.pad(enlarge(frame[None], scale)[0], even, mode="edge")
                box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            box.mux(stream.encode())

    write_file(out, save)


def write_png(out: Out, picture_HWC: np.ndarray, scale: int = 1) -> None:
    """Write one uint8 picture (H, W, C) to a path or binary file."""
    picture = Image.fromarray(enlarge(np.asarray(picture_HWC)[None], scale)[0])
    write_file(out, lambda file: picture.save(file, "PNG", optimize=True))


def png(picture_HWC: np.ndarray) -> bytes:
    """Return one uint8 picture (H, W, C) as PNG."""
    file = io.BytesIO()
    write_png(file, picture_HWC)
    return file.getvalue()


def side_by_side(clips: Sequence[Clip], scale: int = 4, gap: int = 6) -> np.ndarray:
    """Return one clip (T, H', W', 3): the clips next to each other under their labels; a short one holds its end."""
    shown = _alike(clips, scale)
    length = max(len(frames) for _, frames in shown)
    size = _letters(shown)
    columns = []
    for label, frames in shown:
        head = _text(label, width=frames.shape[2], height=size * 2, size=size, anchor="mm")
        held = frames[np.minimum(np.arange(length), len(frames) - 1)]
        columns.append(np.concatenate([np.broadcast_to(head, (length, *head.shape)), held], axis=1))
    space = np.broadcast_to(np.array(_BACK, np.uint8), (length, columns[0].shape[1], gap, 3))
    return np.concatenate([part for column in columns for part in (column, space)][:-1], axis=2)


def captioned(frames_THWC: np.ndarray, captions: Sequence[str], scale: int = 4) -> np.ndarray:
    """Return a clip (T, H', W', 3) whose frames have their captions below them."""
    shown = enlarge(frames_THWC, scale)
    size = _letters([("", shown)])
    drawn: dict[str, np.ndarray] = {}
    for text in captions:
        if text not in drawn:
            drawn[text] = _text(text, width=shown.shape[2], height=size * 2, size=size, anchor="mm")
    return np.concatenate([shown, np.stack([drawn[text] for text in captions])], axis=1)


def contact_sheet(clips: Sequence[Clip], columns: int = 8, scale: int = 2, gap: int = 4) -> np.ndarray:
    """Return one picture (H', W', 3): a row per clip, its label at the left, ``columns`` moments spread over time."""
    shown = _alike(clips, scale)
    size = _letters(shown)
    longest = max(_font(size).getlength(label) for label, _ in shown)
    margin = int(longest) + 2 * gap + size if longest else gap
    moments = np.round(np.linspace(0, max(len(frames) for _, frames in shown) - 1, columns)).astype(int)
    back = np.array(_BACK, np.uint8)
    rows = []
    for label, frames in shown:
        times = np.minimum(moments, len(frames) - 1)
        strip = np.pad(frames[times] - back, ((0, 0), (0, gap), (0, gap), (0, 0))) + back  # uint8 wraps there and back
        head = _text(label, width=margin, height=strip.shape[1], size=size, anchor="lm", left=gap)
        rows.append(np.concatenate([head, rearrange(strip, "t h w c -> h (t w) c")], axis=1))
    sheet = np.concatenate(rows, axis=0)
    return np.concatenate([np.broadcast_to(back, (gap, sheet.shape[1], 3)), sheet], axis=0)


def _alike(clips: Sequence[Clip], scale: int) -> list[Clip]:
    shown = [(label, enlarge(frames, scale)) for label, frames in clips]
    if not shown:
        raise ReverieError("there is no clip to show: give one (label, frames) at least.")
    sizes = {frames.shape[1:] for _, frames in shown}
    if len(sizes) > 1:
        raise ReverieError(f"clips shown together have one size, these have {sorted(sizes)}: resize them first.")
    return shown


def _letters(clips: Sequence[Clip]) -> int:
    return int(np.clip(clips[0][1].shape[2] // 10, 10, 18))  # pixels; smaller is not read, larger is not needed


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text(text: str, *, width: int, height: int, size: int, anchor: str, left: int | None = None) -> np.ndarray:
    picture = Image.new("RGB", (width, height), _BACK)
    where = (width / 2 if left is None else left, height / 2)
    ImageDraw.Draw(picture).text(where, text, fill=_INK, font=_font(size), anchor=anchor)
    return np.asarray(picture)


def _rate(fps: float) -> float:
    if not 0 < fps < 1000:
        raise ReverieError(f"a clip plays at more than 0 and less than 1000 frames per second, not {fps}.")
    return float(fps)


def write_file(out: Out, save: Callable[[BinaryIO], None]) -> None:
    """Save into an open file, or at a path by way of a temporary neighbour, so a failure leaves nothing behind."""
    if not isinstance(out, str | Path):
        save(out)
        return
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            save(file)
        os.chmod(temporary, 0o644)  # mkstemp's own 0600 would hide it from a web server or a colleague
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
