"""Pictures as others keep them, brought to uint8 (H,W,3), red, green, blue.

They come encoded (PNG, JPEG), with channels first, grey, with transparency, as floats. H W C image, T frames.
"""

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from reverie.errors import Damaged, ReverieError, first_line

LARGEST = 2**25  # pixels of a picture: 8K is just within; a PNG of 100 KB may claim a hundred times more
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")  # that Pillow may try: no format with scripts or other files in it
SMALLEST = 8  # pixels of a side; arrays with shorter sides are vectors, not pictures
SMALLEST_GREY = 16  # of arrays (T,H,W) that are not bytes: they may be features as well
CHANNELS = (1, 3, 4)
SOFT = 0.02  # share of half transparent pixels; with more, a fourth channel is not transparency
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError)


def decoded(data: bytes) -> np.ndarray:
    """Return an encoded picture as uint8 (H,W,3), upright; Damaged if it is not a picture, or too large.

    ReverieError if it is an animation, of which one picture would be too little.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=KINDS) as picture:
                width, height = picture.size
                if width * height > LARGEST:
                    raise Damaged(f"a picture of {width} x {height}: at most {LARGEST} pixels can be read")
                # APNG and WebP may be animations; an MPO of a camera holds views and previews of one picture.
                if picture.format != "MPO" and (count := getattr(picture, "n_frames", 1)) > 1:
                    raise ReverieError(f"one picture is an animation of {count}: make a video or a GIF of it")
                if picture.mode.startswith("I"):  # 16 bits
                    return rgb((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)[None])[0]
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Damaged(f"a picture cannot be decoded ({first_line(error)})") from None


def decoded_each(rows: Iterable[Any]) -> Iterator[np.ndarray | None]:
    """Yield encoded pictures as ``decoded`` returns them, None for each that is damaged."""
    for row in rows:
        try:
            yield decoded(bytes(row))
        except Damaged:
            yield None


def is_encoded(data: bytes) -> bool:
    """Return whether bytes start like a PNG or JPEG file."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff"


def resized(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return a picture uint8 (H,W,3) of another size (H, W); where it becomes smaller, every pixel counts."""
    if picture.shape[:2] == tuple(size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))


def is_picture(shape: Sequence[int], kind: str, *, named: bool) -> bool:
    """Return whether an array (T, ...) of a type ("u1", "f4", ...) can be T pictures.

    ``named``: it is called a picture. Only then may it be grey without a channel, or hold numbers of other types.
    """
    if len(shape) == 3:
        return named and kind[0] in "fiub" and min(shape[1:]) >= (SMALLEST if kind in ("u1", "b1") else SMALLEST_GREY)
    if len(shape) != 4 or (kind != "u1" and not (named and kind[0] in "fiub")):
        return False
    sides = shape[1:3] if shape[3] in CHANNELS else shape[2:4] if shape[1] in CHANNELS else (0,)
    return min(sides) >= SMALLEST


def rgb(frames: np.ndarray) -> np.ndarray:
    """Return pictures (T,H,W), (T,H,W,C) or (T,C,H,W) of 1, 3 or 4 channels and numbers of any type as uint8 (T,H,W,3).

    Floats within 0..1 or -1..1, 16 bits, and True and False become 0..255. Of four channels, the fourth counts as
    transparency and is dropped. If it has many other values than 0 and 255, the channels count as four stacked grey
    frames, and the fourth as the newest of them.
    """
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.shape[3] not in CHANNELS and frames.shape[1] in CHANNELS:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype != np.uint8:
        frames = _bytes(frames)
    if frames.shape[3] == 4:
        fourth = frames[..., 3]
        varies = fourth.size and fourth.min() != fourth.max()
        stacked = varies and np.mean((fourth > 0) & (fourth < 255)) > SOFT
        frames = frames[..., 3:] if stacked else frames[..., :3]
    return np.ascontiguousarray(np.broadcast_to(frames, (*frames.shape[:3], 3)))


def _bytes(frames: np.ndarray) -> np.ndarray:
    """Return pictures of another type as uint8; Damaged where their numbers lie in no range of pictures."""
    if frames.dtype.kind == "b":
        return frames.astype(np.uint8) * 255
    numbers = frames if frames.dtype.kind in "iu" else np.nan_to_num(frames.astype(np.float32))
    least, most = numbers.min(initial=0), numbers.max(initial=0)
    if numbers.dtype.kind == "f" and most <= 1 and least >= -1:
        return np.rint((numbers + 1) * 127.5 if least < 0 else numbers * 255).astype(np.uint8)
    if least < 0 or most > (65535 if numbers.dtype == np.uint16 else 255):
        raise Damaged("pictures of numbers outside 0..255")
    return (np.right_shift(frames, 8) if most > 255 else np.rint(numbers)).astype(np.uint8)


def side_by_side(views: Sequence[Iterable[np.ndarray | None]]) -> Iterator[np.ndarray | None]:
    """Yield the pictures (H,W,3) of several cameras in one row, as high as the first; None where one is missing."""
    return map(_row, zip(*views, strict=True))


def _row(pictures: Sequence[np.ndarray | None]) -> np.ndarray | None:
    whole = [picture for picture in pictures if picture is not None]
    if len(whole) < len(pictures):
        return None
    height = whole[0].shape[0]
    same = [resized(p, (height, max(1, round(p.shape[1] * height / p.shape[0])))) for p in whole]
    return same[0] if len(same) == 1 else np.concatenate(same, axis=1)
