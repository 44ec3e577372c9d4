"""Embeddings of actions (one table for every space, with rows for "none yet" and "unlabelled"), and of noise levels."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import CODES, START, ActionSpace

FREQUENCIES = 8  # the fastest tells levels 1/256 apart


class ActionEmbedding(nnx.Module):
    """Actions (B, T) int32 -> (B, T, M); or (B, T, size) float weights over actions, through which gradients pass."""

    def __init__(self, space: ActionSpace, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (CODES + space.size, width)) * 0.5)

    def __call__(self, actions: Array) -> Array:
        if jnp.issubdtype(actions.dtype, jnp.floating):
            known = actions @ self.table[...][CODES:]
            none = jnp.all(actions == 0, axis=-1, keepdims=True)  # a row without weight: no action yet
            return jnp.where(none, self.table[...][1][None, None], known)
        return self.table[...][actions + CODES]


def from_start(actions: Array, begins_BT: Array | None = None) -> Array:
    """What led to the first frame of a clip is before its time: START, or no weight over actions.

    ``begins_BT``: where clips begin, if not only at the first frame (of which weights say so already).
    """
    if begins_BT is None:
        return actions if actions.ndim == 3 else actions.at[:, 0].set(START)
    if actions.ndim == 3:
        return jnp.where(begins_BT[..., None], jnp.zeros((), actions.dtype), actions)
    return jnp.where(begins_BT, START, actions)


class LevelEmbedding(nnx.Module):
    """Numbers in 0..1 (..., S) -> (..., M): sines and cosines of eight frequencies each, mixed."""

    def __init__(self, numbers: int, width: int, *, rngs: nnx.Rngs):
        self.mix = nnx.Linear(2 * FREQUENCIES * numbers, width, rngs=rngs)

    def __call__(self, levels: Array) -> Array:
        turns = np.pi * 2.0 ** np.arange(FREQUENCIES)
        angles = levels[..., None] * jnp.asarray(turns, jnp.float32).reshape((1,) * levels.ndim + (-1,))
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return self.mix(waves.reshape(*levels.shape[:-1], -1))
