"""The bouncing square: two tokenizers against linear ones, five minutes; shortcut forcing over both, half an hour.

PCA is the bar that a tokenizer must clear to be worth its name: the best that can be done without a nonlinearity,
learned from the same frames. All is measured on held-out episodes, with nothing hidden unless said otherwise.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.data.arrays import ArrayDataset
from reverie.data.loader import clips
from reverie.data.sources.square import SquareConfig
from reverie.data.store import open_dataset
from reverie.evaluation.rollouts import Rollouts
from reverie.nn.batch import row_keys
from reverie.nn.patch import hide, unit_range
from reverie.pipeline import train
from reverie.presets import preset
from reverie.training.checkpoint import load
from reverie.training.engine import fit

HELD_OUT = SquareConfig(count=64, seed=1000)
NUMBERS = (3, 16, 64, 128, 256, 512)  # per frame


def episodes(source):
    return ArrayDataset.from_episodes(source.spec(), source.episodes())


def sharpness(truth, painted):
    """PSNR in dB of the mean error over all frames (uint8 and floats in 0..1): what PCA makes smallest."""
    return float(-10 * np.log10(np.mean(np.square(np.asarray(unit_range(truth)) - np.clip(painted, 0, 1)))))


def mean_colour(frames):
    return sharpness(frames, unit_range(frames).mean(axis=(1, 2), keepdims=True))


def linear(train, held_out):
    """What PCA of the training frames reaches on held-out ones, by the number of components."""
    flat, rest = (frames.reshape(len(frames), -1) for frames in (train, held_out))
    mean = flat.mean(axis=0, dtype=np.float64).astype(np.float32) / 255
    spread = np.zeros((len(mean),) * 2, np.float32)
    for rows in np.array_split(flat, len(flat) // 4096 + 1):  # all at once would be a gigabyte
        x = rows.astype(np.float32) / 255 - mean
        spread += x.T @ x
    axes = np.linalg.svd(spread, hermitian=True)[0]
    x, found = rest.astype(np.float32) / 255 - mean, {}
    for count in NUMBERS:
        painted = x @ axes[:, :count] @ axes[:, :count].T + mean
        found[count] = sharpness(held_out, painted.reshape(held_out.shape))
    return found


def through(model, frames, hidden=0.0, blank=False):
    """Frames painted by a tokenizer, and what passed its bottleneck; ``blank``: if nothing had passed."""

    @jax.jit
    def run(frames, key):
        x = hide(model.embedded(frames), model.hidden[...], (hidden, hidden), row_keys(key, len(frames)))
        z = model.bottleneck(x)
        return model.decode_latents(jnp.zeros_like(z) if blank else z), z

    painted, z = run(frames[:, None], jax.random.key(0))
    return np.asarray(painted[:, 0]), np.asarray(z)


def measure(model, frames):
    """Everything said about a tokenizer; each frame stands alone."""
    painted, z = through(model, frames)
    return {
        "psnr": sharpness(frames, painted),
        "psnr_hidden_.9": sharpness(frames, through(model, frames, hidden=0.9)[0]),
        "psnr_blank": sharpness(frames, through(model, frames, blank=True)[0]),
        "spread": float(z.std()),
        "saturated": float(np.mean(np.abs(z) > 0.99)),
        "given": float(np.asarray(jax.jit(model.encode)(frames[:, None])).std()),
    }


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
def test_tokenizers_of_the_square_beat_pca(tmp_path):
    data, held_out = episodes(preset("square-shortcut").source), episodes(HELD_OUT)
    frames = held_out.arrays["frames"]
    bars = linear(data.arrays["frames"], frames)
    print("\nPCA by numbers per frame:", {count: round(psnr, 1) for count, psnr in bars.items()})
    best, colour = 0.0, mean_colour(frames)
    for name in ("square-shortcut", "square-shortcut-mae"):
        fit(preset(name).tokenizer, tmp_path / name, dataset=data, held_out=held_out, progress=False)
        model = load(tmp_path / name)
        numbers, bar = measure(model, frames), bars[model.tokens * model.width]
        print(f"{name}: {model.tokens} x {model.width},", {key: round(value, 3) for key, value in numbers.items()})
        assert numbers["psnr"] >= bar + 2
        assert numbers["psnr"] >= numbers["psnr_hidden_.9"] + 3
        assert numbers["psnr_blank"] <= colour, "something went round the bottleneck"
        assert 0.3 <= numbers["spread"] <= 0.8 and numbers["saturated"] < 0.05
        best = max(best, numbers["psnr"])
    assert best >= 30


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["square-shortcut", "square-shortcut-mae"])
def test_shortcut_forcing_follows_the_actions_of_the_square(tmp_path, name):
    """Eight context frames, eight generated: near the reconstruction, in four passes as in eight, and controllable."""
    out = train(preset(name), tmp_path / "square")
    clip = clips(open_dataset(out / "data", "val"), length=16, count=64, seed=0)
    frames, actions = clip["frames"], clip["actions"]
    others = np.concatenate([actions[:, :8], np.roll(actions, 1, axis=0)[:, 8:]], axis=1)
    found = {"copy": sharpness(frames[:, 8:], unit_range(np.repeat(frames[:, 7:8], 8, axis=1)))}
    for passes in (4, 8):
        world = load(out)
        world.dynamics.config = dataclasses.replace(world.dynamics.config, passes=passes)
        rollouts = Rollouts(world, temperature=world.dynamics.temperature)
        found[passes] = sharpness(frames[:, 8:], unit_range(rollouts.rollout(frames[:, :8], actions)))
        found["shuffled"] = sharpness(frames[:, 8:], unit_range(rollouts.rollout(frames[:, :8], others)))
        found["floor"] = sharpness(frames[:, 8:], unit_range(rollouts.reconstruct(frames)[1][:, 8:]))
    ratio = json.loads((out / "eval.json").read_text("utf8"))["action_shuffle_ratio"]
    print("\n", {key: round(value, 2) for key, value in found.items()}, "shuffle ratio", round(ratio, 1))
    assert found[4] >= found["copy"] + 4 and found[4] >= found["floor"] - 3
    assert found[4] >= found[8] - 1 and found[4] >= found["shuffled"] + 3 and ratio >= 1.5
