"""Frames written to files come back: as many, as large, as long, and (where the format can) the same."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from reverie.errors import ReverieError
from reverie.evaluation.video import contact_sheet, enlarge, side_by_side, write_gif, write_mp4, write_png


def clip(length=12, height=16, width=24, channels=3, colours=20):
    """A few colours, moving."""
    rng = np.random.default_rng(length)
    palette = rng.integers(0, 256, (colours, channels), np.uint8)
    picture = palette[rng.integers(colours, size=(height // 4, width // 4))].repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(picture, step, axis=1) for step in range(length)])


def read_gif(file):
    with Image.open(file) as gif:
        frames, times = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            times.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")))
    return np.stack(frames), times


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_of_few_colours_is_exact(tmp_path, scale, channels):
    frames = clip(channels=channels)
    write_gif(tmp_path / "new" / "clip.gif", frames, 15, scale)
    read, _ = read_gif(tmp_path / "new" / "clip.gif")
    assert np.array_equal(read, enlarge(frames, scale))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["clip.gif"]


@pytest.mark.parametrize("fps", [6, 7, 15, 24, 29.97, 60, 200])
def test_a_gif_lasts_as_long_as_the_clip_and_stillness_counts(fps):
    file = io.BytesIO()
    frames = clip(30)
    frames[10:20] = frames[10]
    write_gif(file, frames, fps)
    _, times = read_gif(file)
    assert abs(sum(times) - 30 * 1000 / min(fps, 50)) <= 10, "hundredths do not add up to a drift"
    assert min(times) >= 20, "browsers slow anything quicker down to 100 ms"


@pytest.mark.parametrize("size", [(16, 24), (15, 23)])
@pytest.mark.parametrize("fps", [6, 29.97])
def test_an_mp4_keeps_length_pace_and_picture(tmp_path, size, fps):
    frames = clip(20)[:, : size[0], : size[1]]
    write_mp4(tmp_path / "clip.mp4", frames, fps, scale=4)
    with av.open(tmp_path / "clip.mp4") as film:
        stream = film.streams.video[0]
        assert abs(float(stream.average_rate) - fps) < 1e-3 and stream.codec_context.pix_fmt == "yuv420p"
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    expected = enlarge(frames, 4)
    assert read.shape == expected.shape
    assert np.abs(read[:, 2::4, 2::4].astype(int) - expected[:, 2::4, 2::4]).mean() < 12, "lossy, but the same clip"


def test_an_odd_size_gains_an_edge(tmp_path):
    write_mp4(tmp_path / "clip.mp4", clip()[:, :15, :23], 10)
    with av.open(tmp_path / "clip.mp4") as film:
        assert (film.streams.video[0].height, film.streams.video[0].width) == (16, 24)


def test_a_png_is_exact(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    write_png(tmp_path / "p.png", picture, scale=2)
    with Image.open(tmp_path / "p.png") as read:
        assert np.array_equal(np.asarray(read), picture.repeat(2, 0).repeat(2, 1))


def test_clips_beside_each_other_keep_their_pixels_and_their_end():
    long, short = clip(12), clip(5)
    together = side_by_side([("real", long), ("rollout", short)], scale=2)
    assert together.shape[0] == 12 and together.dtype == np.uint8
    left, right = together[:, -32:, :48], together[:, -32:, -48:]
    assert np.array_equal(left, enlarge(long, 2))
    assert np.array_equal(right, enlarge(short, 2)[[0, 1, 2, 3, *[4] * 8]])


def test_a_sheet_shows_first_and_last_moment_of_every_clip():
    real, rollout = clip(12), clip(9)
    sheet = contact_sheet([("real", real), ("rollout", rollout)], columns=4, scale=2, gap=4)
    rows = sheet[4:].reshape(2, 36, sheet.shape[1], 3)[:, :32]
    cells = rows[:, :, -4 * 52 :].reshape(2, 32, 4, 52, 3)[:, :, :, :48]
    for row, frames in enumerate((real, rollout)):
        for column, moment in ((0, 0), (-1, -1)):
            assert np.array_equal(cells[row, :, column], enlarge(frames, 2)[moment])
    assert contact_sheet([("", real[:1])]).ndim == 3


@pytest.mark.parametrize(
    ("frames", "fps", "says"),
    [
        (clip().astype(np.float32), 10, "uint8"),
        (clip()[0], 10, "a clip is"),
        (clip()[:0], 10, "a clip is"),
        (clip()[..., :2], 10, "a clip is"),
        (clip(), 0, "frames per second"),
        (clip(), float("nan"), "frames per second"),
    ],
)
@pytest.mark.parametrize("write", [write_gif, write_mp4])
def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, write, frames, fps, says):
    with pytest.raises(ReverieError, match=says):
        write(tmp_path / "clip", frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_gif(tmp_path / "clip.gif", clip(3), 10)
    before = (tmp_path / "clip.gif").read_bytes()

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        write_gif(tmp_path / "clip.gif", clip(5), 10)
    assert (tmp_path / "clip.gif").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_clips_of_different_size_are_refused():
    with pytest.raises(ReverieError, match="one size"):
        side_by_side([("a", clip()), ("b", clip(width=32))])
    with pytest.raises(ReverieError, match="no clip"):
        contact_sheet([])
