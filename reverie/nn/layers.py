"""The layers of the space-time transformer, and how a group of them is run (see ``transformer.py``).

Shapes: B batch, T time, N tokens per frame, M model width, K heads, G key/value heads, D head width, S cached frames.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from reverie.nn.attention import attend, cached_attention, rotate
from reverie.nn.int8 import Int8Linear
from reverie.nn.kv_cache import KeysValues
from reverie.nn.linear import Linear
from reverie.nn.placement import all_frames
from reverie.nn.precision import compute_dtype
from reverie.nn.target import host_memory

LAYER_INPUT = "layer input"


class Attention(nnx.Module):
    """Multi-head attention over one axis of the tokens, pre-norm."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.config = config
        kv, dtype = config.kv_heads or config.heads, compute_dtype(config.dtype)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        # One wide matmul for queries, keys and values: on CPU three narrow ones cost up to twice as much.
        # Its bias lets a query ask for a position ("my left neighbour") whatever its token holds.
        columns = (config.heads + 2 * kv) * config.head
        linear = Int8Linear if config.int8 else Linear
        self.qkv = linear(config.width, columns, dtype=dtype, rngs=rngs)
        self.out = linear(config.width, config.width, use_bias=False, dtype=dtype, rngs=rngs)
        if config.qk_norm:
            self.q_norm: Any = nnx.RMSNorm(config.head, rngs=rngs)
            self.k_norm: Any = nnx.RMSNorm(config.head, rngs=rngs)

    def project(self, x: Array, rotation: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """(..., N, M) -> rotated queries (..., N, K, D) and keys (..., N, G, D), and values (..., N, G, D).

        Queries and keys are normalised and rotated together: that is half the operations, and a played frame has
        hundreds of them. They are split and not sliced: the gradient of a split is a concatenation, that of slices a
        sum of padded arrays.
        """
        c = self.config
        kv = c.kv_heads or c.heads
        qkv = rearrange(self.qkv(self.norm(x)), "... (k d) -> ... k d", d=c.head)
        share = (c.heads + 2 * kv) // qkv.shape[-2]  # 1, or how many devices have a part of the heads (nn.split)
        heads, kv = c.heads // share, kv // share
        both, v = jnp.split(qkv, [heads + kv], axis=-2)
        if c.qk_norm:
            both = both.astype(jnp.float32)
            each = ((self.q_norm, heads), (self.k_norm, kv))
            scale = jnp.concatenate([jnp.tile(norm.scale[...], (count, 1)) for norm, count in each])
            scale = scale.reshape((1,) * (both.ndim - 2) + scale.shape)
            square = jnp.mean(jnp.square(both), axis=-1, keepdims=True)
            both = (both * (jax.lax.rsqrt(square + np.float32(self.q_norm.epsilon)) * scale)).astype(v.dtype)
        q, k = jnp.split(rotate(both, *rotation), [heads], axis=-2)
        return q, k, v

    def merge(self, y: Array) -> Array:
        """(..., K, D) -> (..., M)."""
        return self.out(rearrange(y, "... k d -> ... (k d)"))


class FeedForward(nnx.Module):
    """The token-wise network of a layer, pre-norm."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.gated = config.activation == "swiglu"
        hidden, dtype = config.hidden or 4 * config.width, compute_dtype(config.dtype)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        linear = Int8Linear if config.int8 else Linear
        self.up = linear(config.width, hidden * (1 + self.gated), use_bias=False, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, config.width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = self.up(self.norm(x))
        if self.gated:
            value, gate = jnp.split(y, 2, axis=-1)
            return self.down(value * jax.nn.silu(gate))
        return self.down(jax.nn.gelu(y))


class Layer(nnx.Module):
    """Space attention, time attention (in some layers) and a feed-forward network, each with a residual connection."""

    def __init__(self, config: Any, index: int, *, rngs: nnx.Rngs):
        time = bool(config.time_every) and (index + 1) % config.time_every == 0
        space = config.space and not (config.layout == "alternate" and time)
        self.space = Attention(config, rngs=rngs) if space else None
        self.time = Attention(config, rngs=rngs) if time else None
        self.mlp = FeedForward(config, rngs=rngs)


class Group(nnx.Module):
    """The smallest sequence of layers that repeats; at most its last layer has time attention."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(config, i, rngs=rngs) for i in range(config.group)])


def learned_tokens(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """Return learned tokens. They start small but never at zero, where RMSNorm's gradient explodes."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * 0.02)


class AttentionInputs(NamedTuple):
    """What the attention of all layers needs beside the tokens: rotary tables and attention masks.

    ``space_mask``: (N, N) or one for each frame, True where token n reads token m. ``time_mask``: over a whole clip
    (T, T) or (B*N, T, T), None for plain causal attention; with a KV cache (S,), its valid slots. ``offset``: the
    position of the first token, where only some tokens of a frame are computed.
    """

    config: Any
    space_rotation: Any
    time_rotation: tuple[Array, Array]
    space_mask: Array | None
    time_mask: Any = None
    offset: Any = None


def policy_of(remat: str) -> Any:
    """Return what ``jax.checkpoint`` around a group keeps; None for nothing. ReverieError if it cannot be kept here."""
    policies = jax.checkpoint_policies
    if remat == "dots":
        return policies.dots_with_no_batch_dims_saveable
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst=host_memory(),
        )
    return None


def layer_input(config: Any, x: Array) -> Array:
    """Mark the input of a layer as what ``remat offload`` keeps."""
    return checkpoint_name(x, LAYER_INPUT) if config.remat == "offload" else x


def run_group(group: Group, x: Array, inputs: AttentionInputs, cached: KeysValues | None, frame_kv: tuple | None):
    """Run a group of layers over (B, T, N, M): (x, new keys and values of its time layer, updated ``frame_kv``).

    ``cached``: the KV cache of the time layer; then T is 1. None: ``x`` is a whole clip. ``frame_kv``: the keys and
    values of this frame's tokens so far, for each layer with space attention, where a frame is generated some tokens
    at a time. None: ``x`` has all tokens of its frames.
    """
    new: tuple = ()
    updated = []
    for index, layer in enumerate(group.layers):
        step = partial(_run_layer, layer, inputs, cached, None if frame_kv is None else frame_kv[index])
        x = layer_input(inputs.config, x) if index else x  # that of the first is the group's, in the type of the stream
        x, of_time, own = (jax.checkpoint(step) if inputs.config.remat in ("layers", "offload") else step)(x)
        new = of_time or new
        updated.append(own)
    return x, new, tuple(updated)


def _run_layer(layer: Layer, inputs: AttentionInputs, cached: KeysValues | None, frame_kv: KeysValues | None, x: Array):
    """Run one layer: (x, new keys and values of its time attention, the frame's keys and values of space attention)."""
    own, new = (), ()
    if layer.space is not None:
        with jax.named_scope("space"):
            y, own = _space_attention(layer.space, x, inputs, frame_kv)
            x = x + y.reshape(x.shape).astype(x.dtype)
    if layer.time is not None:
        with jax.named_scope("time"):
            if cached is None:
                y = _time_attention(layer.time, x, inputs)
            else:
                y, new = _cached_time_attention(layer.time, x, inputs, cached)
            x = x + rearrange(y, "(b n) t m -> b t n m", b=x.shape[0]).astype(x.dtype)
    with jax.named_scope("mlp"):
        x = x + layer.mlp(x).astype(x.dtype)
    return x, new, own


def _space_attention(attention: Attention, x: Array, inputs: AttentionInputs, frame_kv: KeysValues | None):
    """Attention among the tokens of a frame: ((B*T, N, M), the frame's keys and values, () without ``frame_kv``)."""
    q, k, v = attention.project(rearrange(x, "b t n m -> (b t) n m"), inputs.space_rotation)
    own = ()
    if frame_kv is not None:
        k, v = own = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), inputs.offset, axis=1)
            for old, new in zip(frame_kv, (k, v), strict=True)
        )
    c, parts = inputs.config, math.gcd(inputs.config.attention_parts, x.shape[1])
    return attention.merge(attend(q, k, v, mask_QS=inputs.space_mask, soft_cap=c.soft_cap, parts=parts)), own


def _time_attention(attention: Attention, x: Array, inputs: AttentionInputs) -> Array:
    """Attention of each token over the same token of other frames of the clip: (B*N, T, M)."""
    c, causal = inputs.config, inputs.time_mask is None
    q, k, v = attention.project(rearrange(x, "b t n m -> (b n) t m"), inputs.time_rotation)
    k, v = all_frames(k), all_frames(v)
    how: Any = {"window": c.window, "soft_cap": c.soft_cap, "parts": math.gcd(c.attention_parts, x.shape[2])}
    y = attend(q, k, v, mask_QS=inputs.time_mask, causal=causal, **how)
    return attention.merge(y)


def _cached_time_attention(attention: Attention, x: Array, inputs: AttentionInputs, cached: KeysValues):
    """The same for one frame over the KV cache: ((B*N, 1, M), the frame's own keys and values (B, N, G, D))."""
    q, k, v = attention.project(rearrange(x, "b t n m -> (b n) t m"), inputs.time_rotation)
    q, k, v = (rearrange(z, "(b n) 1 k d -> b n k d", b=x.shape[0]) for z in (q, k, v))
    y = cached_attention(q, (k, v), cached, inputs.time_mask, inputs.config.soft_cap)
    return attention.merge(rearrange(y, "b n k d -> (b n) 1 k d")), (k, v)
