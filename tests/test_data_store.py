"""Datasets on disk: what goes in comes out, nothing half-written, and a clear sentence for everything that is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from reverie.actions import START, UNLABELLED, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.data.sources.platformer import PlatformerConfig
from reverie.data.store import LEFT, MANIFEST, StoreDataset, open_dataset, write_store
from reverie.errors import ReverieError

WORLD = PlatformerConfig(tile=4, tiles=6, count=23, frames=20)


def episode_of(length, spec, seed=0, states=True):
    rng = np.random.default_rng(seed)
    actions = rng.integers(UNLABELLED + 2, spec.actions.size, length).astype(np.int32)
    actions[0] = START
    return Episode(
        frames=rng.integers(0, 256, (length, *spec.frame)).astype(np.uint8),
        actions=actions,
        rewards=rng.normal(size=length).astype(np.float32),
        ends=rng.random(length) < 0.1,
        states=rng.integers(0, 99, (length, 3)).astype(np.int32) if states else None,
        source=f"clip {seed}",
    )


SPEC = Spec((4, 6, 3), ActionSpace("discrete", 5), 10.0, "made up")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "toy", WORLD.spec(), WORLD.episodes(), chunk=8)


@pytest.mark.parametrize("file_bytes", [1 << 30, 100])
@pytest.mark.parametrize("states", [True, False])
def test_every_window_reads_back_across_chunks_and_files(tmp_path, file_bytes, states):
    episodes = [episode_of(length, SPEC, seed, states) for seed, length in enumerate([1, 7, 8, 9, 30])]
    path = write_store(tmp_path / "d", SPEC, {"train": episodes}, chunk=8, file_bytes=file_bytes)
    dataset = open_dataset(path, checksums=True)
    assert dataset.spec == SPEC and dataset.lengths.tolist() == [1, 7, 8, 9, 30]
    assert isinstance(dataset, StoreDataset) and dataset.sources == [e.source for e in episodes]
    assert len(list(path.glob("*.array_record"))) == (1 if file_bytes > 100 else 9)
    for index, episode in enumerate(episodes):
        for start in range(len(episode.frames)):
            for length in range(1, len(episode.frames) - start + 1):
                window = dataset.read(index, start, length)
                assert set(window) == set(episode.arrays())
                for name, array in episode.arrays().items():
                    assert window[name].dtype == array.dtype
                    assert np.array_equal(window[name], array[start : start + length])
    with pytest.raises(IndexError):
        dataset.read(0, 0, 2)


def test_splits_are_disjoint_deterministic_and_about_as_large_as_asked(store, tmp_path):
    again = write_store(tmp_path / "elsewhere", WORLD.spec(), WORLD.episodes(), chunk=8)
    train, val = (StoreDataset(store, split) for split in ("train", "val"))
    assert train.fingerprint == open_dataset(again).fingerprint != val.fingerprint
    assert len(train.lengths) + len(val.lengths) == WORLD.count and len(val.lengths) == 2
    assert not set(train.sources) & set(val.sources)
    for file in store.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    two = write_store(tmp_path / "two", SPEC, [episode_of(5, SPEC, seed) for seed in range(2)])
    assert len(open_dataset(two, "val").lengths) == 1
    whole = write_store(tmp_path / "whole", SPEC, (episode_of(5, SPEC, seed) for seed in range(3)), val=0)
    assert len(open_dataset(whole).lengths) == 3


def test_episodes_are_streamed(tmp_path):
    """Never more than one episode is asked for before the one before it is on its way to the disk."""
    alive = []

    def episodes():
        import weakref

        for seed in range(6):
            episode = episode_of(50, SPEC, seed)
            alive.append(weakref.ref(episode))
            yield episode
            del episode
            assert sum(ref() is not None for ref in alive) <= 1

    write_store(tmp_path / "d", SPEC, episodes())


def test_one_file_holds_the_same_as_a_folder(store, tmp_path):
    file = write_store(tmp_path / "toy.npz", WORLD.spec(), WORLD.episodes())
    assert [p.name for p in tmp_path.iterdir()] == ["toy.npz"]
    for split in ("train", "val"):
        one, other = open_dataset(file, split), open_dataset(store, split)
        assert one.spec == other.spec and one.lengths.tolist() == other.lengths.tolist()
        for episode in range(len(one.lengths)):
            a, b = one.read(episode, 3, 14), other.read(episode, 3, 14)
            assert set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)
    assert open_dataset(file, "train").fingerprint != open_dataset(file, "val").fingerprint
    with pytest.raises(ReverieError, match="no split 'test'"):
        open_dataset(file, "test")


def test_a_failed_write_leaves_nothing(tmp_path):
    def episodes():
        yield episode_of(5, SPEC)
        bad = episode_of(5, SPEC)
        bad.actions[2] = 9
        yield bad

    for name in ("d", "d.npz"):
        with pytest.raises(ReverieError, match="action 9"):
            write_store(tmp_path / name, SPEC, episodes())
    with pytest.raises(ReverieError, match="no episodes"):
        write_store(tmp_path / "d", SPEC, [])
    with pytest.raises(ReverieError, match="holds"):
        write_store(tmp_path / "d", SPEC, [episode_of(5, SPEC), episode_of(5, SPEC, 1, states=False)])
    assert not list(tmp_path.iterdir())


def test_a_killed_write_leaves_nothing_that_looks_like_a_dataset(tmp_path):
    code = (
        "import itertools; from reverie.data.store import write_store; from reverie.data.sources.platformer import *\n"
        "world = PlatformerConfig(tile=4, tiles=6, count=10**6, frames=20)\n"
        "write_store('d', world.spec(), world.episodes(), file_bytes=10**5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not list(tmp_path.rglob("*-00001.array_record")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".*.part")) and not list(tmp_path.rglob(MANIFEST)) and not (tmp_path / "d").exists()
    with pytest.raises(ReverieError, match="no dataset"):
        open_dataset(tmp_path / "d")


def test_an_existing_folder_is_not_overwritten(store):
    before = sorted(p.name for p in store.iterdir())
    with pytest.raises(ReverieError, match="exists already"):
        write_store(store, WORLD.spec(), WORLD.episodes())
    assert sorted(p.name for p in store.iterdir()) == before


@pytest.fixture
def copy(store, tmp_path):
    """A copy of the store that a test may damage."""
    path = tmp_path / "toy"
    path.mkdir()
    for file in store.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def edit(path, change):
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["checksum"]  # as an earlier version, or another program, would write it
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_wrong_paths_are_answered_with_the_right_one(copy, tmp_path):
    hints = {"tyo": "Did you mean 'toy'?", ".": "toy'?", "a/b": "there is no dataset at"}
    for path, hint in hints.items():
        with pytest.raises(ReverieError) as error:
            open_dataset(tmp_path / path)
        assert hint in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ReverieError, match="Did you mean 'train'"):
        open_dataset(copy, "trian")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy"]  # and nothing was made by asking


def test_damage_is_found_and_reported(copy):
    good = {file.name: file.read_bytes() for file in copy.iterdir()}
    records = "train-00000.array_record"
    middle = len(good[records].rstrip(b"\0")) // 2
    flipped = bytearray(good[records])
    flipped[middle] ^= 255

    def write(name, content):
        (copy / name).write_bytes(content)

    cases = [
        (lambda: (copy / records).unlink(), "is missing"),
        (lambda: write(records, good[records][:-100]), "bytes instead of"),
        (lambda: write(records, bytes(flipped)), "checksum"),
        (lambda: write(MANIFEST, b"{"), "damaged"),
        (lambda: write(MANIFEST, b"[]"), "damaged"),
        (lambda: edit(copy, lambda m: m.pop("chunk")), "damaged"),
        (lambda: edit(copy, lambda m: m.update(schema=99)), "newer Reverie"),
        (lambda: edit(copy, lambda m: m.update(format="other")), "not a dataset that Reverie wrote"),
        (lambda: edit(copy, lambda m: m["splits"]["train"]["lengths"].pop()), "counts disagree"),
        (lambda: edit(copy, lambda m: m["spec"].update(frame=[12, 48, 3])), "not those its spec says"),
        (lambda: edit(copy, lambda m: m["arrays"][1].__setitem__(1, "object")), "not those its spec says"),
        (lambda: edit(copy, lambda m: m["spec"].update({"class": "os:system"})), "not a config"),
    ]
    for damage, message in cases:
        damage()
        with pytest.raises(ReverieError, match=message) as error:
            open_dataset(copy, checksums=True)
        assert "\n" not in str(error.value)
        for name, content in good.items():
            write(name, content)
    write(records, bytes(flipped))  # and without asking for checksums, when the record is read
    with pytest.raises(ReverieError) as error:
        dataset = open_dataset(copy)
        for episode in range(len(dataset.lengths)):
            dataset.read(episode, 0, 20)
    assert records in str(error.value) and "\n" not in str(error.value)


def test_a_record_of_the_same_size_but_another_shape_is_refused(tmp_path):
    """48 x 12 pixels fill as many bytes as 24 x 24: never trust the count."""
    path = write_store(tmp_path / "d", WORLD.spec(), WORLD.episodes())
    file = path / "train-00000.array_record"
    reader = array_record_module.ArrayRecordReader(str(file))
    records = reader.read_all()
    reader.close()
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,zstd:3")
    for record in records:
        size = int.from_bytes(record[:4], "little")
        header = msgpack.unpackb(record[4 : 4 + size])
        header["arrays"][0][2] = [header["arrays"][0][2][0], 48, 12, 3]
        packed = msgpack.packb(header)
        assert isinstance(packed, bytes) and len(packed) == size
        writer.write(record[:4] + packed + record[4 + size :])
    writer.close()
    edit(path, lambda m: m["splits"]["train"]["files"][0].update(bytes=file.stat().st_size))
    with pytest.raises(ReverieError, match="disagrees with the manifest"):
        open_dataset(path).read(0, 0, 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frames", np.zeros((5, 6, 4, 3), np.uint8), "this dataset needs uint8"),
        ("frames", np.zeros((5, 4, 6, 3), np.float32), "this dataset needs uint8"),
        ("frames", np.zeros((0, 4, 6, 3), np.uint8), "at least one frame"),
        ("actions", np.full(5, -1, np.int32), "begin with action START"),
        ("actions", np.array([0, 1, 2, 3, 4], np.int32), "begin with action START"),
        ("actions", np.array([-1, 1, 2, 3, 5], np.int32), "has action 5"),
        ("actions", np.array([-1, 1, 2, 3], np.int32), "one int32 for each of its 5"),
        ("rewards", np.zeros(5), "one float32"),
    ],
)
def test_episodes_are_checked_at_the_door(name, value, message):
    episode = episode_of(5, SPEC)
    setattr(episode, name, value)
    with pytest.raises(ReverieError, match=message):
        episode.validate(SPEC)
    with pytest.raises(ReverieError, match=message):
        ArrayDataset.from_episodes(SPEC, [episode])


def test_unlabelled_video_is_valid():
    spec = Spec((4, 6, 3), ActionSpace(), 10.0, "videos")
    episode = episode_of(5, SPEC, states=False)
    episode.actions[1:] = UNLABELLED
    episode.validate(spec)


def test_one_file_that_is_damaged_foreign_or_a_pickle_is_refused(tmp_path):
    file = ArrayDataset.from_episodes(SPEC, [episode_of(9, SPEC)]).save(tmp_path / "a.npz")
    good = file.read_bytes()
    assert np.array_equal(ArrayDataset.load(file).read(0, 2, 3)["frames"], episode_of(9, SPEC).frames[2:5])
    for content in (good[: len(good) // 2], b"", b"text", good[:400] + b"\0\0\0\0" + good[404:]):
        file.write_bytes(content)
        with pytest.raises(ReverieError, match="damaged") as error:
            ArrayDataset.load(file)
        assert "\n" not in str(error.value)
    np.savez(file, frames=np.zeros(3))
    with pytest.raises(ReverieError, match="not a dataset"):
        ArrayDataset.load(file)
    np.savez(file, reverie=np.array([print], object), lengths=np.zeros(3))
    with pytest.raises(ReverieError, match="not write for arrays of numbers"):
        ArrayDataset.load(file)


def test_without_array_record_the_other_way_is_named(store, tmp_path):
    code = f"""
import sys
sys.modules["array_record"] = None
from reverie.errors import ReverieError
from reverie.data.store import open_dataset, write_store
from reverie.data.sources.platformer import PlatformerConfig
world = PlatformerConfig(tile=4, tiles=6, count=3, frames=20)
for attempt in (lambda: open_dataset({str(store)!r}), lambda: write_store("d", world.spec(), world.episodes())):
    try:
        attempt()
    except ReverieError as error:
        assert ".npz" in str(error)
    else:
        raise SystemExit("no error")
write_store("d.npz", world.spec(), world.episodes())
assert open_dataset("d.npz").read(0, 0, 5)["frames"].shape == (5, 24, 24, 3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["d.npz"]


def test_what_a_killed_writer_left_is_cleared_once_it_is_old(tmp_path):
    for name, age in (("old", 2 * LEFT), ("new", 60)):
        (tmp_path / f".d.{name}.part").mkdir()
        file = tmp_path / f".d.{name}.part" / "train-00000.array_record"
        file.touch()
        for path in (file, file.parent):
            os.utime(path, (time.time() - age,) * 2)
    write_store(tmp_path / "d", SPEC, [episode_of(9, SPEC)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".d.new.part", "d"]
