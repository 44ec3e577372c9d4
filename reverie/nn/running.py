"""Running statistics of training: the scale of a loss, mean and variance of latents.

Shapes: ... any leading axes, S the axes of the statistics.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.nn.batch import Mean


class Statistics(nnx.Variable):
    """State that training updates without gradients; it is saved in checkpoints."""


class RunningRMS(nnx.Module):
    """Divides a loss by its running root mean square, so that terms of different units can be added.

    Dreamer 4 (arXiv 2509.24527, section 3) gives no formula. As in lucidrains and open-dreamer, the divisor is the root
    of a running mean of the squared loss from *before* the step. Two differences: it starts from the first loss instead
    of 1 (so only the first step is divided by 1). And it never falls below a tenth of its largest value: otherwise the
    gradients of a loss that goes to zero grow without bound.
    """

    decay, floor = 0.95, 0.1

    def __init__(self):
        self.square = Statistics(jnp.zeros(()))  # 0: no step yet
        self.largest = Statistics(jnp.zeros(()))

    def __call__(self, loss: Mean) -> Mean:
        """Return a loss divided by its running root mean square."""
        root = jnp.sqrt(self.square[...])
        scale = jnp.maximum(root, jnp.float32(self.floor) * jnp.maximum(self.largest[...], root))
        return loss.times(jnp.where(root > 0, 1 / jnp.maximum(scale, jnp.float32(1e-8)), 1.0))

    def settle(self, loss: Mean, key: Array, progress: Array) -> None:
        """Update from a step's loss before division."""
        now = jnp.square(loss.value)
        square = jnp.where(self.square[...] > 0, self.square[...], now)
        self.square[...] = jnp.float32(self.decay) * square + jnp.float32(1 - self.decay) * now
        self.largest[...] = jnp.maximum(self.largest[...], jnp.sqrt(square))


class RunningMoments(nnx.Module):
    """Running mean and variance of vectors over their leading axes: normalises to mean 0 and variance 1, and back.

    It starts as the identity. The first steps are averaged evenly, later ones with ``decay``. It has no gradient. A
    standard deviation counts as at least ``least``, so that a component that hardly varies is not scaled up.
    """

    decay, least = 0.99, 0.05

    def __init__(self, *shape: int):
        self.mean = Statistics(jnp.zeros(shape))
        self.square = Statistics(jnp.ones(shape))
        self.steps = Statistics(jnp.zeros(()))

    def note(self, x: Array) -> tuple[Mean, Mean]:
        """Return the moments of (..., S) for ``settle``."""
        x, axes, one = jax.lax.stop_gradient(x), tuple(range(x.ndim - self.mean.ndim)), jnp.ones(())
        return Mean(jnp.mean(x, axis=axes), one), Mean(jnp.mean(jnp.square(x), axis=axes), one)

    def settle(self, note: tuple[Mean, Mean], key: Array, progress: Array) -> None:
        """Update from the moments of a step's batch."""
        keep = jnp.minimum(jnp.float32(self.decay), self.steps[...] / (1 + self.steps[...]))
        for average, new in zip((self.mean, self.square), note, strict=True):
            average[...] = keep * average[...] + (1 - keep) * new.value
        self.steps[...] = self.steps[...] + 1

    def normalise(self, x: Array) -> Array:
        """(..., S) -> about mean 0 and variance 1."""
        mean, spread = self._of(x)
        return (x - mean) / spread

    def scaled(self, x: Array) -> Array:
        """(..., S) -> about variance 1, with its mean and sign kept."""
        return x / self._of(x)[1]

    def restore(self, x: Array) -> Array:
        """The inverse of ``normalise``."""
        mean, spread = self._of(x)
        return x * spread + mean

    def _of(self, x: Array) -> tuple[Array, Array]:
        variance = self.square[...] - jnp.square(self.mean[...])
        spread = jnp.sqrt(jnp.maximum(variance, jnp.float32(self.least**2)))
        shape = (1,) * (x.ndim - spread.ndim) + spread.shape
        return self.mean[...].reshape(shape), spread.reshape(shape)
