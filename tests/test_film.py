"""Frames become pictures as players show them: upright, with square pixels, in the colours that were filmed."""

import struct
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from filming import coded, config, write

from reverie.data.sources import film
from reverie.data.sources.decode import Unusable
from reverie.data.sources.videos import steadied

TURNS = [
    *[(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)],
    *[(0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)],
]


@pytest.mark.parametrize("turn", TURNS)
def test_all_eight_display_matrices(tmp_path, turn):
    """As the format has it: the stored point (x, y) is shown at (ax + cy, bx + dy), as by ffmpeg's autorotate."""
    a, b, c, d = turn
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:24, :32], picture[40:, 64:] = (250, 0, 0), (0, 250, 0)
    path = write(tmp_path / "a.mp4", [picture] * 4, 10)
    plain = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    data = path.read_bytes()
    at = data.index(plain, data.index(b"tkhd"))
    matrix = struct.pack(">9i", a * 0x10000, b * 0x10000, 0, c * 0x10000, d * 0x10000, 0, 0, 0, 0x40000000)
    path.write_bytes(data[:at] + matrix + data[at + len(plain) :])
    upright = np.zeros((96, 64, 3) if b else (64, 96, 3), np.uint8)
    rows, columns = np.indices((64, 96))
    x, y = a * columns + c * rows, b * columns + d * rows
    upright[y - y.min(), x - x.min()] = picture
    (episode,) = config(path, size=upright.shape[:2], fit="stretch").episodes()
    assert np.abs(episode.frames[1].astype(int) - upright).mean() < 6


@pytest.mark.parametrize(("aspect", "turned"), [(Fraction(2), False), (Fraction(1, 2), False), (Fraction(2), True)])
def test_pixels_that_are_not_square_are_shown_as_they_are_meant(tmp_path, aspect, turned):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        if turned:
            stream.set_display_rotation(90)
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    (episode,) = config(path, fit="pad").episodes()
    lit = episode.frames[1].mean(-1) > 100
    height, width = lit.any(1).sum(), lit.any(0).sum()
    assert (height, width) == ((32, 64) if (aspect > 1) != turned else (64, 32))


@pytest.mark.parametrize(
    ("shape", "tag", "matrix"), [((720, 128), 2, 709), ((64, 64), 2, 601), ((64, 64), 1, 709), ((720, 128), 5, 601)]
)
def test_colours_are_decoded_as_tagged_and_untagged_hd_as_players_do(tmp_path, shape, tag, matrix):
    y, u, v = 100, 90, 190
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *shape, "yuv420p"
        stream.codec_context.colorspace = tag
        planes = np.concatenate(
            [np.full(shape[0] * shape[1] // part, value, np.uint8) for part, value in ((1, y), (4, u), (4, v))]
        )
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(planes.reshape(shape[0] * 3 // 2, shape[1]), format="yuv420p")
            frame.colorspace = tag
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    red, blue = {709: (0.2126, 0.0722), 601: (0.299, 0.114)}[matrix]
    luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    wanted = 255 * np.array([r, (luma - red * r - blue * b) / (1 - red - blue), b])
    (episode,) = config(path).episodes()
    np.testing.assert_allclose(episode.frames[1, 32, 32], wanted, atol=3)


@pytest.mark.parametrize("size", [(16000, 16000), (65535, 2000)])
def test_a_picture_beyond_all_bounds_is_refused_unread(tmp_path, size):
    path = write(tmp_path / "a.gif", [coded(i) for i in range(30)], 10)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", *size)
    path.write_bytes(data)
    with pytest.raises(Unusable, match="pixels"):
        film.look(path, "a.gif")


def test_motion_in_the_dark_is_seen():
    frames = np.full((20, 32, 32, 3), 14, np.uint8)
    for time in range(20):
        frames[time, 10:16, time : time + 6] = 20
    steady = steadied(frames, 8)
    assert all((steady[now] != steady[before]).any() for before, now in pairwise(range(20)))
    np.testing.assert_array_equal(steady, frames)
