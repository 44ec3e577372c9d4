"""Embeddings of actions (one table for every space, with rows for START and UNLABELLED) and of noise levels.

Shapes: B batch, T time, A components of an action, M model width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import CODES, ActionSpace
from reverie.nn.linear import Linear

FREQUENCIES = 8  # the highest separates levels 1/256 apart


class ActionEmbedding(nnx.Module):
    """Actions of any space -> (B, T, M).

    Discrete actions (B, T) int32 have one row each; with (B, T, size) float weights over actions, gradients pass
    through the weights. In a vector (B, T, A) each component adds a row (or a multiple of one, if continuous) to a base
    row. An unlabelled action is the base row alone (Dreamer 4, arXiv 2509.24527, 3.2); START has a row of its own.
    """

    def __init__(self, space: ActionSpace, width: int, *, rngs: nnx.Rngs):
        self.space = space
        spread = 0.5 / np.sqrt(max(len(space.levels), 1))  # the sum of A rows has the scale of one row
        self.table = nnx.Param(jax.random.normal(rngs.params(), (CODES + _rows(space), width)) * jnp.float32(spread))

    def __call__(self, actions: Array) -> Array:
        table, space = self.table[...], self.space
        base, start, rows = table[0][None, None], table[1][None, None], table[CODES:]
        if space.shape:
            known = jnp.where(space.is_unlabelled(actions)[..., None], base, base + self._components(actions, rows))
            return jnp.where(space.is_start(actions)[..., None], start, known)
        if actions.ndim == 3:
            none = jnp.all(actions == 0, axis=-1, keepdims=True)  # no weight on any action: START
            return jnp.where(none, start, actions @ rows)
        return table[actions + CODES]

    def _components(self, actions_BTA, rows):
        if self.space.kind == "continuous":
            low, high = (jnp.asarray(bound, jnp.float32)[None, None] for bound in (self.space.low, self.space.high))
            return (jnp.clip(actions_BTA, low, high) * 2 - low - high) / (high - low) @ rows
        first = jnp.asarray(np.cumsum([0, *self.space.levels[:-1]]), jnp.int32)
        return jnp.sum(rows[jnp.maximum(actions_BTA, 0) + first[None, None]], axis=-2)


def _rows(space: ActionSpace) -> int:
    return space.size if space.kind == "continuous" else sum(space.levels)


def table_for(other: ActionSpace, table: Array, space: ActionSpace, key: Array) -> Array:
    """Return a table of ``other`` actions whose embeddings have mean and spread of those in the ``table`` of ``space``.

    A trained model so reads embeddings as it knows them, which say nothing yet. Hewitt (2021) adds words to language
    models in this way. The row of START is kept.
    """
    base, start, rows = table[0], table[1], table[CODES:]
    if space.kind == "continuous":
        mean, variance = base, jnp.sum(jnp.square(rows), axis=0) / 3  # of uniform components in -1..1
    else:
        each = jnp.split(rows, np.cumsum(space.levels)[:-1]) if space.shape else [rows]
        mean = sum((jnp.mean(part, axis=0) for part in each), base if space.shape else jnp.zeros_like(base))
        variance = sum((jnp.var(part, axis=0) for part in each), jnp.zeros_like(base))
    share = (3 if other.kind == "continuous" else 1) / (other.size if other.shape else 1)
    drawn = jax.random.normal(key, (_rows(other), table.shape[1])) * jnp.sqrt(variance * np.float32(share))[None]
    return jnp.concatenate([mean[None], start[None], drawn if other.shape else mean[None] + drawn])


def from_start(actions: Array, space: ActionSpace, begins_BT: Array | None = None) -> Array:
    """Replace the action of a clip's first frame by START (weights over actions have none there already).

    ``begins_BT``: True where clips begin, if not only at the first frame.
    """
    relaxed = actions.ndim == 3 and not space.shape
    if begins_BT is None:
        return actions if relaxed else actions.at[:, 0].set(space.start())
    none = jnp.zeros((), actions.dtype) if relaxed else jnp.asarray(space.start())
    begins = begins_BT[..., None] if actions.ndim == 3 else begins_BT
    return jnp.where(begins, jnp.broadcast_to(none, actions.shape), actions)


def random_actions(space: ActionSpace, key: Array, shape: tuple[int, ...]) -> Array:
    """Return uniformly random actions, ``shape`` of them; UNLABELLED for a space of kind "none"."""
    if space.kind == "none":
        return jnp.asarray(space.unlabelled(shape))
    if space.kind == "continuous":
        low, high = (jnp.asarray(bound, jnp.float32) for bound in (space.low, space.high))
        draws = jax.random.uniform(key, (*shape, *space.shape))
        return jnp.broadcast_to(low, draws.shape) + draws * jnp.broadcast_to(high - low, draws.shape)
    if not space.shape:
        return jax.random.randint(key, shape, 0, space.size)
    levels = jnp.broadcast_to(jnp.asarray(space.levels, jnp.int32), (*shape, *space.shape))
    return jax.random.randint(key, levels.shape, jnp.zeros_like(levels), levels)


class LevelEmbedding(nnx.Module):
    """Numbers in 0..1 (..., S) -> (..., M): sines and cosines of eight frequencies each, mixed."""

    def __init__(self, numbers: int, width: int, *, rngs: nnx.Rngs):
        self.mix = Linear(2 * FREQUENCIES * numbers, width, rngs=rngs)

    def __call__(self, levels: Array) -> Array:
        turns = np.pi * 2.0 ** np.arange(FREQUENCIES)
        angles = levels[..., None] * jnp.asarray(turns, jnp.float32).reshape((1,) * levels.ndim + (-1,))
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return self.mix(waves.reshape(*levels.shape[:-1], -1))
