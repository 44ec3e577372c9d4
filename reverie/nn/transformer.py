"""The space-time transformer under every model here: Genie's and Dreamer 4's are values of one config.

Attention is factorised: tokens of one frame read each other (space), and each token reads itself in earlier frames
(time, causal, in a sliding window). Layers come in groups of ``time_every``, of which the last one looks back; the
groups' weights are stacked, so they can be scanned (small programs, fast compiles) or unrolled (faster on CPU, most of
all once they are cut ``apart``).

Pre-norm RMSNorm, rotary positions in time and in both directions of space, optional QK-norm, grouped key/value heads,
logit soft cap, register tokens. Sources: ST-transformer of Genie (arXiv 2402.15391, section 2.1); the efficient
transformer of Dreamer 4 (arXiv 2509.24527, section 3.4).

Shapes: B batch, T time, N tokens per frame, M model width, K heads, G key/value heads, D head width, S window.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.nn import memory as memory_of
from reverie.nn.attention import rotary_space, rotary_time
from reverie.nn.layers import Group, Looking, learned, run_group
from reverie.nn.memory import Memory
from reverie.nn.placement import by_rows, gathered
from reverie.nn.precision import compute_dtype

Fresh = tuple[tuple[Array, Array], ...]  # keys and values of a frame, for each layer that looks back
Kept = tuple[tuple, ...]  # the same of a frame's tokens, for each group's layers that read the frame


@dataclass(frozen=True, kw_only=True)
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
        self.slots = learned(rngs, self.tokens, config.width) if meet and config.places else None
        if config.registers:
            self.registers = learned(rngs, config.registers, config.width)
        groups = config.depth // config.group
        self.groups: Any = nnx.vmap(lambda r: Group(config, rngs=r))(rngs.split(groups)) if groups else None
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)

    def empty(self, batch: int) -> Memory:
        """Return a memory of nothing for ``batch`` rows."""
        c = self.config
        layers = c.depth // c.group if c.time_every else 0
        shape = (batch, self.tokens + c.registers, c.kv_heads or c.heads, c.head)
        return memory_of.empty(layers, c.scan, shape, c.window - 1, compute_dtype(c.dtype))

    def __call__(
        self,
        x_BTNM: Array,
        mask_NN: Array | None = None,
        *,
        times: Times | None = None,
        clips_BT: Array | None = None,
    ) -> Array:
        """A whole clip at once. ``mask_NN`` is True where token n may read token m of its own frame; or (T, N, N).

        ``clips_BT``: several clips in a row of the batch, each frame with the number of its own: the rest it never
        reads.
        """
        c = self.config
        seen = None if times is None else jnp.asarray(times.mask(c.window))
        if clips_BT is not None:
            seen = jnp.asarray(Times(x_BTNM.shape[1], ()).mask(c.window)) if seen is None else seen
            seen = seen[None] & (clips_BT[:, :, None] == clips_BT[:, None, :])
            seen = jnp.repeat(seen, self.tokens + c.registers, axis=0)  # tokens look back side by side, each its own
        at = jnp.arange(x_BTNM.shape[1], dtype=jnp.uint32) if times is None else times.positions
        x, mask, space = self._frames(x_BTNM, mask_NN)
        run = Looking(c, space, rotary_time(at, c.head), mask, seen=seen)
        return self._run(x, run, None)[0]

    def step(self, x_BNM: Array, memory: Memory, mask_NN: Array | None = None) -> tuple[Array, Fresh]:
        """One frame, past ones from memory: (B, N, M), and its own keys and values, for ``remember``."""
        x, mask, space = self._frames(x_BNM[:, None], mask_NN)
        x, fresh, _ = self._run(x, self._looking_back(memory, space, mask), memory)
        return x[:, 0], fresh

    def tokens_step(self, x_BnM: Array, first: Array, mask_nN: Array, memory: Memory, kept: Kept) -> tuple[Array, Kept]:
        """Some tokens of the frame being made, those at ``first`` and after: (B, n, M) and what is kept of them.

        Their frame's other tokens are read from ``kept``, where ``mask_nN`` is True, past frames from memory; so a
        frame made token by token costs as much as one made at once. Registers are not for frames made so.
        """
        place = first + jnp.arange(x_BnM.shape[1])
        x, _, space = self._frames(x_BnM[:, None], None, place)
        run = self._looking_back(memory, space, mask_nN)._replace(first=first)
        own = jax.tree.map(
            lambda ring: jax.lax.dynamic_slice_in_dim(ring, first, x_BnM.shape[1], axis=ring.ndim - 4), memory.layers
        )
        x, _, kept = self._run(x, run, memory._replace(layers=own), kept)
        return x[:, 0], kept

    def nothing_kept(self, batch: int) -> Kept:
        """Return keys and values (B, N, G, D) of no token yet, of each layer that reads a frame: ``tokens_step``."""
        c = self.config
        if self.groups is None:
            return ()
        groups, one = c.depth // c.group, self.groups if isinstance(self.groups, Group) else self.groups[0]
        shape = (batch, self.tokens, c.kv_heads or c.heads, c.head)
        nothing = jnp.zeros((groups, *shape) if c.scan else shape, compute_dtype(c.dtype))
        layers = tuple((nothing, nothing) if layer.space is not None else () for layer in one.layers)
        return (layers,) * (1 if c.scan else groups)

    def cut(self) -> None:
        """Hold each group's weights in arrays of their own, unless groups are scanned: see ``apart``."""
        if self.groups is not None and not self.config.scan:
            self.groups = nnx.List(self._each())

    def _each(self) -> list[Group]:
        """Return the groups, one by one."""
        if not isinstance(self.groups, Group):
            return list(self.groups or ())
        graph, stack = nnx.split(self.groups)
        return [nnx.merge(graph, weights) for weights in _unstacked(stack, self.config.depth // self.config.group)]

    def _frames(self, x: Array, mask: Array | None, place: Array | None = None):
        """Tokens with their places and registers, who reads whom, and the rotations of space; ``place``: of some."""
        c = self.config
        extra = self.tokens - self.grid[0] * self.grid[1] + c.registers
        space = tuple(jnp.asarray(table) for table in rotary_space(*self.grid, extra, c.head))
        slots = None if self.slots is None else self.slots[...].astype(x.dtype)
        if place is not None:
            space, slots = jax.tree.map(lambda table: table[place], (space, slots))
        if slots is not None:
            x = x + slots[None, None]
        if c.registers:
            r = jnp.broadcast_to(self.registers[...].astype(x.dtype), (*x.shape[:2], c.registers, c.width))
            x = jnp.concatenate([x, r], axis=2)
            mask = _admit(mask, c.registers)
        if mask is not None and mask.ndim == 3:  # one for each frame, the same in every row
            mask = jnp.tile(mask, (x.shape[0], 1, 1))
        return x, mask, space

    def _looking_back(self, memory: Memory, space, mask):
        c = self.config
        readable = memory_of.readable(c.window - 1, memory.time)
        return Looking(c, space, rotary_time(memory.time[None], c.head), mask, seen=readable)

    def _run(self, x: Array, how: Looking, memory: Memory | None, kept: Kept = ()):
        """Run all groups: tokens out, and what they would remember and keep; each group has its share of both."""
        c = self.config
        fresh: list = []
        if self.groups is not None:
            parts = [nnx.split(group) for group in ([self.groups] if c.scan else self._each())]
            graph, weights = parts[0][0], [part[1] for part in parts]
            x, count = by_rows(x), c.depth // c.group

            def run(x: Any, inputs: Any) -> Any:
                weights, past, kept = inputs
                weights = gathered(weights, count, compute_dtype(c.dtype))
                x, fresh, kept = run_group(nnx.merge(graph, weights), x, how, past, kept)
                return by_rows(x), (fresh, kept)

            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            step = run if c.remat == "none" else jax.checkpoint(run, policy=policy)
            pasts = memory.layers if memory is not None else ()
            if c.scan:
                x, (fresh, kept) = jax.lax.scan(
                    step, x, (weights[0], *(each[0] if each else None for each in (pasts, kept)))
                )
                fresh, kept = ([fresh] if pasts else []), (kept,)
            else:
                pairs = [list(each) or [None] * count for each in (pasts, kept)]
                done = []
                for inputs in zip(weights, *pairs, strict=True):
                    x, out = step(x, inputs)
                    done.append(out)
                fresh, kept = [out[0] for out in done if pasts], tuple(out[1] for out in done)
        return self.norm(x[:, :, : self.tokens]), tuple(fresh), kept


@partial(jax.jit, static_argnums=1)  # one program, where slice by slice would be a hundred
def _unstacked(stack: Any, count: int) -> list:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(count)]


def apart(model: nnx.Module) -> Any:
    """Return the model with every transformer's groups cut out of their stacks, where they are not scanned.

    Cutting copies weights; unless it was done before, a program does it in every call, and in every turn of its loops:
    for a small frame as much work as making it.
    """
    model = nnx.clone(model)
    for module in [module for _, module in nnx.iter_modules(model) if isinstance(module, SpaceTimeTransformer)]:
        module.cut()
    return model


def _admit(mask_NN, registers: int):
    """Registers are read by everyone, so they read only what everyone may read: they carry no secrets."""
    if mask_NN is None:
        return None
    open_to_all = jnp.all(mask_NN, axis=-2, keepdims=True)
    open_to_all = jnp.broadcast_to(open_to_all, (*mask_NN.shape[:-2], registers, mask_NN.shape[-1]))
    wide = jnp.concatenate([mask_NN, open_to_all], axis=-2)
    return jnp.pad(wide, [(0, 0)] * (wide.ndim - 1) + [(0, registers)], constant_values=True)
