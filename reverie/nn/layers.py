"""The layers of the space-time transformer, and one group of them run over frames (see ``transformer.py``).

Shapes: B batch, T time, N tokens per frame, M model width, K heads, G key/value heads, D head width, S memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from reverie.nn.attention import attend, recall, rotate
from reverie.nn.linear import Linear
from reverie.nn.precision import compute_dtype


class Attention(nnx.Module):
    """Multi-head attention over one axis of the tokens, with a residual branch's pre-norm inside."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.config = config
        kv, dtype = config.kv_heads or config.heads, compute_dtype(config.dtype)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        # One wide matmul for queries, keys and values: on CPU three narrow ones cost up to twice as much.
        # Its bias is what lets a token ask for a place ("my left neighbour") whatever stands there.
        columns = (config.heads + 2 * kv) * config.head
        self.qkv = Linear(config.width, columns, dtype=dtype, rngs=rngs)
        self.out = Linear(config.width, config.width, use_bias=False, dtype=dtype, rngs=rngs)
        if config.qk_norm:
            self.q_norm: Any = nnx.RMSNorm(config.head, rngs=rngs)
            self.k_norm: Any = nnx.RMSNorm(config.head, rngs=rngs)

    def project(self, x: Array, rotation: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """(..., N, M) -> queries (..., N, K, D), keys and values (..., N, G, D); queries and keys turned by a rotation.

        Queries and keys are normalised and turned together: half the operations, of which a played frame has hundreds.
        Split and not sliced: the gradient of a split is a concatenation, that of slices a sum of padded arrays.
        """
        c = self.config
        kv = c.kv_heads or c.heads
        qkv = rearrange(self.qkv(self.norm(x)), "... (k d) -> ... k d", d=c.head)
        both, v = jnp.split(qkv, [c.heads + kv], axis=-2)
        if c.qk_norm:
            both = both.astype(jnp.float32)
            each = ((self.q_norm, c.heads), (self.k_norm, kv))
            scale = jnp.concatenate([jnp.tile(norm.scale[...], (count, 1)) for norm, count in each])
            scale = scale.reshape((1,) * (both.ndim - 2) + scale.shape)
            square = jnp.mean(jnp.square(both), axis=-1, keepdims=True)
            both = (both * (jax.lax.rsqrt(square + np.float32(self.q_norm.epsilon)) * scale)).astype(v.dtype)
        q, k = jnp.split(rotate(both, *rotation), [c.heads], axis=-2)
        return q, k, v

    def merge(self, y: Array) -> Array:
        """(..., K, D) -> (..., M)."""
        return self.out(rearrange(y, "... k d -> ... (k d)"))


class FeedForward(nnx.Module):
    """The token-wise network of a layer, pre-norm inside."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.gated = config.activation == "swiglu"
        hidden, dtype = config.hidden or 4 * config.width, compute_dtype(config.dtype)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.up = Linear(config.width, hidden * (1 + self.gated), use_bias=False, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, config.width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = self.up(self.norm(x))
        if self.gated:
            value, gate = jnp.split(y, 2, axis=-1)
            return self.down(value * jax.nn.silu(gate))
        return self.down(jax.nn.gelu(y))


class Layer(nnx.Module):
    """Space attention, time attention (some layers), feed-forward: a residual sum of three."""

    def __init__(self, config: Any, index: int, *, rngs: nnx.Rngs):
        looks_back = bool(config.time_every) and (index + 1) % config.time_every == 0
        reads_frame = config.space and not (config.layout == "alternate" and looks_back)
        self.space = Attention(config, rngs=rngs) if reads_frame else None
        self.time = Attention(config, rngs=rngs) if looks_back else None
        self.mlp = FeedForward(config, rngs=rngs)


class Group(nnx.Module):
    """The smallest run of layers that repeats; at most its last layer looks back in time."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(config, i, rngs=rngs) for i in range(config.group)])


def learned(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """Return learned tokens: they start small and never at zero, where a norm's gradient explodes."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * 0.02)


class Looking(NamedTuple):
    """How the tokens of a run look around: rotations, who may read whom in a frame, and which frames are seen.

    ``seen``: (T, T) or (B*N, T, T) of a clip, None for causal; of memory, (S,). ``first``: where tokens of a part of a
    frame begin.
    """

    config: Any
    space: Any
    time: tuple[Array, Array]
    mask: Array | None
    seen: Any = None
    first: Any = None


def run_group(group: Group, x: Array, how: Looking, past, kept):
    """Run a group of layers over (B, T, N, M): (x, keys and values of the layer that looks back, what is kept).

    ``past``: what that layer remembers, or None for a whole clip at once. ``kept``: keys and values of the frame's
    tokens, for each layer that reads them, or None where all tokens are here.
    """
    c, batch, fresh, keep = how.config, x.shape[0], (), []
    for index, layer in enumerate(group.layers):
        own = ()
        if layer.space is not None:
            with jax.named_scope("space"):
                q, k, v = layer.space.project(rearrange(x, "b t n m -> (b t) n m"), how.space)
                if kept is not None:
                    k, v = own = tuple(
                        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), how.first, axis=1)
                        for old, new in zip(kept[index], (k, v), strict=True)
                    )
                y = layer.space.merge(attend(q, k, v, mask_QS=how.mask, soft_cap=c.soft_cap))
                x = x + y.reshape(x.shape).astype(x.dtype)
        if layer.time is not None:
            with jax.named_scope("time"):
                q, k, v = layer.time.project(rearrange(x, "b t n m -> (b n) t m"), how.time)
                if past is None:
                    causal = how.seen is None
                    y = attend(q, k, v, mask_QS=how.seen, causal=causal, window=c.window, soft_cap=c.soft_cap)
                else:
                    q, k, v = (rearrange(z, "(b n) 1 k d -> b n k d", b=batch) for z in (q, k, v))
                    fresh = (k, v)
                    y = recall(q, fresh, past, how.seen, c.soft_cap)
                    y = rearrange(y, "b n k d -> (b n) 1 k d")
                x = x + rearrange(layer.time.merge(y), "(b n) t m -> b t n m", b=batch).astype(x.dtype)
        with jax.named_scope("mlp"):
            x = x + layer.mlp(x).astype(x.dtype)
        keep.append(own)
    return x, fresh, tuple(keep)
