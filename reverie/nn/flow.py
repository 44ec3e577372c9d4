"""Flow matching on a straight line from noise at level 0 to data at level 1 (Lipman et al., arXiv 2210.02747).

``level`` is the share of data, Dreamer 4's tau (a diffusion timestep). A denoiser is conditioned on the level that its
input *has*. Conditioned on the next level instead, it is wrong at every step, and no loss shows it.

Shapes: ... any axes; levels broadcast against data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

CHANGED = 0.1  # a token of numbers in (-1, 1) has changed if it moved at least so far


def noised(data: Array, noise: Array, level: Array) -> Array:
    """Return the point at ``level`` between noise (0) and data (1)."""
    return (1 - level) * noise + level * data


def ramp(level: Array) -> Array:
    """Return the weight of a level in the loss, 0.9 level + 0.1 (Dreamer 4, arXiv 2509.24527, eq. 8)."""
    return jnp.float32(0.9) * level + jnp.float32(0.1)


def moved(latents_BTND: Array) -> Array:
    """Return 1.0 where a token differs by ``CHANGED`` from the frame before, root mean square of its numbers."""
    step = jnp.mean(jnp.square(latents_BTND[:, 1:] - latents_BTND[:, :-1]), axis=-1)
    return (step > CHANGED**2).astype(jnp.float32)


def data_of(velocity: Array, point: Array, level: Array) -> Array:
    """Return the data that a velocity (data minus noise) predicted at a point of ``level`` leads to."""
    return point + (1 - level) * velocity


def denoise(predict: Callable, noise: Array, passes: int) -> tuple[Array, Array]:
    """Integrate from noise to data in ``passes`` equal Euler steps: (the last prediction of the data, the first).

    ``predict``: (point, its level) -> predicted data.
    """

    def step(k, carry):
        point, first = carry
        level, next_level = (n.astype(jnp.float32) / passes for n in (k, k + 1))
        share = (next_level - level) / (1 - level)
        data = predict(point, level)
        return point + share * (data - point), jnp.where(k == 0, data, first)

    return jax.lax.fori_loop(0, passes, step, (noise, noise))
