"""The space-time transformer under every model here: Genie's and Dreamer 4's are values of one config.

Attention is factorised: tokens of one frame read each other (space), and each token reads itself in earlier frames
(time, causal, in a sliding window). Layers come in groups of ``time_every``, of which the last one looks back; the
groups' weights are stacked, so they can be scanned (small programs, fast compiles) or unrolled (faster on CPU).

Pre-norm RMSNorm, rotary positions in time and in both directions of space, optional QK-norm, grouped key/value heads,
logit soft cap, register tokens. Sources: ST-transformer of Genie (arXiv 2402.15391, section 2.1); the efficient
transformer of Dreamer 4 (arXiv 2509.24527, section 3.4).

Shapes: B batch, T time, N tokens per frame, M model width, K heads, G key/value heads, D head width, S window.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from reverie.nn import memory as ring
from reverie.nn.attention import attend, rotary_space, rotary_time, rotate
from reverie.nn.memory import Memory
from reverie.nn.precision import compute_dtype


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and switches of a space-time transformer."""

    width: int = 512
    depth: int = 8
    heads: int = 8
    kv_heads: int = 0  # key/value heads; 0: as many as heads
    hidden: int = 0  # width of the feed-forward layer; 0: four times the width
    activation: Literal["gelu", "swiglu"] = "swiglu"
    layout: Literal["space+time", "alternate"] = "space+time"  # alternate: a layer is either space or time
    time_every: int = 1  # every k-th layer looks back in time; 0: none does, frames are independent
    window: int = (
        16  # how many frames a time layer reads, the current one included; play for ever needs trained == played
    )
    places: bool = True  # a learned vector for each token, beside rotary positions; False: only relative positions
    space: bool = True  # False: tokens of a frame do not read each other (a patch-wise network)
    qk_norm: bool = True
    soft_cap: float = 0.0  # 0: off
    registers: int = 0
    scan: bool = (
        False  # scanned or unrolled: same weights, same results; unrolled is faster on CPU, scanned compiles faster
    )
    remat: Literal["none", "dots", "full"] = "none"  # activation checkpointing: keep all, keep matmuls, keep nothing
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # matmuls; weights, norms and softmax stay float32

    @property
    def group(self) -> int:
        """Layers per group: the period after which the pattern of layers repeats."""
        return max(self.time_every, 1)

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def lookback(self) -> int:
        """How many earlier frames a layer reads."""
        return self.window - 1 if self.time_every else 0

    def __post_init__(self):
        if self.width % self.heads or self.head % 2:
            raise ValueError(f"width {self.width} does not make {self.heads} heads of even width")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.depth % self.group:
            raise ValueError(f"depth {self.depth} is not a multiple of time_every {self.time_every}")
        if self.layout == "alternate" and self.time_every == 1 and self.space:
            raise ValueError("alternate layers need time_every 2 or more: with 1 no layer would read the frame")


class Attention(nnx.Module):
    """Multi-head attention over one axis of the tokens, with a residual branch's pre-norm inside."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        kv, dtype = config.kv_heads or config.heads, compute_dtype(config.dtype)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        # One wide matmul for queries, keys and values: on CPU three narrow ones cost up to twice as much.
        # Its bias is what lets a token ask for a place ("my left neighbour") whatever stands there.
        columns = (config.heads + 2 * kv) * config.head
        self.qkv = nnx.Linear(config.width, columns, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, use_bias=False, dtype=dtype, rngs=rngs)
        if config.qk_norm:
            self.q_norm = nnx.RMSNorm(config.head, rngs=rngs)
            self.k_norm = nnx.RMSNorm(config.head, rngs=rngs)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """(..., M) -> queries (..., K, D), keys and values (..., G, D)."""
        c = self.config
        kv = c.kv_heads or c.heads
        qkv = rearrange(self.qkv(self.norm(x)), "... (k d) -> ... k d", d=c.head)
        q, k, v = qkv[..., : c.heads, :], qkv[..., c.heads : c.heads + kv, :], qkv[..., c.heads + kv :, :]
        if c.qk_norm:
            q, k = (norm(z.astype(jnp.float32)).astype(z.dtype) for norm, z in ((self.q_norm, q), (self.k_norm, k)))
        return q, k, v

    def merge(self, y: Array) -> Array:
        """(..., K, D) -> (..., M)."""
        return self.out(rearrange(y, "... k d -> ... (k d)"))


class FeedForward(nnx.Module):
    """The token-wise network of a layer, pre-norm inside."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.gated = config.activation == "swiglu"
        hidden, dtype = config.hidden or 4 * config.width, compute_dtype(config.dtype)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.up = nnx.Linear(config.width, hidden * (1 + self.gated), use_bias=False, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, config.width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = self.up(self.norm(x))
        if self.gated:
            value, gate = jnp.split(y, 2, axis=-1)
            return self.down(value * jax.nn.silu(gate))
        return self.down(jax.nn.gelu(y))


class Layer(nnx.Module):
    """Space attention, time attention (some layers), feed-forward: a residual sum of three."""

    def __init__(self, config: TransformerConfig, index: int, *, rngs: nnx.Rngs):
        looks_back = bool(config.time_every) and (index + 1) % config.time_every == 0
        reads_frame = config.space and not (config.layout == "alternate" and looks_back)
        self.space = Attention(config, rngs=rngs) if reads_frame else None
        self.time = Attention(config, rngs=rngs) if looks_back else None
        self.mlp = FeedForward(config, rngs=rngs)


class Group(nnx.Module):
    """The smallest run of layers that repeats; at most its last layer looks back in time."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(config, i, rngs=rngs) for i in range(config.group)])


@dataclass(frozen=True)
class Times:
    """When the frames of a clip are, where that is not 0, 1, 2, …: finished frames followed by ``drafts`` of some.

    A draft of frame t (noised, masked, being made) reads the *finished* frames before t and itself, which is exactly
    what it will read from memory when the world is played; finished frames never read drafts.
    """

    length: int  # finished frames, at times 0..length-1
    drafts: tuple[int, ...]  # the time of each draft

    @property
    def positions(self) -> np.ndarray:
        """The time of every frame, (T,) uint32."""
        return np.array([*range(self.length), *self.drafts], np.uint32)

    def mask(self, window: int) -> np.ndarray:
        """Who reads whom, (T, T) bool, within a sliding window."""
        at = self.positions.astype(np.int64)
        done = np.arange(len(at)) < self.length
        age = at[:, None] - at[None]
        past = (age > 0) & (age < window) & done[None]
        return past | np.eye(len(at), dtype=bool)


class SpaceTimeTransformer(nnx.Module):
    """(B, T, N, M) -> (B, T, N, M), causal over T.

    The N tokens are ``height * width`` places of a picture followed by ``extra`` tokens without a place.
    """

    def __init__(self, config: TransformerConfig, grid: tuple[int, int], extra: int = 0, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = grid[0] * grid[1] + extra
        self.grid = grid
        # Where tokens never meet there is nothing to tell apart, and a patch means the same wherever it lies.
        meet = config.space or config.time_every
        self.slots = nnx.Param(_small(rngs, self.tokens, config.width)) if meet and config.places else None
        if config.registers:
            self.registers = nnx.Param(_small(rngs, config.registers, config.width))
        groups = config.depth // config.group
        self.groups = nnx.vmap(lambda r: Group(config, rngs=r))(rngs.split(groups)) if groups else None
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)

    def empty(self, batch: int) -> Memory:
        """Return a memory of nothing for ``batch`` rows."""
        c = self.config
        layers = c.depth // c.group if c.time_every else 0
        tokens = self.tokens + c.registers
        return ring.empty(layers, batch, tokens, c.window, c.kv_heads or c.heads, c.head, compute_dtype(c.dtype))

    def __call__(
        self,
        x_BTNM: Array,
        mask_NN: Array | None = None,
        *,
        times: Times | None = None,
        clips_BT: Array | None = None,
        unstacked: list | None = None,
    ) -> Array:
        """A whole clip at once. ``mask_NN`` is True where token n may read token m of its own frame; or (T, N, N).

        ``clips_BT``: several clips in a row of the batch, each frame with the number of its own: the rest it never
        reads.
        """
        return self._run(x_BTNM, None, mask_NN, times, unstacked, clips_BT)[0]

    def step(
        self, x_BNM: Array, memory: Memory, mask_NN: Array | None = None, unstacked: list | None = None
    ) -> tuple[Array, Memory]:
        """One frame, past ones from memory. Writes the frame's keys and values; ``memory.advance()`` makes it past."""
        y, memory = self._run(x_BNM[:, None], memory, mask_NN, unstacked=unstacked)
        return y[:, 0], memory

    def nothing_kept(self, batch: int) -> tuple[Array, Array]:
        """Return keys and values of no token yet, for ``tokens_step``: each (layers that read a frame, B, N, G, D)."""
        c, groups = self.config, self.groups
        reading = sum(layer.space is not None for layer in groups.layers) if groups else 0
        layers = reading * (c.depth // c.group)
        shape = (layers, batch, self.tokens, c.kv_heads or c.heads, c.head)
        return jnp.zeros(shape, compute_dtype(c.dtype)), jnp.zeros(shape, compute_dtype(c.dtype))

    def tokens_step(
        self, x_BnM: Array, first: Array, mask_nN: Array, memory: Memory, kept: tuple, unstacked: list | None = None
    ) -> tuple[Array, tuple]:
        """Some tokens of the frame being made, those at ``first`` and after: (B, n, M) and what is kept of them.

        Their frame's other tokens are read from ``kept``, where ``mask_nN`` is True, past frames from memory; so a
        frame made token by token costs as much as one made at once. Registers are not for frames made so.
        """
        c, (count, now) = self.config, (x_BnM.shape[1], memory.time)
        place = first + jnp.arange(count)
        x = x_BnM if self.slots is None else x_BnM + self.slots[...][place].astype(x_BnM.dtype)[None]
        extra = self.tokens - self.grid[0] * self.grid[1]
        space = tuple(jnp.asarray(table)[place] for table in rotary_space(*self.grid, extra, c.head))
        time = rotary_time(now[None], c.head)
        seen = jnp.arange(c.window, dtype=jnp.uint32) <= now
        slot = (now % jnp.uint32(c.window)).astype(jnp.int32)
        graph, read = nnx.split(self.groups)[0], 0
        for index, own in enumerate(unstacked or self.unstacked() or ()):
            group: Any = nnx.merge(graph, own)
            for layer in group.layers:
                if layer.space is not None:
                    q, k, v = layer.space.project(x)
                    fresh = (rotate(k, *space), v)
                    kept = tuple(
                        jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), (read, 0, first, 0, 0))
                        for old, new in zip(kept, fresh, strict=True)
                    )
                    y = attend(rotate(q, *space), kept[0][read], kept[1][read], mask_QS=mask_nN, soft_cap=c.soft_cap)
                    x, read = x + layer.space.merge(y).astype(x.dtype), read + 1
                if layer.time is not None:
                    q, k, v = layer.time.project(rearrange(x, "b n m -> (b n) 1 m"))
                    pair = []
                    for ring_of, new in zip(memory[:2], (rotate(k, *time), v), strict=True):
                        past = jax.lax.dynamic_slice_in_dim(ring_of[index], first, count, axis=1)
                        past = rearrange(past, "b n s g d -> (b n) s g d")
                        pair.append(jax.lax.dynamic_update_slice_in_dim(past, new.astype(past.dtype), slot, axis=1))
                    y = attend(rotate(q, *time), *pair, mask_QS=seen[None], soft_cap=c.soft_cap)
                    x = x + rearrange(layer.time.merge(y), "(b n) 1 m -> b n m", n=count).astype(x.dtype)
                x = x + layer.mlp(x).astype(x.dtype)
        return self.norm(x), kept

    def unstacked(self) -> list | None:
        """Return each group's own weights, to be given to what runs in a loop; None where groups are scanned.

        A run cuts them out of the stack itself, but inside a loop that would copy all weights in every turn: more bytes
        than a small frame's arithmetic needs.
        """
        if self.config.scan or self.groups is None:
            return None
        weights = nnx.split(self.groups)[1]
        return [jax.tree.map(lambda leaf, i=i: leaf[i], weights) for i in range(self.config.depth // self.config.group)]

    def _run(
        self,
        x: Array,
        memory: Memory | None,
        mask_NN: Array | None,
        times: Times | None = None,
        unstacked: list | None = None,
        clips_BT: Array | None = None,
    ) -> tuple[Array, Any]:
        c = self.config
        if self.slots is not None:
            x = x + self.slots[...].astype(x.dtype)[None, None]
        if c.registers:
            r = jnp.broadcast_to(self.registers[...].astype(x.dtype), (*x.shape[:2], c.registers, c.width))
            x = jnp.concatenate([x, r], axis=2)
            mask_NN = _admit(mask_NN, c.registers)
        if mask_NN is not None and mask_NN.ndim == 3:  # one for each frame, the same in every row
            mask_NN = jnp.tile(mask_NN, (x.shape[0], 1, 1))
        extra = self.tokens - self.grid[0] * self.grid[1] + c.registers
        space = tuple(jnp.asarray(table) for table in rotary_space(*self.grid, extra, c.head))
        now = jnp.zeros((), jnp.uint32) if memory is None else memory.time
        time = rotary_time(now + jnp.arange(x.shape[1], dtype=jnp.uint32) if times is None else times.positions, c.head)
        seen = None if times is None else jnp.asarray(times.mask(c.window))
        if clips_BT is not None:
            seen = jnp.asarray(Times(x.shape[1], ()).mask(c.window)) if seen is None else seen
            seen = seen[None] & (clips_BT[:, :, None] == clips_BT[:, None, :])
            seen = jnp.repeat(seen, x.shape[2], axis=0)  # one for each token: they look back side by side
        rings = None if memory is None else memory[:2]

        if self.groups is not None:
            graph, weights = nnx.split(self.groups)

            def run(carry: Any, inputs: Any) -> Any:
                (x, rings), (index, weights) = carry, inputs
                group = nnx.merge(graph, weights)
                return _group(c, group, x, rings, index, space, time, now, mask_NN, seen), None

            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            step = run if c.remat == "none" else jax.checkpoint(run, policy=policy)
            if c.scan:
                (x, rings), _ = jax.lax.scan(step, (x, rings), (jnp.arange(c.depth // c.group), weights))
            else:
                for i, own in enumerate(unstacked or self.unstacked() or ()):
                    (x, rings), _ = step((x, rings), (i, own))
        if rings is not None:
            memory = Memory(rings[0], rings[1], now)
        return self.norm(x[:, :, : self.tokens]), memory


def _group(config, group: Group, x, rings, index, space, time, now, mask_NN, seen):
    """Run group ``index`` of layers. ``rings``: keys and values of all groups, or None for a whole clip at once."""
    batch = x.shape[0]
    for layer in group.layers:
        if layer.space is not None:
            with jax.named_scope("space"):
                q, k, v = layer.space.project(rearrange(x, "b t n m -> (b t) n m"))
                q, k = rotate(q, *space), rotate(k, *space)
                y = layer.space.merge(attend(q, k, v, mask_QS=mask_NN, soft_cap=config.soft_cap))
                x = x + y.reshape(x.shape).astype(x.dtype)
        if layer.time is not None:
            with jax.named_scope("time"):
                q, k, v = layer.time.project(rearrange(x, "b t n m -> (b n) t m"))
                q, k = rotate(q, *time), rotate(k, *time)
                if rings is None:
                    causal, window = seen is None, config.window
                    y = attend(q, k, v, mask_QS=seen, causal=causal, window=window, soft_cap=config.soft_cap)
                else:
                    rings, (k, v) = ring.exchange(rings, (k, v), index, now)
                    y = attend(q, k, v, mask_QS=ring.readable(config.window, now)[None], soft_cap=config.soft_cap)
                y = rearrange(layer.time.merge(y), "(b n) t m -> b t n m", b=batch)
                x = x + y.astype(x.dtype)
        with jax.named_scope("mlp"):
            x = x + layer.mlp(x).astype(x.dtype)
    return x, rings


def _small(rngs: nnx.Rngs, *shape: int) -> Array:
    """Learned tokens start small and never at zero, where a norm's gradient explodes."""
    return jax.random.normal(rngs.params(), shape) * 0.02


def _admit(mask_NN, registers: int):
    """Registers are read by everyone, so they read only what everyone may read: they carry no secrets."""
    if mask_NN is None:
        return None
    open_to_all = jnp.all(mask_NN, axis=-2, keepdims=True)
    open_to_all = jnp.broadcast_to(open_to_all, (*mask_NN.shape[:-2], registers, mask_NN.shape[-1]))
    wide = jnp.concatenate([mask_NN, open_to_all], axis=-2)
    return jnp.pad(wide, [(0, 0)] * (wide.ndim - 1) + [(0, registers)], constant_values=True)
