"""Real files, written with the codecs people's videos have: what comes out is what was shown, when it was shown."""

import json
import logging
import struct
import tracemalloc
from fractions import Fraction
from itertools import chain, pairwise

import av
import numpy as np
import pytest

from reverie.actions import START, UNLABELLED, ActionSpace
from reverie.data.sources import film
from reverie.data.sources.cuts import cuts
from reverie.data.sources.videos import VideosConfig
from reverie.errors import ReverieError

CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".mkv": "ffv1", ".avi": "mpeg4", ".mov": "mjpeg", ".gif": "gif"}
FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


def coded(index, size=(64, 64)):
    """A picture (H,W,3) that holds a number: 4 x 4 squares, one for each of its 16 bits."""
    bits = (index >> np.arange(16) & 1).reshape(4, 4)
    rows, columns = (np.arange(side) * 4 // side for side in size)
    return np.repeat((bits[rows][:, columns] * 255).astype(np.uint8)[..., None], 3, axis=-1)


def number(picture):
    """The number that ``coded`` put into a picture."""
    side = picture.shape[0] // 4
    middle = picture.mean(-1)[side // 2 :: side, side // 2 :: side]
    return int(((middle > 127).ravel() << np.arange(16)).sum())


def numbers(episodes):
    return [[number(picture) for picture in episode.frames] for episode in episodes]


def write(path, pictures, rate=30, times=None, **options):
    """Write a video; times: seconds of each frame, to the millisecond, where the rate varies."""
    codec = CODECS[path.suffix]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = FORMATS.get(codec, "yuv420p")
                stream.gop_size = 10
                if codec == "libvpx-vp9":
                    stream.options = {"deadline": "realtime", "cpu-used": "8"}
                if times is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = index if times is None else round(times[index] * 1000)
            frame.time_base = 1 / Fraction(rate).limit_denominator(1001) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def config(path, **changes):
    return VideosConfig(str(path), **({"cuts": 0.0, "shortest": 2} | changes))


def expected(times, rate, fps):
    """Which frame each sample shows, by the formula at the head of film.py."""
    slack = 0.3 * min(1 / rate, 1 / fps)
    shown = []
    while times[0] + len(shown) / fps + slack < times[-1] + 1 / rate:
        moment = times[0] + len(shown) / fps + slack
        shown.append(max(i for i, time in enumerate(times) if time <= moment))
    return shown


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

    times[40:] += 60  # nobody recorded for a minute
    path = write(tmp_path / "b.mkv", [coded(i) for i in range(81)], 30, times)
    before, after = numbers(config(path, fps=12).episodes())
    assert before == expected(times[:40], film.look(path, "").rate, 12)
    assert after == [40 + i for i in expected(times[40:], film.look(path, "").rate, 12)]


def test_fps_is_chosen_from_what_the_videos_have(tmp_path):
    for rate, fps in [(30, 15), (60, 15), (25, 12.5), (24, 12), (10, 10), (12, 12), (29.97, 14.985)]:
        path = write(tmp_path / "a.mp4", [coded(i) for i in range(30)], rate)
        assert config(path).spec().fps == pytest.approx(fps, abs=2e-3)
    assert VideosConfig(str(path)).spec().frame == (64, 64, 3)


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


def begins(frames):
    """The places at which a scene begins."""
    return [place for place, cut in cuts(enumerate(frames), 14.0) if cut]


def test_no_cut_is_seen_in_pans_sprites_fades_and_flashes():
    rng = np.random.default_rng(2)
    scene, sprite, white = noise(rng, (64, 512)), noise(rng, (16, 16), 4), np.full((64, 64, 3), 255, np.uint8)
    still = [scene[:, 64:128]] * 10
    pan = [scene[:, 64 + 12 * i : 128 + 12 * i] for i in range(20)]
    assert not begins(still + pan + pan[::-1] + still)  # from a stand into a fast pan, and back
    walked = []
    for y, x in np.clip(np.cumsum(rng.integers(-9, 10, (200, 2)), axis=0), 0, 48):
        walked.append(scene[:, 300:364].copy())
        walked[-1][y : y + 16, x : x + 16] = sprite
    assert not begins(walked)
    assert not begins([(still[0] * (1 - i / 30)).astype(np.uint8) for i in range(31)])
    for length in 1, 2, 3:
        flashes = still + [white] * length + still + [white - still[0]] * length + pan
        assert not begins(flashes)


def test_cuts_are_found_one_by_one_and_at_the_right_frame():
    rng = np.random.default_rng(3)
    scenes = [[noise(rng, (64, 64))] * int(length) for length in rng.integers(5, 20, 30)]
    assert begins(chain(*scenes)) == np.cumsum([len(scene) for scene in scenes[:-1]]).tolist()
    assert begins([]) == begins([scenes[0][0]]) == []
    assert begins([scenes[0][0], scenes[1][0]]) == [1]


def test_long_scenes_become_several_episodes_without_losing_a_frame(tmp_path):
    path = write(tmp_path / "a.mkv", [coded(i) for i in range(103)], 10)
    for frames, shortest in [(40, 10), (50, 25), (20, 10), (102, 3), (103, 3), (512, 16)]:
        found = numbers(config(path, frames=frames, shortest=shortest).episodes())
        assert list(chain(*found)) == list(range(103))
        assert all(shortest <= len(piece) <= frames for piece in found)


def led_to(rows, shown):
    """The convention: of the actions taken at the frames in between, the most frequent, of equals the latest."""
    actions = [START]
    for before, now in pairwise(shown):
        between = rows[before : max(now, before + 1)]
        count = {action: between.count(action) for action in between}
        actions.append(max(reversed(between), key=count.__getitem__))
    return actions


@pytest.mark.parametrize(("rate", "fps"), [(30, 30), (30, 15), (60, 15), (24, 10), (8, 12), (30, 8)])
@pytest.mark.parametrize(
    "form", ["npy", "csv", "csv header", "csv frame", "csv time", "jsonl", "jsonl action", "jsonl time"]
)
def test_actions_follow_their_frames(tmp_path, rate, fps, form):
    rng = np.random.default_rng(3)
    rows = np.repeat(rng.integers(0, 7, 40), 3)[:70].tolist()
    path = write(tmp_path / "a.mp4", [coded(i) for i in range(70)], rate)
    if form == "npy":
        np.save(tmp_path / "a.npy", np.array(rows, np.int16))
    elif form == "csv":
        (tmp_path / "a.csv").write_text("\n".join(map(str, rows)) + "\n")
    elif form == "csv header":
        (tmp_path / "a.csv").write_text("action\n" + "\n".join(map(str, rows[:-1])))  # nothing follows the last frame
    elif form.startswith("csv"):
        head = form.split()[1]
        places = [i if head == "frame" else round(i / rate, 4) for i in range(70)]
        (tmp_path / "a.csv").write_text(
            f"{head}, action\n" + "\n".join(f"{p},{a}" for p, a in zip(places, rows, strict=True))
        )
    else:
        keys = form.split()[1:]
        lines = [
            a if not keys else {"action": a} | ({"time": i / rate, "other": "x"} if keys == ["time"] else {})
            for i, a in enumerate(rows)
        ]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = config(path, fps=fps, frames=40)
    assert source.spec().actions == ActionSpace("discrete", max(rows) + 1)
    shown = expected(np.arange(70) / rate, rate, fps)
    wanted, found = led_to(rows, shown), []
    for episode in source.episodes():
        episode.validate(source.spec())
        assert episode.actions[0] == START
        assert episode.actions[1:].tolist() == wanted[len(found) + 1 : len(found) + len(episode.frames)]
        found += episode.actions.tolist()
    assert len(found) == len(wanted)


def test_actions_given_only_where_they_change_hold_until_the_next(tmp_path):
    path = write(tmp_path / "a.mp4", [coded(i) for i in range(30)], 10)
    (tmp_path / "a.csv").write_text("time,action\n0.5,2\n1.2,0\n")
    (episode,) = config(path).episodes()
    assert episode.actions.tolist() == [START] + [UNLABELLED] * 5 + [2] * 7 + [0] * 17


def test_videos_without_actions_beside_others_with_them_are_unlabelled(tmp_path, caplog):
    for name in "abcd":
        write(tmp_path / f"{name}.mp4", [coded(i) for i in range(30)], 10)
    np.save(tmp_path / "a.npy", np.full(30, 3))
    np.save(tmp_path / "c.npy", np.full(12, 5))  # wrong length
    (tmp_path / "d.csv").write_text("1\n2\nleft\n")
    source = config(tmp_path)
    with caplog.at_level(logging.WARNING):
        episodes = list(source.episodes())
    assert source.spec().actions.size == 4
    assert [set(episode.actions[1:].tolist()) for episode in episodes] == [
        {3},
        {UNLABELLED},
        {UNLABELLED},
        {UNLABELLED},
    ]
    assert "c.mp4 is used without actions: c.npy has 12 actions for 30 frames" in caplog.text
    assert "d.mp4 is used without actions: d.csv, row 2: 'left' is not an action" in caplog.text
    assert config(tmp_path, actions=False).spec().actions == ActionSpace()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b""),
        ("a.csv", b"\xff\xfe\x00garbage\x00"),
        ("a.csv", b"frame,action\n3,1\n2,1\n"),
        ("a.csv", b"frame,action\nx,1\n"),
        ("a.csv", b"time,action\nnan,1\n"),
        ("a.csv", b"0,1\n1,2\n"),
        ("a.csv", b"\n".join([b"1"] * 29 + [b"5000"])),
        ("a.csv", b"\n".join([b"1"] * 29 + [b"-1"])),
        ("a.csv", b"\n".join([b"1"] * 29 + [b"0.5"])),
        ("a.jsonl", b'{"action": 1}\n{"act": 2}\n'),
        ("a.jsonl", b'{"action": [1]}\n'),
        ("a.jsonl", b"{not json}\n"),
        ("a.jsonl", b"true\n" * 30),
        ("a.jsonl", b"1" * 400),
        ("a.npy", b"no array"),
        ("a.npy", b"PK\x03\x04 no archive"),
        (
            "a.npy",
            b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (30,), }".ljust(127) + b"\n",
        ),
    ],
)
def test_a_bad_action_file_costs_the_actions_not_the_video(tmp_path, caplog, name, content):
    write(tmp_path / "a.mp4", [coded(i) for i in range(30)], 10)
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        (episode,) = config(tmp_path).episodes()
    assert (episode.actions[1:] == UNLABELLED).all()
    assert f"a.mp4 is used without actions: {name}" in caplog.text


def test_floats_and_several_files_are_refused(tmp_path, caplog):
    write(tmp_path / "a.mp4", [coded(i) for i in range(10)], 10)
    np.save(tmp_path / "a.npy", np.zeros(10))
    assert config(tmp_path).spec().actions.kind == "none"
    (tmp_path / "a.csv").write_text("1\n" * 10)
    assert config(tmp_path).spec().actions.kind == "none"
    assert "a.npy must hold one whole number" in caplog.text and "has a.npy and a.csv beside it" in caplog.text
    (tmp_path / "a.npy").unlink()
    assert config(tmp_path).spec().actions.size == 2  # the second look sees that the folder changed


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
        episodes = list(config(tmp_path).episodes())
    assert [episode.source for episode in episodes] == ["my vidéos ☃/part: 1%d/b ü.mp4", "my vidéos ☃/z.gif"]
    for name, why in {
        "one.mkv": "a single frame",
        "thin.mkv": "too long a shape",
        "empty.mp4": "empty",
        "text.mp4": "no video",
        "list.mp4": "no video",
        "sound.mkv": "no moving pictures",
    }.items():
        assert any(f"{name}: " in line and why in line for line in caplog.messages), (name, caplog.messages)
    assert "skipped 6 of 8 videos" in caplog.text
    again = list(config(tmp_path).episodes())
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
    assert "a.mp4 is damaged after" in caplog.text
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
        ReverieError, match=r"none of 2 videos .*a.mp4: the file is empty; b.mp4: it is no video"
    ) as error:
        config(tmp_path).spec()
    assert "\n" not in str(error.value)
    write(tmp_path / "c.mp4", [coded(i) for i in range(10)], 10)
    with pytest.raises(ReverieError, match="no piece of the videos .* is 16 frames long"):
        list(config(tmp_path, shortest=16).episodes())


@pytest.mark.parametrize(
    "bad", [{"size": (0, 4)}, {"fps": -1.0}, {"shortest": 1}, {"frames": 3}, {"fit": "x"}, {"cuts": -1.0}]
)
def test_a_wrong_field_is_named(bad):
    with pytest.raises(ReverieError, match=next(iter(bad))):
        config("anywhere", **bad)


def test_progress_and_memory_stay_bounded(tmp_path):
    path = write(tmp_path / "a.mp4", (coded(i % 7, (360, 640)) for i in range(300)), 30)
    told = []
    stream = config(path, fps=30, frames=20, fit="stretch").episodes(progress=lambda *news: told.append(news))
    tracemalloc.start()
    try:
        for episode in stream:
            assert len(episode.frames) <= 20
        assert tracemalloc.get_traced_memory()[1] < 4e6  # a whole video of this size is 207 MB
    finally:
        tracemalloc.stop()
    assert told == [(0, 1, "a.mp4"), (1, 1, "")]
