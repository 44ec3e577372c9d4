"""Embeddings of actions: one table for every action space, with rows for "none yet" and "unlabelled"."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.actions import CODES, ActionSpace


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
