"""Numbers that training keeps as it goes: how large a loss has been, how latents are spread.

Shapes: ... any leading axes, S the axes of what is kept.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.nn.batch import Mean


class Statistics(nnx.Variable):
    """State that training changes and gradients do not; it is saved in checkpoints."""


class RunningRMS(nnx.Module):
    """Divides a loss by how large it has been, so that terms of different units can be added up.

    Dreamer 4 (arXiv 2509.24527, section 3) names no form; ours keeps a running mean of the loss squared and divides by
    its root from *before* the step, as lucidrains and open-dreamer do. Two differences: it begins with the first
    loss instead of 1 (so the first step alone is divided by 1), and it never falls below a tenth of the largest it has
    been: else a loss that goes to zero makes gradients that grow without bound.
    """

    decay, floor = 0.95, 0.1

    def __init__(self):
        self.square = Statistics(jnp.zeros(()))  # 0: nothing seen yet
        self.largest = Statistics(jnp.zeros(()))

    def __call__(self, loss: Mean) -> Mean:
        """Return a loss divided by its running root mean square."""
        root = jnp.sqrt(self.square[...])
        scale = jnp.maximum(root, jnp.float32(self.floor) * jnp.maximum(self.largest[...], root))
        return loss.times(jnp.where(root > 0, 1 / jnp.maximum(scale, jnp.float32(1e-8)), 1.0))

    def settle(self, loss: Mean, key: Array, progress: Array) -> None:
        """Learn from a step's loss, as it was before it was divided."""
        now = jnp.square(loss.value)
        before = jnp.where(self.square[...] > 0, self.square[...], now)
        self.square[...] = jnp.float32(self.decay) * before + jnp.float32(1 - self.decay) * now
        self.largest[...] = jnp.maximum(self.largest[...], jnp.sqrt(before))


class RunningMoments(nnx.Module):
    """Mean and spread of vectors over their leading axes: brings them to mean 0 and variance 1, and back.

    It begins as the identity; the first steps are averaged evenly, later ones by ``decay``. Nothing that is trained
    passes through it. A number that hardly varies is not blown up: its spread counts as at least ``least``.
    """

    decay, least = 0.99, 0.05

    def __init__(self, *shape: int):
        self.mean = Statistics(jnp.zeros(shape))
        self.square = Statistics(jnp.ones(shape))
        self.steps = Statistics(jnp.zeros(()))

    def note(self, x: Array) -> tuple[Mean, Mean]:
        """Return what ``settle`` takes in of (..., S)."""
        x, axes, one = jax.lax.stop_gradient(x), tuple(range(x.ndim - self.mean.ndim)), jnp.ones(())
        return Mean(jnp.mean(x, axis=axes), one), Mean(jnp.mean(jnp.square(x), axis=axes), one)

    def settle(self, note: tuple[Mean, Mean], key: Array, progress: Array) -> None:
        """Learn from what a step's batch had to note."""
        keep = jnp.minimum(jnp.float32(self.decay), self.steps[...] / (1 + self.steps[...]))
        for kept, new in zip((self.mean, self.square), note, strict=True):
            kept[...] = keep * kept[...] + (1 - keep) * new.value
        self.steps[...] = self.steps[...] + 1

    def normalise(self, x: Array) -> Array:
        """(..., S) -> about mean 0 and variance 1."""
        mean, spread = self._of(x)
        return (x - mean) / spread

    def restore(self, x: Array) -> Array:
        """The way back."""
        mean, spread = self._of(x)
        return x * spread + mean

    def _of(self, x: Array) -> tuple[Array, Array]:
        variance = self.square[...] - jnp.square(self.mean[...])
        spread = jnp.sqrt(jnp.maximum(variance, jnp.float32(self.least**2)))
        shape = (1,) * (x.ndim - spread.ndim) + spread.shape
        return self.mean[...].reshape(shape), spread.reshape(shape)
