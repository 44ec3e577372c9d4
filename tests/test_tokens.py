"""The cache of what frozen models say: the same as asking them, asked once."""

import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import FRAME
from flax import nnx
from golden import unpack

from reverie.actions import START, ActionSpace
from reverie.checksums import MANIFEST
from reverie.config import replace
from reverie.data.arrays import ArrayDataset
from reverie.data.columns import Column
from reverie.data.episode import Episode, Spec
from reverie.data.splits import Piece
from reverie.data.store import open_dataset
from reverie.errors import ReverieError
from reverie.training import checkpoint, tokens
from reverie.training.engine import fit
from reverie.training.tokens import SEGMENT, Joined, _segments, cached

LENGTHS = (5, 150, SEGMENT, SEGMENT + 1, 1, 70, 2, 3, 9)


def dataset(seed=0):
    rng = np.random.default_rng(seed)
    episodes = []
    for length in LENGTHS:
        actions = rng.integers(0, 3, length).astype(np.int32)
        actions[0] = START
        frames = rng.integers(0, 256, (length, *FRAME)).astype(np.uint8)
        episodes.append(Episode(frames, actions, np.zeros(length, np.float32), np.zeros(length, bool)))
    return ArrayDataset.from_episodes(Spec(FRAME, ActionSpace("discrete", 3), 10.0, "noise"), episodes)


DATA = dataset()
SMALL = DATA.part([Piece("small", episode, 0, LENGTHS[episode]) for episode in (0, 5)], "small")


class Eye(nnx.Module):
    """One projection of each frame, and how it changed since ``back`` frames before."""

    def __init__(self, seed: int = 0, back: int = 0):
        self.weights = nnx.Param(jax.random.normal(jax.random.key(seed), (int(np.prod(FRAME)), 4)))
        self.back, self.calls = back, 0

    def __call__(self, frames):
        x = frames.reshape(*frames.shape[:2], -1).astype(jnp.float32) / 255
        past = jnp.pad(x, ((0, 0), (self.back, 0), (0, 0)))[:, : x.shape[1]]
        return jnp.round((x - past if self.back else x) @ self.weights[...] * 4).astype(jnp.int32)


traced = []


def look(model, batch):
    traced.append(batch["frames"].shape)
    return {"latents": model(batch["frames"]), "actions": batch["actions"]}


def make(folder, model=None, data=DATA, lead=0):
    """Return the cache, and whether the model was asked for it."""
    traced.clear()
    return cached(model or Eye(), look, data, lead, folder, ["weights"]), bool(traced)


@pytest.mark.parametrize(("back", "lead"), [(0, 0), (0, 5), (1, 1), (3, 3), (2, 7)])
def test_it_holds_what_the_model_says_of_every_frame(tmp_path, back, lead):
    model = Eye(back=back)
    kept, _ = make(tmp_path / "cache", model, lead=lead)
    for episode, length in enumerate(LENGTHS):
        window, real = kept.read(episode, 0, length), DATA.read(episode, 0, length)
        np.testing.assert_array_equal(window["latents"], model(real["frames"][None])[0])
        np.testing.assert_array_equal(window["actions"], real["actions"])
    assert kept.fingerprint == DATA.fingerprint and "frames" not in kept.arrays


def test_segments_keep_every_frame_once():
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths, lead = rng.integers(1, 5 * SEGMENT, 6), int(rng.integers(0, 2 * SEGMENT))
        times = [np.zeros(length, int) for length in lengths]
        for episode, start, stop, keep in _segments(lengths, lead):
            assert 0 <= start <= keep < stop <= lengths[episode] and stop - start <= SEGMENT + lead
            assert keep - start == min(lead, keep), "what looks back has something to look back on"
            times[episode][keep:stop] += 1
        assert all((count == 1).all() for count in times)


def test_it_is_made_once_and_again_when_something_changed(tmp_path):
    first, asked = make(tmp_path / "cache")
    assert asked
    again, asked = make(tmp_path / "cache")
    assert not asked
    np.testing.assert_array_equal(first.arrays["latents"], again.arrays["latents"])
    for changes in ({"model": Eye(1)}, {"data": dataset(1)}, {"lead": 2}):
        assert make(tmp_path / "cache", **changes)[1] and not make(tmp_path / "cache", **changes)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def _half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path, share):
    raw = bytearray(path.read_bytes())
    bit = int(share * 8 * len(raw))
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def _zero(path):
    raw = path.read_bytes()
    path.write_bytes(raw[:200] + bytes(64) + raw[264:])


FLIPS = {
    f"bit {share:.3f} of {name}": lambda cache, name=name, share=share: _flip(cache / name, share)
    for name in ("latents.npy", "actions.npy")
    for share in np.linspace(0, 0.999, 4).tolist()
}


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: (cache / MANIFEST).write_text("{"),
        lambda cache: (cache / MANIFEST).write_text(json.dumps([1])),
        lambda cache: (cache / MANIFEST).unlink(),
        lambda cache: _flip(cache / MANIFEST, 0.5),
        lambda cache: (cache / "latents.npy").unlink(),
        lambda cache: (cache / "latents.npy").write_bytes(b""),
        lambda cache: (cache / "latents.npy").rename(cache / "latent.npy"),
        lambda cache: (cache / "more.npy").write_bytes((cache / "actions.npy").read_bytes()),
        lambda cache: _half(cache / "latents.npy"),
        lambda cache: _zero(cache / "latents.npy"),
        *FLIPS.values(),
    ],
    ids=["no JSON", "no record", "no manifest", "a bit of the manifest", "no latents", "empty latents", "renamed",
         "one more", "half of the latents", "zeros", *FLIPS],
)  # fmt: skip
def test_a_damaged_cache_is_made_again(tmp_path, whole, damage):
    expected = np.array(whole[0].arrays["latents"])
    shutil.copytree(whole[1], tmp_path / "cache")
    damage(tmp_path / "cache")
    kept, asked = make(tmp_path / "cache", data=SMALL)
    assert asked
    np.testing.assert_array_equal(kept.arrays["latents"], expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small cache, and where it is."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    return make(folder, data=SMALL)[0], folder


def test_weights_that_are_trained_do_not_concern_it(tmp_path):
    class Trained(Eye):
        def __init__(self):
            super().__init__()
            self.other = nnx.Param(jnp.zeros(3))

    model = Trained()
    assert make(tmp_path / "cache", model, data=SMALL)[1]
    model.other[...] = jnp.ones(3)
    assert not make(tmp_path / "cache", model, data=SMALL)[1], "every resume would encode everything again"


def test_an_error_that_passes_is_no_damage(tmp_path, whole, monkeypatch):
    def fail(path):
        raise OSError(116, "Stale file handle")

    before = {path: path.stat().st_mtime_ns for path in whole[1].iterdir()}
    monkeypatch.setattr("reverie.checksums.crc", fail)
    with pytest.raises(OSError, match="Stale"):
        make(whole[1], data=SMALL)
    assert {path: path.stat().st_mtime_ns for path in whole[1].iterdir()} == before


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / ".cache.1234").mkdir()  # of an earlier version that was killed
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 1_000, 5_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # no file may grow larger, as on a full disk
        try:
            with pytest.raises(ReverieError, match="cannot cache tokens in .*Make room there") as error:
                make(tmp_path / "cache")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    full = type(shutil.disk_usage(tmp_path))(total=100, used=90, free=10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(ReverieError, match="No space left on device"):
            make(tmp_path / "cache")
    assert make(tmp_path / "cache")[1] and [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_long_encoding_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tokens, "QUIET", 0.0)
    make(tmp_path / "cache")
    assert capsys.readouterr().out.startswith("frames encoded: 0%\n")
    make(tmp_path / "cache")
    assert not capsys.readouterr().out


def test_nothing_is_left_of_a_cache_that_failed(tmp_path):
    def fail(model, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(Eye(), fail, DATA, 0, tmp_path / "cache", ["weights"])
    assert not list(tmp_path.iterdir())


def test_joined_windows_hold_both(tmp_path):
    both = Joined(DATA, make(tmp_path / "cache")[0])
    window = both.read(1, 60, 10)
    np.testing.assert_array_equal(window["frames"], DATA.read(1, 60, 10)["frames"])
    np.testing.assert_array_equal(window["latents"], both.cache.read(1, 60, 10)["latents"])
    assert {name: len(array) for name, array in window.items()} == dict.fromkeys(window, 10)
    assert both.fingerprint == DATA.fingerprint and both.spec == DATA.spec


def test_arrays_are_copied_beside_what_the_model_says_and_read_in_clips(tmp_path):
    """A clip is the same read alone or with others, from memory or from the cache."""
    kept = cached(Eye(), look, DATA, 0, tmp_path / "cache", ["weights"], ["rewards", "ends"])
    assert all(isinstance(array, Column) for array in kept.arrays.values())
    assert set(kept.arrays) == {"latents", "actions", "rewards", "ends"} and kept.arrays["ends"].dtype == bool
    memory = ArrayDataset(DATA.spec, kept.lengths, {name: np.asarray(array) for name, array in kept.arrays.items()})
    np.testing.assert_array_equal(memory.arrays["actions"], DATA.arrays["actions"])
    episodes, starts = np.array([1, 0, 5, 1]), np.array([145, 0, 30, 3])
    clips = [each.clips(episodes, starts, 5, ("latents", "ends")) for each in (memory, kept)]
    single = [kept.read(int(episode), int(start), 5) for episode, start in zip(episodes, starts, strict=True)]
    for name in ("latents", "ends"):
        np.testing.assert_array_equal(clips[1][name], clips[0][name])
        np.testing.assert_array_equal(clips[1][name], np.stack([window[name] for window in single]))
        assert clips[1][name].dtype == clips[0][name].dtype
    assert set(clips[0]) == set(clips[1]) == {"latents", "ends"}
    for wrong in ((episodes, starts + 2), (episodes, starts - 1)):
        with pytest.raises(IndexError, match="beyond"):
            kept.clips(*wrong, 5)
    os.truncate(tmp_path / "cache" / "latents.npy", 300)
    with pytest.raises(ReverieError, match="ends too early"):
        kept.clips(episodes, starts, 5)


def test_training_goes_on_without_encoding_anything_again(tmp_path, monkeypatch):
    """The dynamics' weights change from resume to resume; what the frozen tokenizer says does not."""
    world = unpack(tmp_path / "world")
    out, calls = world / "dynamics", []
    run = replace(checkpoint.read_record(out).run, keep=1)
    train, write = open_dataset(world / "data", "train"), tokens._write

    def counted(*given):
        calls.append(given[3].name)
        return write(*given)

    monkeypatch.setattr(tokens, "_write", counted)
    for steps in (5, 6):  # nothing is held out: one cache for both
        fit(replace(run, steps=steps), out, dataset=train, held_out=open_dataset(world / "data", "train"))
    assert calls == [".train.part"] and len(list((out / "cache").glob("train/*.npy"))) == 2
    _flip(out / "cache" / "train" / "latents.npy", 0.9)
    fit(replace(run, steps=7), out, dataset=train, held_out=train)
    assert calls == [".train.part"] * 2
