"""Inverse dynamics: a small network learns from real frames which action lies between two, then reads rollouts.

MineWorld (arXiv 2504.08388) does this with a large network. Many actions have no visible effect (walking against a
wall). So the accuracy on real frames is the upper bound for a rollout, and that of the commonest action the lower one.
Each component of an action is read by itself; of a continuous one, whether it is low, in the middle or high.

Legend: B clips or pairs of frames, T time, H W C image, A components of an action, L levels of all components.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax import Array

from reverie.actions import ActionSpace
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

    def __init__(self, frames_BTHWC: np.ndarray, actions: np.ndarray, space: ActionSpace, seed: int = 0):
        frames, self.space, levels_BTA = shrunk(frames_BTHWC), space, space.by_level(actions)
        rng = np.random.default_rng(seed)
        places = np.argwhere(levels_BTA[:, 1:, 0] >= 0) + np.array([0, 1])  # no action leads to the first frame
        picks = places[rng.integers(0, len(places), (STEPS, BATCH))]
        patch = -(-max(frames.shape[2:4]) // GRID)
        name = partial(_name, patch, space.levels)
        drawn = _drawn(rng, patch**2 * frames.shape[-1], sum(space.levels))
        self._weights = _learn(name, drawn, frames, levels_BTA, picks)
        self._name = jax.jit(lambda *given: jnp.stack([logits.argmax(-1) for logits in name(*given)], -1))

    def levels(self, frames_BTHWC: np.ndarray) -> np.ndarray:
        """Return the levels of the predicted actions between the frames of clips, (B, T-1, A)."""
        frames = shrunk(frames_BTHWC)
        before, after = (rearrange(x, "b t h w c -> (b t) h w c") for x in (frames[:, :-1], frames[:, 1:]))
        parts = []
        for start in range(0, len(before), TOGETHER):
            rows = np.minimum(np.arange(start, start + TOGETHER), len(before) - 1)  # one shape, one program
            parts.append(np.asarray(self._name(self._weights, before[rows], after[rows])))
        return np.concatenate(parts)[: len(before)].reshape(len(frames), frames.shape[1] - 1, -1)


def learned(practice: Dataset, seed: int = 0) -> Reader | None:
    """Return a reader trained on clips of ``practice``; None if no actions were recorded there."""
    space = practice.spec.actions
    length = min(LENGTH, int(practice.lengths.max(initial=0)))
    if not space.size or length < 2:
        return None
    different = int(np.maximum(practice.lengths - length + 1, 0).sum())
    room = max(BYTES // (length * int(np.prod(practice.spec.frame))), 1)
    found = clips(practice, length=length, count=min(CLIPS, different, room), seed=seed)
    known = space.is_action(found["actions"][:, 1:]).any()
    return Reader(found["frames"], found["actions"], space, seed) if known else None


def read(reader: Reader, frames_BTHWC: np.ndarray, actions: np.ndarray) -> dict[str, np.ndarray]:
    """Return, per clip, "right" and "asked" components within ``frames``; ``actions[:, t]`` led to frame t."""
    true = reader.space.by_level(actions[:, 1:])
    right = (reader.levels(frames_BTHWC) == true) & (true >= 0)
    return {"right": right.sum((1, 2)), "asked": (true >= 0).sum((1, 2))}


def chance(space: ActionSpace, actions: np.ndarray) -> float | None:
    """Return the accuracy of naming the commonest level of each component; None if no action is known."""
    levels = space.by_level(actions)
    known = levels[levels[..., 0] >= 0] if space.size else levels[:0]
    return float(np.mean([np.bincount(each).max() / len(each) for each in known.T])) if len(known) else None


def _drawn(rng: np.random.Generator, inputs: int, levels: int) -> Weights:
    widths = {
        "look": (2 * inputs, WIDTH),
        "around": (9 * WIDTH, WIDTH),
        "whole": (2 * WIDTH, 4 * WIDTH),
        "name": (4 * WIDTH, levels),
    }
    kernels = {f"{layer}.kernel": rng.normal(size=(a, b)) * np.sqrt(2 / a) for layer, (a, b) in widths.items()}
    biases = {f"{layer}.bias": np.zeros(b) for layer, (_, b) in widths.items()}
    return {name: jnp.asarray(weight, jnp.float32) for name, weight in (kernels | biases).items()}


def _name(patch: int, levels: tuple[int, ...], weights: Weights, before_BHWC: Array, after_BHWC: Array) -> list[Array]:
    """Logits of each component, of patches of both frames, then of 3 x 3 patches, then of their mean and maximum."""

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
    return jnp.split(layer("name", jax.nn.relu(layer("whole", x))), np.cumsum(levels)[:-1].tolist(), axis=-1)


def _learn(name, weights, frames, levels, picks):
    config = OptimConfig(rate=3e-3, schedule="cosine", warmup=10, weight_decay=1e-3)
    optimizer, rates = config.make(), np.array([config.rate_at(step, STEPS) for step in range(STEPS)], np.float32)

    @jax.jit
    def run(weights, frames_BTHWC, levels_BTA, picks):
        def step(state, given):
            (weights, moments), (pick, rate) = state, given
            clip, time = pick.T

            def loss(weights):
                found = name(weights, frames_BTHWC[clip, time - 1], frames_BTHWC[clip, time])
                true = levels_BTA[clip, time].T
                lost = map(optax.softmax_cross_entropy_with_integer_labels, found, true)
                return sum(each.mean() for each in lost) / len(found)

            changes, moments = optimizer.update(jax.grad(loss)(weights), moments, weights)
            return (optax.apply_updates(weights, optax.tree.scale(rate, changes)), moments), None

        return jax.lax.scan(step, (weights, optimizer.init(weights)), (picks, jnp.asarray(rates)))[0][0]

    return run(weights, frames, levels, picks)
