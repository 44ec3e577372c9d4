"""Real files, written with the codecs people's videos have: what comes out is what was shown, when it was shown."""

import logging
import struct
import tracemalloc
from itertools import chain

import av
import numpy as np
import pytest
from filming import coded, config, expected, numbers, write

from reverie.actions import START, UNLABELLED
from reverie.data.sources import film
from reverie.data.sources.videos import VideosConfig, steadied
from reverie.errors import ReverieError
from reverie.evaluation.video import write_mp4


@pytest.mark.parametrize(
    ("ending", "rate", "fps", "size"),
    [
        (".mp4", 30, 15, (64, 64)),
        (".mp4", 60, 15, (120, 160)),
        (".mp4", 24, 10, (64, 64)),
        (".mp4", 29.97, 14.985, (64, 64)),
        (".mp4", 10, 10, (66, 70)),
        (".mp4", 8, 12, (64, 64)),
        (".webm", 30, 15, (72, 96)),
        (".webm", 60, 13, (64, 64)),
        (".mkv", 25, 12.5, (65, 63)),
        (".avi", 25, 8, (64, 80)),
        (".mov", 50, 10, (64, 64)),
        (".gif", 20, 10, (48, 48)),
    ],
)
def test_every_sample_is_the_frame_on_screen_at_its_time(tmp_path, ending, rate, fps, size):
    path = write(tmp_path / f"a{ending}", [coded(i, size) for i in range(70)], rate)
    (episode,) = config(path, fps=fps, fit="stretch").episodes()
    assert numbers([episode])[0] == expected(np.arange(70) / rate, rate, fps)
    assert episode.fps == fps and episode.source == path.name
    episode.validate(config(path, fps=fps, fit="stretch").spec())
    assert (episode.actions[1:] == UNLABELLED).all() and episode.actions[0] == START and not episode.ends.any()


def test_a_variable_rate_is_followed_by_time_stamps_and_a_long_still_is_a_break(tmp_path):
    rng = np.random.default_rng(0)
    steps = rng.choice([0.033, 0.034, 0.067, 0.5], 80, p=[0.4, 0.3, 0.2, 0.1])
    times = np.round(np.concatenate([[0], np.cumsum(steps)]), 3)
    path = write(tmp_path / "a.mkv", [coded(i) for i in range(81)], 30, times)
    (episode,) = config(path, fps=12).episodes()
    assert numbers([episode])[0] == expected(times, film.look(path, "").rate, 12)

    times[40:] += 60  # a minute without recording
    path = write(tmp_path / "b.mkv", [coded(i) for i in range(81)], 30, times)
    before, after = numbers(config(path, fps=12).episodes())
    assert before == expected(times[:40], film.look(path, "").rate, 12)
    assert after == [40 + i for i in expected(times[40:], film.look(path, "").rate, 12)]


def test_fps_is_chosen_from_what_the_videos_have(tmp_path):
    for rate, fps in [(30, 15), (60, 15), (25, 12.5), (24, 12), (10, 10), (12, 12), (29.97, 14.985)]:
        path = write(tmp_path / "a.mp4", [coded(i) for i in range(30)], rate)
        assert config(path).spec().fps == pytest.approx(fps, abs=2e-3)
    assert VideosConfig(path=str(path)).spec().frame == (64, 64, 3)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(120, 161), (97, 64), (30, 40), (36, 36)])
def test_shape_and_fit(tmp_path, fit, shape):
    # left half red, right half blue, a green band along the top: tells crop, bars and distortion apart
    picture = np.zeros((*shape, 3), np.uint8)
    picture[:, : shape[1] // 2, 0] = picture[:, shape[1] // 2 :, 2] = 250
    picture[: shape[0] // 3] = (0, 250, 0)
    path = write(tmp_path / "a.mkv", [picture] * 5, 10)
    (episode,) = config(path, size=(36, 48), fit=fit).episodes()
    frame = episode.frames[2].astype(int)
    assert frame.shape == (36, 48, 3)
    scale = {"crop": max, "pad": min}.get(fit, lambda y, x: None)(36 / shape[0], 48 / shape[1])
    seen = (36, 48) if scale is None else (shape[0] * scale, shape[1] * scale)
    edge = round((36 - seen[0]) / 2 + seen[0] / 3)  # where the band ends
    band = frame[max(0, edge - 6) : max(0, edge - 3), 24]
    assert (band[:, 1] > 200).all() and (frame[min(35, edge + 4), 24 + 4] > 200).tolist() == [False, False, True]
    assert frame[30 if fit != "pad" else 18, 24 - 4, 0] > 200
    if fit == "pad":
        bars = (36 - seen[0]) / 2, (48 - seen[1]) / 2
        if bars[0] >= 2:
            assert (frame[: int(bars[0]) - 1] == 0).all() and (frame[-int(bars[0]) + 1 :] == 0).all()
        if bars[1] >= 2:
            assert (frame[:, : int(bars[1]) - 1] == 0).all() and (frame[:, -int(bars[1]) + 1 :] == 0).all()


def test_small_frames_average_and_do_not_alias(tmp_path):
    board = np.indices((256, 256)).sum(0) % 2 * 255  # a fine chess board is grey from afar
    path = write(tmp_path / "a.mkv", [np.repeat(board[..., None], 3, -1).astype(np.uint8)] * 4, 10)
    (episode,) = config(path, size=(32, 32)).episodes()
    assert abs(episode.frames.astype(int) - 127).max() < 12


def test_rotation_is_undone(tmp_path):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 250  # upper left, stored; a quarter turn clockwise takes it to the upper right
    path = write(tmp_path / "a.mp4", [picture] * 6, 10)
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    data = path.read_bytes()
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
    (episode,) = config(path, size=(48, 32)).episodes()
    bright = episode.frames[1].mean(-1) > 127
    assert bright[4:20, 20:30].all() and not bright[:, :12].any() and not bright[30:].any()


def noise(rng, size=(48, 48), grain=8):
    """A picture with structure: blocks of random colours."""
    small = rng.integers(0, 256, (size[0] // grain, size[1] // grain, 3), np.uint8)
    return small.repeat(grain, 0).repeat(grain, 1)


def test_a_cut_splits_and_motion_does_not(tmp_path):
    rng = np.random.default_rng(1)
    first, second = noise(rng, (96, 640)), noise(rng, (96, 640))
    pan = [first[:, 8 * i : 8 * i + 96] for i in range(40)] + [second[:, 8 * i : 8 * i + 96] for i in range(30)]
    path = write(tmp_path / "a.mp4", pan, 10)
    episodes = list(config(path, cuts=14.0).episodes())
    assert [len(episode.frames) for episode in episodes] == [40, 30]
    assert all(episode.actions[0] == START for episode in episodes)
    assert [len(episode.frames) for episode in config(path).episodes()] == [70]


def test_long_scenes_become_several_episodes_without_losing_a_frame(tmp_path):
    path = write(tmp_path / "a.mkv", [coded(i) for i in range(103)], 10)
    for frames, shortest in [(40, 10), (50, 25), (20, 10), (102, 3), (103, 3), (512, 16)]:
        found = numbers(config(path, frames=frames, shortest=shortest).episodes())
        assert list(chain(*found)) == list(range(103))
        assert all(shortest <= len(piece) <= frames for piece in found)


def test_bad_files_are_named_and_the_rest_is_used(tmp_path, caplog):
    folder = tmp_path / "my vidéos ☃" / "part: 1%d"
    folder.mkdir(parents=True)
    write(folder / "b ü.mp4", [coded(i) for i in range(20)], 10)
    write(folder.parent / "z.gif", [coded(i) for i in range(20)], 10)
    write(folder / "one.mkv", [coded(1)], 10)
    write(folder / "thin.mkv", [np.zeros((16, 800, 3), np.uint8)] * 5, 10)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("these are words " * 100)
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    (folder / "._b.mp4").write_bytes(b"what a Mac leaves behind")
    (folder / "notes.txt").write_text("not a video, and not named one")
    with av.open(str(folder / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with caplog.at_level(logging.WARNING):
        episodes = list(config(tmp_path, fit="crop").episodes())
    assert [episode.source for episode in episodes] == ["my vidéos ☃/part: 1%d/b ü.mp4", "my vidéos ☃/z.gif"]
    for name, why in {
        "one.mkv": "a single frame",
        "thin.mkv": "too long a shape",
        "empty.mp4": "empty",
        "text.mp4": "not a video",
        "list.mp4": "not a video",
        "sound.mkv": "no moving pictures",
    }.items():
        assert any(f"{name}: " in line and why in line for line in caplog.messages), (name, caplog.messages)
    assert "skipped 6 of 8 videos" in caplog.text
    again = list(config(tmp_path, fit="crop").episodes())
    assert all((a.frames == b.frames).all() for a, b in zip(episodes, again, strict=True))


@pytest.mark.parametrize(("ending", "options"), [(".mkv", {}), (".webm", {}), (".mp4", {"movflags": "frag_keyframe"})])
def test_of_a_truncated_video_the_whole_frames_are_kept(tmp_path, caplog, ending, options):
    path = write(tmp_path / f"a{ending}", [coded(i) for i in range(60)], 10, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    found = numbers(config(path).episodes())[0]
    assert 5 <= len(found) < 60 and found == list(range(len(found)))


def test_damage_in_the_middle_costs_that_part_alone(tmp_path, caplog):
    path = write(tmp_path / "a.mp4", [coded(i) for i in range(60)], 10)
    np.save(tmp_path / "a.npy", np.arange(60))
    data = bytearray(path.read_bytes())
    middle = (data.index(b"mdat") + data.index(b"moov")) // 2
    data[middle : middle + 20] = bytes(20)
    path.write_bytes(data)
    episodes = list(config(path).episodes())
    found = list(chain(*numbers(episodes)))
    assert "a.mp4: " in caplog.text and "frames damaged, left out" in caplog.text
    assert 40 <= len(found) < 60 and found == sorted(set(found)) and set(found) <= set(range(60))
    for episode, shown in zip(episodes, numbers(episodes), strict=True):
        labels = episode.actions[1:]
        assert (labels[labels != UNLABELLED] == np.array(shown[:-1])[labels != UNLABELLED]).all()


def test_nothing_usable_is_one_clear_line(tmp_path):
    with pytest.raises(ReverieError, match="no file or folder"):
        config(tmp_path / "nowhere").spec()
    with pytest.raises(ReverieError, match="holds no videos .found: nothing"):
        config(tmp_path).spec()
    (tmp_path / "a.png").touch()
    (tmp_path / "b.txt").touch()
    with pytest.raises(ReverieError, match=r"found: 1 .png, 1 .txt"):
        config(tmp_path).spec()
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").write_text("words")
    with pytest.raises(
        ReverieError, match=r"none of 2 videos .*a.mp4: the file is empty; b.mp4: it is not a video"
    ) as error:
        config(tmp_path).spec()
    assert "\n" not in str(error.value)
    write(tmp_path / "c.mp4", [coded(i) for i in range(10)], 10)
    with pytest.raises(ReverieError, match="no piece of the videos .* is 16 frames long"):
        list(config(tmp_path, shortest=16).episodes())


@pytest.mark.parametrize(
    "bad",
    [{"size": (0, 4)}, {"fps": -1.0}, {"shortest": 1}, {"frames": 3}, {"fit": "x"}, {"cuts": -1.0}, {"still": 256}],
)
def test_a_wrong_field_is_named(bad):
    with pytest.raises(ReverieError, match=next(iter(bad))):
        config("anywhere", **bad)


def test_memory_stays_bounded(tmp_path):
    path = write(tmp_path / "a.mp4", (coded(i % 7, (360, 640)) for i in range(300)), 30)
    stream = config(path, fps=30, frames=20, fit="stretch").episodes()
    tracemalloc.start()
    try:
        for episode in stream:
            assert len(episode.frames) <= 20
        assert tracemalloc.get_traced_memory()[1] < 4e6  # a whole video of this size is 207 MB
    finally:
        tracemalloc.stop()


def test_what_compression_does_to_a_still_picture_is_no_event(tmp_path):
    """A square moves over a ground that no frame of the compressed video shows twice the same."""
    ground = np.random.default_rng(0).integers(60, 180, (16, 16, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    pictures = []
    for t in range(24):
        pictures.append(ground.copy())
        pictures[-1][24:40, 2 * t : 2 * t + 16] = (250, 240, 30)
    write_mp4(tmp_path / "film.mp4", np.stack(pictures), fps=10)

    def changes(still: int) -> tuple[float, float]:
        frames = next(iter(VideosConfig(path=str(tmp_path), size=(64, 64), still=still).episodes())).frames
        moved = (frames[1:] != frames[:-1]).any(-1)
        return moved[:, :16].mean(), moved[:, 24:40].any(axis=(1, 2)).mean()

    noisy, quiet = changes(0), changes(8)
    assert noisy[0] > 10 * quiet[0] and quiet[1] == 1.0


def test_a_slow_change_is_seen_at_last():
    frames = np.arange(0, 240, 3, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    steady = steadied(frames, 8)
    assert (np.abs(steady.astype(int) - frames) <= 8).all() and 20 < len(np.unique(steady)) < 40
    np.testing.assert_array_equal(steadied(frames, 0), frames)
