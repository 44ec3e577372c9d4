"""Memory: what a transformer keeps of past frames, a ring of keys and values for each layer that looks back in time.

In factorised space-time attention nothing of a past frame depends on the frame being made now, so keeping its keys
and values is exact, not an approximation: a frame costs one frame, however long the history. While a frame is made, in
however many passes, memory is only read; ``remember`` then takes the finished frame in, over the one that leaves the
window.

Shapes: B batch, N tokens per frame, S remembered frames, G key/value heads, D head width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Memory(NamedTuple):
    """A plain pytree: it can be scanned, donated, batched and sharded. ``time`` counts the frames taken in so far.

    ``layers``: keys and values, both (B, N, G, S, D), of each layer that looks back, laid out as one query reads them
    (on CPU half the time of (S, G, D)); one pair with a leading axis where layers are scanned.
    """

    layers: tuple[tuple[Array, Array], ...]
    time: Array  # uint32 scalar: the index of the frame being worked on


class Past(NamedTuple):
    """What dynamics over codes remember: their transformer's ring, and the last finished frame."""

    ring: Memory
    last_BN: Array


def earlier(frames: Array, before: float) -> Array:
    """The frame before each frame, and before the one to come: (B, T, ...) -> (B, T+1, ...), ``before`` the first."""
    return jnp.pad(frames, ((0, 0), (1, 0), *[(0, 0)] * (frames.ndim - 2)), constant_values=before)


def empty(layers: int, stacked: bool, shape: tuple[int, ...], frames: int, dtype: Any) -> Memory:
    """Return a memory of nothing. ``shape``: (B, N, G, D) of one frame; ``frames``: S, none for a window of one."""
    lead, pairs = ((layers,), 1) if stacked else ((), layers)
    ring = (*lead, *shape[:-1], frames, shape[-1])
    # Arrays of their own: one array in two places cannot be donated.
    rings = tuple((jnp.zeros(ring, dtype), jnp.zeros(ring, dtype)) for _ in range(pairs if layers else 0))
    return Memory(rings, jnp.zeros((), jnp.uint32))


def remember(memory: Memory, fresh: tuple[tuple[Array, Array], ...]) -> Memory:
    """Take in keys and values (..., G, D) of the frame that was worked on, for each layer; the next one is due.

    The rings are updated where they lie (inside a compiled loop that carries them, or when donated).
    """

    def taken_in(ring: Array, frame: Array) -> Array:
        slots, axis = ring.shape[-2], ring.ndim - 2
        if not slots:
            return ring
        slot = (memory.time % jnp.uint32(slots)).astype(jnp.int32)
        return jax.lax.dynamic_update_slice_in_dim(ring, frame[..., None, :].astype(ring.dtype), slot, axis)

    layers = tuple(
        (taken_in(keys, key), taken_in(values, value))
        for (keys, values), (key, value) in zip(memory.layers, fresh, strict=True)
    )
    return Memory(layers, memory.time + jnp.uint32(1))


def readable(slots: int, time: Array) -> Array:
    """Return bool (S,): which slots hold a frame that has happened (all of them once the ring is full)."""
    return jnp.arange(slots, dtype=jnp.uint32) < time
