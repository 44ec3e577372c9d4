"""Flow matching: between noise at level 0 and data at level 1, in a straight line (Lipman et al., arXiv 2210.02747).

``level`` is the share of data, Dreamer 4's tau. A denoiser is told the level that its input *has*; told the one it goes
to instead, it is wrong at every step, and no loss shows it.

Shapes: ... any axes; levels broadcast against data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def noised(data: Array, noise: Array, level: Array) -> Array:
    """Return what lies at ``level`` between noise (0) and data (1)."""
    return (1 - level) * noise + level * data


def ramp(level: Array) -> Array:
    """Return the weight of a level in the loss, 0.9 level + 0.1 (Dreamer 4, arXiv 2509.24527, eq. 8)."""
    return jnp.float32(0.9) * level + jnp.float32(0.1)


def data_of(flow: Array, at: Array, level: Array) -> Array:
    """Return the data that a flow (data minus noise), met ``at`` a point of ``level``, leads to."""
    return at + (1 - level) * flow


def denoise(predict: Callable, noise: Array, passes: int) -> Array:
    """Walk from noise to data in ``passes`` equal steps; the last ends on the last prediction itself.

    ``predict``: (point, level it has) -> data predicted from there.
    """

    def step(k, point):
        level, ahead = (n.astype(jnp.float32) / passes for n in (k, k + 1))
        share = (ahead - level) / (1 - level)
        return point + share * (predict(point, level) - point)

    return jax.lax.fori_loop(0, passes, step, noise)
