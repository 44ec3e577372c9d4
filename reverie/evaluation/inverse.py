"""Inverse dynamics: a small network learns from real frames which action lies between two, then reads rollouts.

MineWorld (arXiv 2504.08388) does this with a large network. Many actions have no visible effect (walking against a
wall). So the accuracy on real frames is the upper bound for a rollout, and that of the commonest action the lower one.

Legend: B clips or pairs of frames, T time, H W C image, A actions.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax import Array

from reverie.data.episode import Dataset
from reverie.data.loader import clips
from reverie.nn.image import shrunk
from reverie.training.optim import OptimConfig, Weights

CLIPS, LENGTH, BYTES = 256, 17, 2**28  # training set: the most clips, frames of each, the most bytes in all
STEPS, BATCH, WIDTH = 300, 64, 32  # seconds on two cores
GRID = 12  # patches along the longer side: a few matmuls, where convolutions inside a loop take minutes on a CPU
TOGETHER = 256  # transitions in a batch


class Reader:
    """A network trained on clips and their actions to predict the action between two frames."""

    def __init__(self, frames_BTHWC: np.ndarray, actions_BT: np.ndarray, size: int, seed: int = 0):
        frames = shrunk(frames_BTHWC)
        rng = np.random.default_rng(seed)
        places = np.argwhere(actions_BT[:, 1:] >= 0) + np.array([0, 1])  # no action leads to the first frame
        picks = places[rng.integers(0, len(places), (STEPS, BATCH))]
        patch = -(-max(frames.shape[2:4]) // GRID)
        name = partial(_name, patch)
        self._weights = _learn(name, _drawn(rng, patch**2 * frames.shape[-1], size), frames, actions_BT, picks)
        self._name = jax.jit(lambda *given: name(*given).argmax(-1))

    def actions(self, frames_BTHWC: np.ndarray) -> np.ndarray:
        """Return the predicted actions between the frames of clips, (B, T-1)."""
        frames = shrunk(frames_BTHWC)
        before, after = (rearrange(x, "b t h w c -> (b t) h w c") for x in (frames[:, :-1], frames[:, 1:]))
        parts = []
        for start in range(0, len(before), TOGETHER):
            rows = np.minimum(np.arange(start, start + TOGETHER), len(before) - 1)  # one shape, one program
            parts.append(np.asarray(self._name(self._weights, before[rows], after[rows])))
        return np.concatenate(parts)[: len(before)].reshape(len(frames), -1)


def learned(practice: Dataset, seed: int = 0) -> Reader | None:
    """Return a reader trained on clips of ``practice``; None if no actions were recorded there."""
    size = practice.spec.actions.size
    length = min(LENGTH, int(practice.lengths.max(initial=0)))
    if not size or length < 2:
        return None
    different = int(np.maximum(practice.lengths - length + 1, 0).sum())
    room = max(BYTES // (length * int(np.prod(practice.spec.frame))), 1)
    found = clips(practice, length=length, count=min(CLIPS, different, room), seed=seed)
    return Reader(found["frames"], found["actions"], size, seed) if (found["actions"][:, 1:] >= 0).any() else None


def read(reader: Reader, frames_BTHWC: np.ndarray, actions_BT: np.ndarray) -> dict[str, np.ndarray]:
    """Return, per clip, "right" and "asked" transitions within ``frames``; ``actions[:, t]`` led to frame t."""
    true = actions_BT[:, 1:]
    right = (reader.actions(frames_BTHWC) == true) & (true >= 0)
    return {"right": right.sum(1), "asked": (true >= 0).sum(1)}


def _drawn(rng: np.random.Generator, inputs: int, actions: int) -> Weights:
    widths = {
        "look": (2 * inputs, WIDTH),
        "around": (9 * WIDTH, WIDTH),
        "whole": (2 * WIDTH, 4 * WIDTH),
        "name": (4 * WIDTH, actions),
    }
    kernels = {f"{layer}.kernel": rng.normal(size=(a, b)) * np.sqrt(2 / a) for layer, (a, b) in widths.items()}
    biases = {f"{layer}.bias": np.zeros(b) for layer, (_, b) in widths.items()}
    return {name: jnp.asarray(weight, jnp.float32) for name, weight in (kernels | biases).items()}


def _name(patch: int, weights: Weights, before_BHWC: Array, after_BHWC: Array) -> Array:
    """Logits (B, A), of patches of both frames, then of 3 x 3 patches, then of their mean and maximum."""

    def layer(name, x):
        return x @ weights[f"{name}.kernel"] + weights[f"{name}.bias"].reshape((1,) * (x.ndim - 1) + (-1,))

    before, after = (x.astype(jnp.float32) / 255 for x in (before_BHWC, after_BHWC))
    x = jnp.concatenate([before - 0.5, 2 * (after - before)], axis=-1)
    spare = [-size % patch for size in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), (0, spare[0]), (0, spare[1]), (0, 0)))
    x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=patch, q=patch)
    x = jax.nn.relu(layer("look", x))
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = jnp.concatenate([x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1)
    x = jax.nn.relu(layer("around", x))
    x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
    return layer("name", jax.nn.relu(layer("whole", x)))


def _learn(name, weights, frames, actions, picks):
    config = OptimConfig(rate=3e-3, schedule="cosine", warmup=10, weight_decay=1e-3)
    optimizer, rates = config.make(), np.array([config.rate_at(step, STEPS) for step in range(STEPS)], np.float32)

    @jax.jit
    def run(weights, frames_BTHWC, actions_BT, picks):
        def step(state, given):
            (weights, moments), (pick, rate) = state, given
            clip, time = pick.T

            def loss(weights):
                logits = name(weights, frames_BTHWC[clip, time - 1], frames_BTHWC[clip, time])
                return optax.softmax_cross_entropy_with_integer_labels(logits, actions_BT[clip, time]).mean()

            changes, moments = optimizer.update(jax.grad(loss)(weights), moments, weights)
            return (optax.apply_updates(weights, optax.tree.scale(rate, changes)), moments), None

        return jax.lax.scan(step, (weights, optimizer.init(weights)), (picks, jnp.asarray(rates)))[0][0]

    return run(weights, frames, actions, picks)
