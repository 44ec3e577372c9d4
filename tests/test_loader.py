"""Batches are a pure function of (seed, step), the same from disk and memory, on any number of processes."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from reverie.actions import START
from reverie.data.arrays import ArrayDataset
from reverie.data.loader import batches, clips
from reverie.data.order import Tiles, shuffled
from reverie.data.sources.platformer import TIME, PlatformerConfig
from reverie.data.store import open_dataset, write_store
from reverie.errors import ReverieError
from reverie.training.tokens import Joined

WORLD = PlatformerConfig(tile=4, tiles=6, count=5, frames=30)


@pytest.fixture(scope="module")
def memory():
    return ArrayDataset.from_episodes(WORLD.spec(), WORLD.episodes())


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "toy"
    return open_dataset(write_store(path, WORLD.spec(), {"train": WORLD.episodes()}, chunk=8))


def take(dataset, count, **options):
    defaults: dict[str, Any] = {"batch": 8, "length": 10, "seed": 3}
    return list(itertools.islice(batches(dataset, **(defaults | options)), count))


def equal(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_memory_and_disk_give_the_same_stream(memory, disk):
    stream = take(memory, 6)
    assert equal(stream, take(disk, 6)) and equal(stream, take(disk, 6, prefetch=0))
    assert stream[0]["frames"].shape == (8, 10, 24, 24, 3) and stream[0]["frames"].dtype == np.uint8
    assert stream[0]["actions"].shape == stream[0]["ends"].shape == (8, 10)
    assert not equal(stream, take(memory, 6, seed=4))
    assert len({batch["frames"].tobytes() for batch in stream}) == 6


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_resuming_gives_the_stream_that_would_have_been(kind, request):
    dataset = request.getfixturevalue(kind)
    stream = take(dataset, 7)
    for start in (1, 4, 6):
        assert equal(stream[start:], take(dataset, 7 - start, start=start))
    assert equal(take(dataset, 1, start=10**9), take(dataset, 1, start=10**9))


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_shards_are_the_rows_of_the_same_global_batch(kind, count, request):
    dataset = request.getfixturevalue(kind)
    parts = [take(dataset, 3, start=2, shard=(index, count)) for index in range(count)]
    joined = [{k: np.concatenate([p[step][k] for p in parts]) for k in parts[0][0]} for step in range(3)]
    assert equal(joined, take(dataset, 3, start=2))


def test_windows_are_whole_pieces_of_episodes_with_their_own_actions(memory):
    for batch in take(memory, 20):
        times, levels = batch["states"][:, :, TIME], batch["states"][:, :, 0]
        assert (np.diff(times) == 1).all() and (levels == levels[:, :1]).all()
        assert ((batch["actions"] == START) == (times == 0)).all()  # a cut window begins with a real action


def counted(lengths, length, epochs=1, seed=0):
    """Which windows some epochs draw: [(episode, first frame), ...] of each."""
    order = Tiles.of(np.array(lengths), length, seed)
    size = int(order.ends[-1])
    return [[order.window(epoch * size + number)[:2] for number in range(size)] for epoch in range(epochs)]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16])
def test_an_epoch_shows_every_frame_and_no_window_twice(length):
    lengths = [1, 2, 3, 5, 7, 15, 16, 17, 18, 31, 32, 33, 48, 128, 129]
    for windows in counted(lengths, length, epochs=20):
        assert len(set(windows)) == len(windows)
        seen = {(episode, first + t) for episode, first in windows for t in range(length)}
        assert seen == {(e, t) for e, frames in enumerate(lengths) if frames >= length for t in range(frames)}
        assert len(windows) * length <= 2 * len(seen) + 3 * length * len(lengths)


def test_epochs_differ_and_the_first_and_last_frames_are_seen_as_often_as_others():
    frames, starts = np.zeros(128, int), np.zeros(113, int)
    epochs = counted([128], 16, epochs=400)
    assert len({tuple(epoch) for epoch in epochs}) == 400
    for _, first in itertools.chain(*epochs):
        frames[first : first + 16] += 1
        starts[first] += 1
    assert frames.min() == 400 and frames.max() <= 2.2 * 400 and frames[[0, -1]].tolist() == [400, 400]
    assert starts[1:-1].min() > 0 and starts[1:-1].max() < 4 * np.median(starts[1:-1])


def test_batches_draw_the_epochs_one_after_the_other(memory):
    size = int(Tiles.of(memory.lengths, 10, 3).ends[-1])
    rows = np.concatenate([batch["states"][:, 0, [0, TIME]] for batch in take(memory, size, batch=8)])
    for epoch in np.split(rows, 8):
        assert len(np.unique(epoch, axis=0)) == size


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 100, 1000])
def test_a_shuffle_is_a_permutation_of_its_own_for_every_key(count):
    orders = [[shuffled(place, count, key) for place in range(count)] for key in range(10)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) >= min(count, 8)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_only_what_is_asked_for_is_read(kind, request):
    dataset = request.getfixturevalue(kind)
    whole, some = take(dataset, 2), take(dataset, 2, names=("actions", "states"))
    assert [set(batch) for batch in some] == [{"actions", "states"}] * 2
    assert equal(some, [{name: batch[name] for name in ("actions", "states")} for batch in whole])


def test_what_a_cache_has_is_not_read_from_the_store(memory):
    class Unread(ArrayDataset):
        def read(self, episode, start, length, names=None):
            raise AssertionError("read")

    tokens = np.arange(len(memory.arrays["frames"]))[:, None]
    cache = ArrayDataset(memory.spec, memory.lengths, {"latents": tokens}, fingerprint="x")
    store = Unread(memory.spec, memory.lengths, memory.arrays, fingerprint="x")
    (batch,) = take(Joined(store, cache), 1, names=("latents",), prefetch=0)
    assert set(batch) == {"latents"} and batch["latents"].shape == (8, 10, 1)
    (batch,) = take(Joined(memory, cache), 1, names=("latents", "actions"), prefetch=0)
    assert set(batch) == {"latents", "actions"}


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_impossible_wishes_are_refused_at_once(kind, request):
    dataset = request.getfixturevalue(kind)
    with pytest.raises(ReverieError, match="the longest has 30"):
        batches(dataset, batch=2, length=31, seed=0)
    for wrong in ({"batch": 0}, {"batch": 3, "shard": (0, 2)}, {"shard": (2, 2)}, {"seed": -1}, {"length": 0}):
        with pytest.raises(ReverieError):
            take(dataset, 0, **wrong)
    with pytest.raises(ReverieError, match="105 different clips"):
        clips(dataset, length=10, count=106, seed=0)


def test_an_error_while_reading_ahead_is_not_hidden(tmp_path):
    dataset = open_dataset(write_store(tmp_path / "d", WORLD.spec(), WORLD.episodes()))
    file = tmp_path / "d" / "train-00000.array_record"
    content = bytearray(file.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    file.write_bytes(content)
    with pytest.raises(ReverieError, match=file.name):
        take(dataset, 50)


def test_clips_are_fixed_distinct_and_spread(memory, disk):
    some = clips(memory, length=10, count=10, seed=0)
    assert some["frames"].shape == (10, 10, 24, 24, 3)
    assert equal([some], [clips(disk, length=10, count=10, seed=0)])
    assert not equal([some], [clips(memory, length=10, count=10, seed=1)])
    assert len(np.unique(some["states"][:, 0, 0])) == WORLD.count  # every episode is seen
    everything = clips(memory, length=10, count=105, seed=0)
    assert len(np.unique(everything["states"][:, 0][:, [0, TIME]], axis=0)) == 105


def test_data_in_memory_needs_numpy_alone(tmp_path):
    code = """
import sys
for name in ("grain", "array_record", "jax", "msgpack"):
    sys.modules[name] = None
import itertools
from reverie.data.arrays import ArrayDataset
from reverie.data.loader import batches, clips
from reverie.data.sources.platformer import PlatformerConfig
world = PlatformerConfig(tile=4, tiles=6, count=3, frames=20)
path = ArrayDataset.from_episodes(world.spec(), world.episodes()).save("d.npz")
for batch in itertools.islice(batches(ArrayDataset.load(path), batch=4, length=5, seed=0), 3):
    assert batch["frames"].shape == (4, 5, 24, 24, 3)
assert len(clips(ArrayDataset.load(path), length=5, count=6, seed=0)["actions"]) == 6
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
