"""The cache of what frozen models say: the same as asking them, asked once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import FRAME
from flax import nnx

from reverie.actions import START, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.training.tokens import KEY, SEGMENT, Joined, _segments, cached

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
    return cached(model or Eye(), look, data, lead, folder), bool(traced)


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: (cache / KEY).write_text("{"),
        lambda cache: (cache / KEY).write_text(json.dumps([1])),
        lambda cache: (cache / KEY).unlink(),
        lambda cache: (cache / "latents.npy").unlink(),
        lambda cache: (cache / "latents.npy").write_bytes(b""),
        lambda cache: _half(cache / "latents.npy"),
    ],
    ids=["no JSON", "no record", "no key", "no latents", "empty latents", "half of the latents"],
)
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    expected = np.array(make(tmp_path / "cache")[0].arrays["latents"])
    damage(tmp_path / "cache")
    kept, asked = make(tmp_path / "cache")
    assert asked
    np.testing.assert_array_equal(kept.arrays["latents"], expected)


def test_nothing_is_left_of_a_cache_that_failed(tmp_path):
    def fail(model, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(Eye(), fail, DATA, 0, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_joined_windows_hold_both(tmp_path):
    both = Joined(DATA, make(tmp_path / "cache")[0])
    window = both.read(1, 60, 10)
    np.testing.assert_array_equal(window["frames"], DATA.read(1, 60, 10)["frames"])
    np.testing.assert_array_equal(window["latents"], both.cache.read(1, 60, 10)["latents"])
    assert {name: len(array) for name, array in window.items()} == dict.fromkeys(window, 10)
    assert both.fingerprint == DATA.fingerprint and both.spec == DATA.spec
