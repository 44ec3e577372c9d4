"""Memory: what a transformer keeps of past frames, a ring of keys and values for each layer that looks back in time.

In factorised space-time attention nothing of a past frame depends on the frame being made now, so keeping its keys
and values is exact, not an approximation: a frame costs one frame, however long the history. The ring holds the last
S frames, the one being worked on included: writing it overwrites exactly the frame that has left the window, and may
be done again and again while the frame is refined. ``advance`` then makes it past.

Shapes: R layers with time attention, B batch, N tokens per frame, S remembered frames, G key/value heads, D head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array


class Memory(NamedTuple):
    """A plain pytree: it can be scanned, donated, batched and sharded. ``time`` counts the frames taken in so far."""

    keys_RBNSGD: Array
    values_RBNSGD: Array
    time: Array  # uint32 scalar: the index of the frame being worked on

    def advance(self) -> "Memory":
        """The frame last written becomes past; the next write goes to the next slot."""
        return self._replace(time=self.time + jnp.uint32(1))


class Past(NamedTuple):
    """What dynamics over codes remember: their transformer's ring, and the last finished frame."""

    ring: Memory
    last_BN: Array


def earlier(frames: Array, before: float) -> Array:
    """The frame before each frame, and before the one to come: (B, T, ...) -> (B, T+1, ...), ``before`` the first."""
    return jnp.pad(frames, ((0, 0), (1, 0), *[(0, 0)] * (frames.ndim - 2)), constant_values=before)


def empty(layers: int, batch: int, tokens: int, frames: int, heads: int, width: int, dtype: jnp.dtype) -> Memory:
    """Return a memory of nothing: shapes as the letters above say, time 0."""
    shape = (layers, batch, tokens, frames, heads, width)
    return Memory(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.uint32))


def exchange(rings: tuple[Array, Array], new: tuple[Array, Array], layer: int | Array, time: Array):
    """Write one layer's keys and values (B*N, 1, G, D) of frame ``time``, and return (rings, all that layer remembers).

    What is returned to be read has shape (B*N, S, G, D). The rings are updated where they lie (inside a compiled loop
    that carries them, or when donated); handing each layer its own slice instead would copy the whole memory twice.
    """
    slot = (time % jnp.uint32(rings[0].shape[3])).astype(jnp.int32)
    kept, read = [], []
    for old, fresh in zip(rings, new, strict=True):
        batch, tokens = old.shape[1:3]
        fresh = rearrange(fresh, "(b n) 1 g d -> 1 b n 1 g d", b=batch, n=tokens).astype(old.dtype)
        kept.append(jax.lax.dynamic_update_slice(old, fresh, (layer, 0, 0, slot, 0, 0)))
        mine = jax.lax.dynamic_index_in_dim(kept[-1], layer, keepdims=False)
        read.append(rearrange(mine, "b n s g d -> (b n) s g d"))
    return tuple(kept), tuple(read)


def readable(slots: int, time: Array) -> Array:
    """Return bool (S,): which slots hold a frame that has happened (all of them once the ring is full)."""
    return jnp.arange(slots, dtype=jnp.uint32) <= time
