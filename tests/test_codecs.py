"""Codecs of frames: what goes in comes out, stores of different ones work together, and hostile records are refused."""

import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from test_combining import SPEC, episode_of, files

from benchmarks import codecs as benchmark
from reverie import cli
from reverie.checksums import read_signed, write_json
from reverie.data import codecs
from reverie.data.codecs import CODECS, Coded, codec_of, probed
from reverie.data.copying import opened
from reverie.data.episode import Spec
from reverie.data.filling import MANIFEST, SCHEMA
from reverie.data.sources.square import SquareConfig
from reverie.data.store import StoreDataset, open_dataset, write_store
from reverie.data.writing import write_source
from reverie.errors import Damaged, ReverieError

SQUARE = SquareConfig(count=6, frames=20)
PICTURES = [name for name, codec in CODECS.items() if isinstance(codec, Coded)]


def smooth(shape, seed=0):
    """Frames that pictures of FFmpeg are made for: a gradient that moves."""
    count, height, width, channels = shape
    t, y, x, c = np.indices((count, height, width, channels))
    return ((3 * t + 2 * y + x + 40 * c + seed) % 200 + 20).astype(np.uint8)


@pytest.mark.parametrize("shape", [(16, 32, 32, 3), (3, 4, 6, 3), (5, 7, 9, 1), (1, 1, 1, 3)])
@pytest.mark.parametrize("name", CODECS)
def test_frames_come_back(name, shape):
    frames, codec = smooth(shape), codec_of(name)
    data = codec.encode(frames)
    again = codec.decode(memoryview(data), shape)
    assert again.shape == shape and again.dtype == np.uint8 and codec.encode(frames) == data
    assert (again == frames).all() if codec.lossless else abs(again.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("name", PICTURES)
def test_what_a_hostile_record_claims_is_bounded(name, monkeypatch):
    frames, codec = smooth((16, 32, 32, 3)), codec_of(name)
    data = codec.encode(frames)
    rng = np.random.default_rng(0)
    for cut in (b"", data[:3], data[:10], data[:-1], rng.bytes(len(data)), data + b"\0\0\0\1"):
        with pytest.raises(Damaged):
            codec.decode(memoryview(cut), frames.shape)
    broken = [bytearray(data) for _ in range(20)]
    for one in broken:
        one[rng.integers(12, len(data))] ^= 1 << rng.integers(8)
    for one, shape in [
        *((one, frames.shape) for one in broken),
        (bytes(len(data)), frames.shape),
        (data, (2, 8, 8, 3)),
    ]:
        try:  # damage inside is an error or another picture, never anything else
            assert codec.decode(memoryview(bytes(one)), shape).shape == shape
        except Damaged as error:
            assert "\n" not in str(error)
    with pytest.raises(Damaged, match="is more than"):
        codec.decode(memoryview(data), (16, 60000, 60000, 3))
    monkeypatch.setattr(codecs, "LARGEST", 1000)
    with pytest.raises(Damaged, match="choose --codec zstd"):
        codec.encode(frames)


def test_a_probe_chooses_the_smallest_that_reads_fast_enough(monkeypatch):
    noise = [np.random.default_rng(seed).integers(0, 256, (16, 24, 24, 3)).astype(np.uint8) for seed in range(2)]
    assert probed(noise)[0] == "raw"  # nothing can be saved
    still = [np.repeat(frames[:1], 16, axis=0) for frames in noise]
    name, line = probed(still)
    assert name == "zstd" and line.startswith("codec: zstd (raw 1.0 times smaller") and "frames/s; png" in line
    film = [smooth((16, 32, 32, 3)) + frames[:, :1, :1, :1] // 128 for frames in noise]
    assert probed(film)[0] in ("png", "ffv1")
    monkeypatch.setattr(codecs, "LEAST", 1e9)
    assert probed(film)[0] == "zstd"


@pytest.mark.parametrize("name", ["raw", *PICTURES])
def test_a_store_of_a_codec_reads_as_any_other(tmp_path, name, capsys, monkeypatch):
    plain = write_source(tmp_path / "plain", SQUARE, codec="zstd")
    flags = ["--count", "6", "--frames", "20"]
    assert cli.main(["data", "square", str(tmp_path / name), *flags, "--codec", name]) == 0
    manifest = read_signed(tmp_path / name / MANIFEST, required=True)
    assert manifest["codec"] == name and manifest["schema"] == (1 if name == "raw" else SCHEMA)
    for split in ("train", "val"):
        ours, theirs = open_dataset(tmp_path / name, split, checksums=True), open_dataset(plain, split)
        assert ours.lengths.tolist() == theirs.lengths.tolist()
        for start, length in ((0, 20), (0, 16), (13, 5), (17, 1)):
            a, b = ours.read(0, start, length), theirs.read(0, start, length)
            same = {key: np.array_equal(a[key], b[key]) for key in b}
            assert a.keys() == b.keys() and all(same[key] for key in b if key != "frames")
            assert same["frames"] or not CODECS[name].lossless
        with monkeypatch.context() as patch:  # of actions alone, no frame is unpacked
            patch.setattr(type(CODECS[name]), "decode", None)
            assert ours.read(0, 0, 20, ("actions", "rewards")).keys() == {"actions", "rewards"}
    again = write_source(tmp_path / "again", SQUARE, codec=name)
    assert files(again) == files(tmp_path / name)
    capsys.readouterr()
    assert cli.main(["data", "show", str(tmp_path / name)]) == 0
    loses = "" if CODECS[name].lossless else ", which loses detail"
    assert f"codec: {name}{loses}; 0." in capsys.readouterr().out


def test_the_probe_is_said_in_one_line_and_its_choice_written(tmp_path, capsys):
    path = write_source(tmp_path / "auto", SQUARE)
    assert capsys.readouterr().err.count("codec: zstd (raw ") == 1
    assert files(path) == files(write_source(tmp_path / "named", SQUARE, codec="zstd"))
    for words in ("square no --codec zst", "square no.npz --codec png", f"show {path} --codec raw"):
        assert cli.main(["data", *words.split()]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_stores_of_earlier_versions_load(tmp_path):
    path = write_store(tmp_path / "old", SPEC, [episode_of(0), episode_of(1)], val=0)
    manifest = read_signed(path / MANIFEST)
    assert manifest.pop("codec") == "zstd" and manifest["schema"] == 1
    write_json(path / MANIFEST, manifest)
    assert np.array_equal(open_dataset(path).read(1, 3, 9)["frames"], episode_of(1).frames[3:12])
    for wrong, message in (("lzma", "'lzma', which is unknown"), ([], "unknown"), ("png", "is damaged: its frames")):
        write_json(path / MANIFEST, manifest | {"codec": wrong})
        with pytest.raises(ReverieError, match=message) as error:
            open_dataset(path).read(0, 0, 2)
        assert "\n" not in str(error.value)


def made(path, seeds, codec):
    spec = Spec((16, 16, 3), SPEC.actions, 10.0, "made up")
    episodes = []
    for seed in seeds:
        episode = episode_of(seed, 20 + seed)
        episode.frames = smooth((20 + seed, 16, 16, 3), 50 * seed)
        episodes.append(episode)
    return write_store(path, spec, {"train": episodes}, codec=codec)


def test_stores_made_of_others_keep_the_codec_and_the_packed_frames(tmp_path):
    """Of h264 as well: what was packed once loses nothing a second time."""
    a, b, c = made(tmp_path / "a", [0, 1], "h264"), made(tmp_path / "b", [2], "h264"), made(tmp_path / "c", [3], "png")

    def frames(path, episode):
        dataset = open_dataset(path)
        return dataset.read(episode, 0, int(dataset.lengths[episode]), ("frames",))["frames"]

    assert cli.main(["data", "merge", str(tmp_path / "ab"), str(a), str(b)]) == 0
    assert cli.main(["data", "merge", str(tmp_path / "ac"), str(a), str(c)]) == 0
    assert cli.main(["data", "subset", str(a), str(tmp_path / "a1"), "--episodes", "1"]) == 0
    assert cli.main(["data", "subset", str(a), str(tmp_path / "ffv1"), "--codec", "ffv1"]) == 0
    found = {name: opened(tmp_path / name).codec for name in ("ab", "ac", "a1", "ffv1")}
    assert found == {"ab": "h264", "ac": "zstd", "a1": "h264", "ffv1": "ffv1"}
    ab, first = open_dataset(tmp_path / "ab"), open_dataset(a)
    assert isinstance(ab, StoreDataset) and isinstance(first, StoreDataset)
    assert ab.packed(1, "h264", 16, 21) == first.packed(1, "h264", 16, 21) != b""
    assert not (ab.packed(1, "h264", 0, 15) or ab.packed(1, "h264", 1, 17) or ab.packed(1, "png", 0, 16))
    same = ("ab", 1, a, 1), ("ab", 2, b, 0), ("ac", 2, c, 0), ("a1", 0, a, 1), ("ffv1", 1, a, 1)
    for path, episode, other, its in same:
        assert np.array_equal(frames(tmp_path / path, episode), frames(other, its)), path
    assert cli.main(["data", "append", str(c), str(a)]) == 0
    assert opened(c).codec == "png" and np.array_equal(frames(c, 2), frames(a, 1))
    assert cli.main(["data", "append", str(c), str(b), "--codec", "raw"]) == 2
    assert cli.main(["data", "merge", str(tmp_path / "ab"), str(a), str(b), "--codec", "raw"]) == 2  # it is there


@pytest.mark.parametrize("name", ["auto", "h264"])
def test_parts_of_an_array_job_lose_nothing_before_they_are_merged(tmp_path, name):
    whole = write_source(tmp_path / "whole", SQUARE, codec=name)
    parts = [write_source(tmp_path / str(part), SQUARE, shard=(part, 2), codec=name) for part in range(2)]
    assert cli.main(["data", "merge", str(tmp_path / "merged"), *map(str, parts)]) == 0
    assert files(tmp_path / "merged") == files(whole)


def test_the_benchmark_measures_every_codec(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "FRAMES", 30)
    monkeypatch.setattr(benchmark, "CLIPS", 2)
    rows = benchmark.measure(made(tmp_path / "a", [0, 1, 2], "zstd"))
    assert [row.split(" | ")[2] for row in rows] == list(CODECS)


def test_a_record_that_was_changed_is_named(tmp_path):
    path = made(tmp_path / "a", [0], "png")
    file = path / "train-00000.array_record"
    records = array_record_module.ArrayRecordReader(str(file)).read_all()
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for record in records:
        writer.write(record.replace(b"PNG", b"GNP"))
    writer.close()
    manifest = read_signed(path / MANIFEST)
    manifest["splits"]["train"]["files"][0]["bytes"] = file.stat().st_size
    write_json(path / MANIFEST, manifest)
    with pytest.raises(ReverieError, match="chunk 0 of episode 0 in split 'train'.*damaged") as error:
        open_dataset(path).read(0, 0, 4)
    assert "\n" not in str(error.value)
