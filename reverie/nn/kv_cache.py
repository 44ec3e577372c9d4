"""KV cache: a ring buffer of past frames' keys and values, for each layer with attention over time.

In factorised space-time attention no activation of a past frame depends on the frame being generated. So caching its
keys and values is exact, and a frame costs the same however long the history is. While a frame is generated, in one
pass or several, the cache is only read. ``append`` then stores the finished frame over the one that leaves the window.

Shapes: B batch, N tokens per frame, S cached frames, G key/value heads, D head width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

KeysValues = tuple[Array, Array]


class KVCache(NamedTuple):
    """A plain pytree: it can be scanned, donated, batched and sharded. ``time`` counts the frames appended so far.

    ``layers``: keys and values, both (B, N, G, S, D), of each layer with attention over time, laid out as one query
    reads them (on CPU half the time of (S, G, D)). Scanned layers share one pair with a leading axis.
    """

    layers: tuple[KeysValues, ...]
    time: Array  # uint32 scalar: the index of the frame being generated

    def append(self, new: tuple[KeysValues, ...]) -> "KVCache":
        """Store the current frame's keys and values (..., G, D), one pair per layer, and go on to the next frame.

        The buffers are updated in place (inside a compiled loop that carries them, or when donated).
        """

        def stored(ring: Array, frame: Array) -> Array:
            slots, axis = ring.shape[-2], ring.ndim - 2
            if not slots:
                return ring
            slot = (self.time % jnp.uint32(slots)).astype(jnp.int32)
            return jax.lax.dynamic_update_slice_in_dim(ring, frame[..., None, :].astype(ring.dtype), slot, axis)

        layers = tuple(
            (stored(keys, key), stored(values, value))
            for (keys, values), (key, value) in zip(self.layers, new, strict=True)
        )
        return KVCache(layers, self.time + jnp.uint32(1))


class TokenState(NamedTuple):
    """The state of dynamics over codes: the transformer's KV cache, and the last finished frame.

    ``before_BN``: the frame before that one, if an agent reads both; else None.
    """

    cache: KVCache
    last_BN: Array
    before_BN: Array | None = None


def previous_frames(frames: Array, first: float) -> Array:
    """The frame before each frame, also before the one to come: (B, T, ...) -> (B, T+1, ...), filled with ``first``."""
    return jnp.pad(frames, ((0, 0), (1, 0), *[(0, 0)] * (frames.ndim - 2)), constant_values=first)


def empty_cache(layers: int, stacked: bool, shape: tuple[int, ...], frames: int, dtype: Any) -> KVCache:
    """Return an empty cache. ``shape``: (B, N, G, D) of one frame; ``frames``: S, which is 0 for a window of 1."""
    lead, pairs = ((layers,), 1) if stacked else ((), layers)
    ring = (*lead, *shape[:-1], frames, shape[-1])
    # Separate arrays: one array in two places cannot be donated.
    rings = tuple((jnp.zeros(ring, dtype), jnp.zeros(ring, dtype)) for _ in range(pairs if layers else 0))
    return KVCache(rings, jnp.zeros((), jnp.uint32))


def valid_slots(slots: int, time: Array) -> Array:
    """Return bool (S,): which slots hold a frame (all of them once the ring buffer is full)."""
    return jnp.arange(slots, dtype=jnp.uint32) < time
