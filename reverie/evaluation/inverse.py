"""Can the action be read off the dream? A small network learns that on real frames, and reads dreams.

As MineWorld (arXiv 2504.08388) does with a large one. Many actions do nothing that can be seen (walking against a
wall), so what it gets on real frames is the most that a dream can get; the commonest action alone is the least.

Legend: B clips, T time, H W C image, P patches, M width, A actions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax import Array

from reverie.data.episode import Dataset
from reverie.data.loader import clips
from reverie.evaluation.image import shrunk

CLIPS, LENGTH, BYTES = 256, 17, 2**28  # what is learned from: so many clips at most, frames of each, bytes in all
STEPS, BATCH, RATE = 300, 64, 3e-3  # seconds on two cores
GRID = 8  # patches along the longer side: a few matmuls, where convolutions inside a loop take minutes on a CPU


class Probe(nnx.Module):
    """Names the action between two frames: patches of both, three by three of them, the picture's mean and maximum."""

    def __init__(self, frame: tuple[int, int, int], actions: int, width: int = 32, *, rngs: nnx.Rngs):
        height, width_, channels = frame
        self.patch = -(-max(height, width_) // GRID)
        self.look = nnx.Linear(self.patch**2 * channels * 2, width, rngs=rngs)
        self.around = nnx.Linear(9 * width, width, rngs=rngs)
        self.whole = nnx.Linear(2 * width, 4 * width, rngs=rngs)
        self.name = nnx.Linear(4 * width, actions, rngs=rngs)

    def __call__(self, before_BHWC: Array, after_BHWC: Array) -> Array:
        """uint8 frames -> logits (B, A)."""
        before, after = (x.astype(jnp.float32) / 255 for x in (before_BHWC, after_BHWC))
        x = jnp.concatenate([before - 0.5, 2 * (after - before)], axis=-1)
        spare = [-size % self.patch for size in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), (0, spare[0]), (0, spare[1]), (0, 0)))
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.patch, q=self.patch)
        x = jax.nn.relu(self.look(x))
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = jnp.concatenate([x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1)
        x = jax.nn.relu(self.around(x))
        x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
        return self.name(jax.nn.relu(self.whole(x)))


class Reader:
    """A probe that has learned; ``None`` comes of ``learned`` where there is nothing to learn."""

    def __init__(self, frames_BTHWC: np.ndarray, actions_BT: np.ndarray, size: int, seed: int = 0):
        frames = shrunk(frames_BTHWC)
        probe = Probe(frames.shape[2:], size, rngs=nnx.Rngs(seed))
        graph, weights = nnx.split(probe)
        places = np.argwhere(actions_BT[:, 1:] >= 0) + [0, 1]  # the first frame has none before it
        picks = places[np.random.default_rng(seed).integers(0, len(places), (STEPS, BATCH))]

        def name(weights, before_BHWC, after_BHWC):
            return nnx.merge(graph, weights)(before_BHWC, after_BHWC)

        self._weights = _learn(name, weights, frames, actions_BT, picks)
        self._name = jax.jit(lambda *given: name(*given).argmax(-1))

    def actions(self, frames_BTHWC: np.ndarray) -> np.ndarray:
        """Return the actions it reads between the frames of clips, (B, T-1)."""
        frames = shrunk(frames_BTHWC)
        read = [self._name(self._weights, clip[:-1], clip[1:]) for clip in frames]
        return np.stack([np.asarray(row) for row in read])


def learned(practice: Dataset, seed: int = 0) -> Reader | None:
    """Return a reader that learned from clips of ``practice``; None where no actions were recorded there."""
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


def _learn(name, weights, frames, actions, picks):
    update = optax.adamw(optax.cosine_decay_schedule(RATE, STEPS), weight_decay=1e-3)

    @jax.jit
    def run(weights, frames_BTHWC, actions_BT, picks):
        def step(state, pick):
            weights, moments = state
            clip, time = pick.T

            def loss(weights):
                logits = name(weights, frames_BTHWC[clip, time - 1], frames_BTHWC[clip, time])
                return optax.softmax_cross_entropy_with_integer_labels(logits, actions_BT[clip, time]).mean()

            changes, moments = update.update(jax.grad(loss)(weights), moments, weights)
            return (optax.apply_updates(weights, changes), moments), None

        return jax.lax.scan(step, (weights, update.init(weights)), picks)[0][0]

    return run(weights, frames, actions, picks)
