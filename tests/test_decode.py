"""Packets become frames as players show them, whatever file they come in: order, number, times and damage."""

import logging
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.container.core import Flags
from filming import coded, config, number, numbers, write

from reverie.actions import UNLABELLED
from reverie.data.sources import decode
from reverie.data.sources.decode import Tally, Unusable

OPEN = {"x264-params": "open-gop=1:bframes=3:scenecut=0:b-adapt=0:keyint=12:min-keyint=12"}
RATE = 25


def encode(path, codec="libx264", count=40, form="yuv420p", between=2, options=None, times=None, fmt=None, **container):
    """Write a film in which frame i shows the number i; B-frames in between where the codec has them."""
    with av.open(str(path), "w", format=fmt, options=container) as file:
        stream = file.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 64, form, options or {}
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, between
        stream.codec_context.thread_count = 1  # with more, MPEG-4 has as many slices as the machine has cores
        base = Fraction(1, RATE) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(coded(index), format="rgb24").reformat(format=form)
            frame.pts, frame.time_base = index if times is None else round(1000 * times[index]), base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def copied(source, path, start):
    """Copy packets from the last key frame before ``start`` seconds, at which the new film's time begins."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts * packet.time_base <= start]
        shift = round(start / packets[0].time_base)
        for place, packet in enumerate(packets):
            if place >= keys[-1]:
                packet.stream, packet.pts, packet.dts = stream, packet.pts - shift, packet.dts - shift
                new.mux(packet)
    return path


def shown(path):
    """Return the number that each frame shows (None: damaged), its time, and the tally."""
    tally = Tally()
    frames = [one for one in decode.frames(decode.track(path), tally) if one.time == one.time]
    found = [None if one.frame is None else number(one.frame.to_ndarray(format="rgb24")) for one in frames]
    return found, np.array([one.time for one in frames]), tally


def pictures(path):
    """Return the sound pictures of a film."""
    frames = [one.frame for one in decode.frames(decode.track(path), Tally())]
    return [frame.to_ndarray(format="rgb24") for frame in frames if frame is not None]


@pytest.mark.parametrize(
    ("name", "codec", "made"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mov", "mpeg4", {}),
        ("frag.mp4", "libx264", {"movflags": "frag_keyframe"}),
        ("empty.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        ("hevc.mp4", "libx265", {"options": {"x265-params": "log-level=none:bframes=3:keyint=12"}}),
        ("a.3gp", "mpeg4", {"between": 0}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx", {"between": 0, "options": {"auto-alt-ref": "1", "lag-in-frames": "8", "cpu-used": "8"}}),
        ("b.webm", "libvpx-vp9", {"between": 0, "options": {"lag-in-frames": "8", "cpu-used": "8"}}),
        ("no times.avi", "libx264", {}),
        ("b.avi", "mpeg4", {}),
        ("m.avi", "mjpeg", {"between": 0, "form": "yuvj420p"}),
        ("a.ts", "libx264", {}),
        ("a.m2ts", "mpeg2video", {}),
        ("a.mpg", "mpeg2video", {}),
        ("a.flv", "flv", {"between": 0}),
        ("a.gif", "gif", {"between": 0, "form": "rgb8"}),
        ("raw.h264", "libx264", {}),
        ("raw.m1v", "mpeg1video", {"fmt": "mpeg1video"}),  # its demuxer makes times up
        ("times of decoding.mxf", "libx264", {}),
    ],
)
def test_every_frame_is_shown_once_in_order_and_in_time(tmp_path, name, codec, made):
    found, times, tally = shown(encode(tmp_path / name, codec, **made))
    assert found == list(range(40)) and str(tally) == ""
    np.testing.assert_allclose(times, np.arange(40) / RATE, atol=2e-3)
    track = decode.track(tmp_path / name)
    assert track.rate == pytest.approx(RATE, rel=1e-3) and track.span == pytest.approx(40 / RATE, abs=0.1)


@pytest.mark.parametrize("rate", [12, 30])
def test_a_bare_stream_has_the_rate_that_it_was_coded_at(tmp_path, rate):
    """It has no times, and its demuxer says 25 of every one."""
    write(tmp_path / "a.h264", [coded(index) for index in range(24)], rate)
    assert decode.track(tmp_path / "a.h264").rate == pytest.approx(rate)


@pytest.mark.parametrize("between", [0, 3])
def test_where_few_pictures_have_times_the_others_follow_at_the_rate(tmp_path, between):
    """A packet of MPEG-PS holds many small ones, and one time; some of these are wrong."""
    found, times, tally = shown(encode(tmp_path / "a.mpg", count=200, between=between, fmt="vob"))
    assert found == list(range(200)) and str(tally) == ""
    np.testing.assert_allclose(times, np.arange(200) / RATE)


def test_a_packed_bitstream_is_in_order(tmp_path):
    """XviD's and DivX's way to bring B-frames into AVI: two pictures in one chunk, then a chunk that holds none."""
    codec = av.CodecContext.create("mpeg4", "w")
    codec.width = codec.height = 64
    codec.pix_fmt, codec.time_base, codec.framerate = "yuv420p", Fraction(1, RATE), Fraction(RATE)
    codec.max_b_frames, codec.gop_size = 1, 12
    chunks, packed = [], []
    for index in [*range(40), None]:
        frame = None
        if index is not None:
            frame = av.VideoFrame.from_ndarray(coded(index), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
        chunks += [bytes(packet) for packet in codec.encode(frame)]
    start = chunks[0].index(b"\0\0\1\xb2")
    made_by = chunks[0][start : chunks[0].index(b"\0\0\1", start + 4)]
    kinds = [chunk[chunk.index(b"\0\0\1\xb6") + 4] >> 6 for chunk in chunks]  # 2: a B-frame
    for chunk, kind in zip(chunks, kinds, strict=True):
        chunk = chunk.replace(made_by, b"\0\0\1\xb2DivX503b1393p")
        packed[-1:] = [packed[-1] + chunk, b"\0\0\1\xb6\x40\0\0\x7f"] if kind == 2 else [*packed[-1:], chunk]
    with av.open(str(tmp_path / "a.avi"), "w") as file:
        stream = file.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for place, chunk in enumerate(packed):
            packet = av.Packet(chunk)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, place, place, Fraction(1, RATE)
            file.mux(packet)
    found, times, _ = shown(tmp_path / "a.avi")
    assert kinds.count(2) > 10 and found == list(range(40))
    np.testing.assert_allclose(np.diff(times), 1 / RATE, atol=1e-3)


def test_pictures_that_are_never_shown_do_not_hold_back_the_rest(tmp_path, monkeypatch):
    """VP8 hides some in packets of their own. What waited for their frames would hold a whole film in memory."""
    encode(tmp_path / "a.webm", "libvpx", 200, between=0, options={"auto-alt-ref": "0", "cpu-used": "8"})
    with av.open(str(tmp_path / "a.webm")) as old, av.open(str(tmp_path / "b.webm"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for index, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            data = bytearray(bytes(packet))
            data[0] &= 0xEF if index % 30 == 5 else 0xFF  # "show_frame"
            hidden = av.Packet(bytes(data))
            hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
            hidden.stream, hidden.is_keyframe = stream, packet.is_keyframe
            new.mux(hidden)
    read, opened = [], decode._opened

    class Watched:
        def __init__(self, path):
            self.container = opened(path)

        def __getattr__(self, name):
            return getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def demux(self, stream):
            for packet in self.container.demux(stream):
                read.append(packet.size)
                yield packet

    track = decode.track(tmp_path / "b.webm")
    monkeypatch.setattr(decode, "_opened", Watched)
    frames = [(len(read), one.frame) for one in decode.frames(track, Tally()) if one.frame is not None]
    found = [(at, number(frame.to_ndarray(format="rgb24"))) for at, frame in frames]
    assert [shown for _, shown in found] == [i for i in range(200) if i % 30 != 5]
    assert max(at - shown for at, shown in found) < 100


@pytest.mark.parametrize(("ending", "first"), [(".mp4", 20), (".mov", 20), (".mkv", 12)])
def test_of_a_trimmed_film_what_is_shown_has_its_actions(tmp_path, ending, first):
    """Cut out of an open group of pictures: B-frames refer to what is gone; an edit list hides the way to the cut."""
    source = encode(tmp_path / "whole.mkv", count=60, options=OPEN)
    path = copied(source, tmp_path / f"a{ending}", 20 / RATE)
    found, _, tally = shown(path)
    assert found == list(range(first, 60)) and str(tally) == ""
    np.save(tmp_path / "a.npy", np.array(found))
    (episode,) = config(path, fps=RATE).episodes()
    assert numbers([episode]) == [found] and episode.actions[1:].tolist() == found[:-1]
    np.save(tmp_path / "a.npy", np.arange(60))  # of the whole film
    assert config(path).spec().actions.kind == "none"


@pytest.mark.parametrize("made", [{}, {"movflags": "frag_keyframe"}])
def test_actions_count_what_is_shown_not_what_an_index_says(tmp_path, made):
    path = encode(tmp_path / "a.mp4", **made)
    np.save(tmp_path / "a.npy", np.arange(40))
    (episode,) = config(path, fps=RATE).episodes()
    assert episode.actions[1:].tolist() == list(range(39))
    (tmp_path / "a.npy").unlink()
    (tmp_path / "a.csv").write_text("frame,action\n0,1\n10,2\n")
    (episode,) = config(path, fps=RATE).episodes()
    assert episode.actions[1:].tolist() == [1] * 10 + [2] * 29


@pytest.mark.parametrize("unit", [1e-3, 1 / 60, 10.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("clock", [0.0, 36000.0])
def test_times_of_another_unit_or_clock_are_refused(tmp_path, caplog, unit, clock):
    path = encode(tmp_path / "a.mp4", count=60)
    rows = "".join(f"{clock + unit * i / RATE!r},{i % 6}\n" for i in range(60))
    (tmp_path / "a.csv").write_text("time,action\n" + rows)
    with caplog.at_level(logging.WARNING):
        (episode,) = config(path).episodes()
    assert (episode.actions[1:] == UNLABELLED).all()
    assert [line for line in caplog.messages if "must be seconds after its first frame" in line]


def test_frame_numbers_beyond_the_film_are_refused(tmp_path, caplog):
    path = encode(tmp_path / "a.mp4")
    for wrong in (40, 1200, -1, 2.5):
        rows = sorted([(wrong, 1), (3, 0)])
        (tmp_path / "a.csv").write_text("frame,action\n" + "".join(f"{place},{action}\n" for place, action in rows))
        with caplog.at_level(logging.WARNING):
            assert config(path).spec().actions.kind == "none" and list(config(path).episodes())
        assert f"a.csv names frame {wrong}; the video shows 40" in caplog.text


def test_lost_packets_of_a_stream_cost_what_refers_to_them_and_a_line(tmp_path, caplog):
    path, rng = encode(tmp_path / "a.ts", count=100), np.random.default_rng(0)
    data = path.read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    lost = rng.choice(np.arange(len(packets) // 8, len(packets)), 4, replace=False)
    path.write_bytes(b"".join(packet for i, packet in enumerate(packets) if i not in lost))
    found, _, tally = shown(path)
    sound = [one for one in found if one is not None]
    assert sound == sorted(set(sound)) and 30 < len(sound) < 95
    clean = pictures(encode(tmp_path / "b.ts", count=100))
    for picture in pictures(path):
        assert (picture == clean[number(picture)]).all(), "as it was before the damage, to the bit"
    with caplog.at_level(logging.WARNING):
        list(config(path, fps=RATE).episodes())
    (line,) = [line for line in caplog.messages if "damaged" in line]
    assert line == f"a.ts: {tally}" and " frames damaged, left out" in line


def test_what_refers_to_a_broken_picture_and_comes_before_it_is_left_out_too(tmp_path):
    path = encode(tmp_path / "a.mkv", "mpeg4", between=2)
    clean, whole = pictures(path), path.read_bytes()
    with av.open(str(path)) as file:
        chunks = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    left_out = 0
    for chunk in [chunk for chunk in chunks if chunk[4] >> 6 == 1][:8]:  # frames that others are predicted from
        at, end = whole.index(chunk) + len(chunk) // 2, whole.index(chunk) + len(chunk)
        path.write_bytes(whole[:at] + bytes(end - at) + whole[end:])  # zeros: no code of MPEG-4, so the decoder notices
        kept = pictures(path)
        left_out += len(clean) - len(kept)
        assert all((picture == clean[number(picture)]).all() for picture in kept)
    assert left_out > 8


def test_of_a_stream_cut_anywhere_frames_count_from_the_first_that_is_whole(tmp_path, caplog):
    path = encode(tmp_path / "a.ts", count=60)
    data = path.read_bytes()
    start = len(data) // 10 // 188 * 188
    path.write_bytes(data[start : start + 3 * 188] + data[start + 5 * 188 :])  # and loses more before that
    found, times, tally = shown(path)
    assert found[0] >= 12 and found == list(range(found[0], 60)) and not tally.missing and times[0] == 0
    np.save(tmp_path / "a.npy", np.array(found))
    with caplog.at_level(logging.WARNING):
        (episode,) = config(path, fps=RATE).episodes()
    assert episode.actions[1:].tolist() == found[:-1]


def test_a_picture_that_does_not_decode_breaks_the_film_and_is_counted(tmp_path, caplog):
    path = encode(tmp_path / "a.mov", "png", form="rgb24", between=0)
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 8] == b"\x89PNG\r\n\x1a\n"]
    data[starts[10] + 12 : starts[10] + 16] = bytes(4)
    path.write_bytes(data)
    np.save(tmp_path / "a.npy", np.arange(40))
    with caplog.at_level(logging.WARNING):
        episodes = list(config(path, fps=RATE).episodes())
    assert numbers(episodes) == [list(range(10)), list(range(11, 40))]
    assert [episode.actions[1:].tolist() for episode in episodes] == [list(range(9)), list(range(11, 39))]
    assert "a.mov: 1 of 40 frames damaged, left out" in caplog.text


def test_the_rate_is_that_of_most_frames_however_a_film_begins(tmp_path):
    times = [0.8 * i for i in range(130)]
    times += [times[-1] + i / 30 for i in range(1, 400)]
    path = encode(tmp_path / "a.mkv", "mpeg4", count=len(times), times=times)
    assert decode.track(path).rate == pytest.approx(30, rel=2e-2)
    assert config(path).spec().fps == pytest.approx(15, rel=2e-2)


def test_of_two_rates_one_that_exists_is_taken(tmp_path):
    write(tmp_path / "a.mp4", [coded(i) for i in range(20)], 24)
    write(tmp_path / "b.mp4", [coded(i) for i in range(20)], 60)
    assert config(tmp_path).spec().fps == 12


@pytest.mark.parametrize("ending", [".mkv", ".mov", ".ts"])
def test_a_still_picture_or_a_cover_before_the_film_does_not_hide_it(tmp_path, ending):
    source = encode(tmp_path / "film.mkv", "mpeg2video")
    still = encode(tmp_path / "still.mkv", "mpeg2video", count=1)
    path = tmp_path / f"a{ending}"
    with av.open(str(still)) as one, av.open(str(source)) as other, av.open(str(path), "w") as new:
        streams = [new.add_stream_from_template(old.streams.video[0]) for old in (one, other)]
        for old, stream in zip((one, other), streams, strict=True):
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
    assert shown(path)[0] == list(range(40))


def test_frames_before_the_first_time_stamp_are_shown_one_after_the_other():
    """A cut that kept what was before time 0: Matroska then has no time for it, and the first one is near 0."""
    clock = decode._Clock(RATE)
    stamps = [None] * 10 + list(range(20, 420, 40))
    frames = [SimpleNamespace(pts=stamp, dts=None, time_base=Fraction(1, 1000)) for stamp in stamps]
    np.testing.assert_allclose([clock.shown(frame) for frame in frames], np.arange(20) / RATE)  # pyright: ignore


def test_frames_whose_time_has_passed_are_shown_one_after_the_other():
    """Some muxers give a few frames one time, or an earlier one, and catch up later."""
    clock = decode._Clock(RATE)
    places = [*range(20), 18, 19, 20, 21, 24, 25]
    frames = [SimpleNamespace(pts=40 * place, dts=None, time_base=Fraction(1, 1000)) for place in places]
    np.testing.assert_allclose([clock.shown(frame) for frame in frames], np.arange(26) / RATE)  # pyright: ignore


def test_a_clock_does_not_run_away_from_times_that_ascend():
    """Of a variable rate, with some times twice: the usual interval is longer than most."""
    times = sorted([*({*range(29)} - {3, 7, 12, 14, 19, 24}), 2, 5, 11, 13, 18, 22, 27])
    times += [30 + 2 * step for step in range(30)]
    clock = decode._Clock(10 / 1.86)
    frames = [SimpleNamespace(pts=time, dts=None, time_base=Fraction(1, 10)) for time in times]
    found = np.array([clock.shown(frame) for frame in frames])  # pyright: ignore
    assert (np.diff(found) > 0).all() and np.abs(found - np.array(times) / 10).max() < 4 / (10 / 1.86)
    np.testing.assert_allclose(found[-20:], np.array(times[-20:]) / 10)


def test_a_stream_whose_clock_starts_anew_goes_on(tmp_path, caplog):
    one = encode(tmp_path / "a.ts", "mpeg2video", between=0).read_bytes()
    (tmp_path / "b.ts").write_bytes(one + one)
    found, times, tally = shown(tmp_path / "b.ts")
    assert len(found) == 80 and tally.leaps == 1 and "clock restarts" in str(tally)
    np.testing.assert_allclose(times, np.arange(80) / RATE, atol=1e-3)
    assert decode.track(tmp_path / "b.ts").span == pytest.approx(80 / RATE, abs=0.1)


@pytest.mark.parametrize("ending", [".mts", ".m2ts", ".3gp", ".vob"])
def test_what_cameras_write_is_a_video(tmp_path, ending):
    encode(
        tmp_path / f"A{ending.upper()}",
        "mpeg2video" if ending != ".3gp" else "mpeg4",
        fmt=None if ending != ".mts" else "mpegts",
    )
    assert len(next(iter(config(tmp_path, fps=RATE).episodes())).frames) == 40


def test_pyav_makes_no_times_up(tmp_path):
    """PyAV's gen_pts would invent presentation times for AVI's B-frames."""
    with decode._opened(encode(tmp_path / "a.avi")) as container:
        assert not container.flags & Flags.gen_pts.value


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.avi"])
def test_whatever_is_broken_decoding_ends(tmp_path, name):
    """Also while the decoder's threads are at work: Python must never be waited for by those it waits for."""
    path, rng = encode(tmp_path / name), np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place : place + 4] = rng.bytes(4)
        path.write_bytes(data)
        try:
            found, times, tally = shown(path)
        except Unusable:
            continue
        assert len(found) == tally.shown and (np.diff(times) >= 0).all() and np.isfinite(times).all()
        next(decode.frames(decode.track(path), Tally()), None)  # left while the threads are at work
