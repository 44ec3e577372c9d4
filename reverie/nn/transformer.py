"""The space-time transformer of every model here; Genie's and Dreamer 4's are two settings of one config.

Attention is factorised. Space attention: tokens of a frame read each other. Time attention: each token reads the same
token of earlier frames, causally, within a sliding window. Layers come in groups of ``time_every``, of which the last
layer has time attention. The groups' weights are stacked, so they can be scanned (small programs, fast compiles) or
unrolled (faster on CPU, above all after ``unstack_layers``).

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

from reverie.nn.attention import rotary_space, rotary_time
from reverie.nn.kv_cache import KeysValues, KVCache, empty_cache, valid_slots
from reverie.nn.layers import AttentionInputs, Group, layer_input, learned_tokens, policy_of, run_group
from reverie.nn.placement import by_rows, gathered, size
from reverie.nn.precision import compute_dtype
from reverie.nn.split import padding, run_split, splits

NewKV = tuple[KeysValues, ...]  # a frame's keys and values, for each layer with time attention
FrameKV = tuple[tuple, ...]  # the keys and values of its tokens, for each group's layers with space attention


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and switches of a space-time transformer."""

    width: int = 512  # width of a token, a multiple of heads
    depth: int = 8  # layers, a multiple of time_every
    heads: int = 8  # attention heads
    kv_heads: int = 0  # key/value heads; 0: as many as heads
    hidden: int = 0  # width of the feed-forward layer; 0: four times the width
    activation: Literal["gelu", "swiglu"] = "swiglu"  # activation of the feed-forward layers
    layout: Literal["space+time", "alternate"] = "space+time"  # what a layer has; alternate: either space or time
    time_every: int = 1  # every k-th layer has time attention; 0: none has, frames are independent
    window: int = 16  # frames that a time layer reads, the current one included
    position_embeddings: bool = True  # learned ones beside rotary positions; False: positions are only relative
    space: bool = True  # False: no space attention (a patch-wise network)
    qk_norm: bool = True  # normalise queries and keys
    soft_cap: float = 0.0  # bound of the attention logits; 0: off
    registers: int = 0  # learned tokens that every frame has besides its own
    scan: bool = False  # scan over layers; same results, compiles faster, runs slower on a CPU
    # activation checkpointing: keep all, matmuls, nothing within a group, nothing within a layer; offload: the same,
    # with inputs of layers on the host
    remat: Literal["none", "dots", "full", "layers", "offload"] = "none"
    attention_parts: int = 1  # parts in which attention is computed, to save memory; the result is the same
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # type of matmuls; weights, norms and softmax stay float32
    int8: bool = False  # layers multiply 8-bit integers, rounded as they are multiplied; gradients are not rounded
    stream: Literal["float32", "bfloat16"] = "float32"  # type of tokens between groups, which remat keeps

    @property
    def group(self) -> int:
        """Layers per group: the period after which the pattern of layers repeats."""
        return max(self.time_every, 1)

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def receptive_field(self) -> int:
        """How many earlier frames an output depends on: every time layer reaches ``window - 1`` frames further back."""
        return self.depth // self.group * (self.window - 1) if self.time_every else 0

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
    """The times of a clip's frames where these are not 0, 1, 2, …: finished frames, then ``drafts`` of some of them.

    A draft of frame t (noised or masked) reads the *finished* frames before t and itself. That is exactly what it reads
    from the KV cache in a rollout. Finished frames never read drafts.
    """

    length: int  # finished frames, at times 0..length-1
    drafts: tuple[int, ...]  # the time of each draft

    @property
    def positions(self) -> np.ndarray:
        """The time of every frame, (T,) uint32."""
        return np.array([*range(self.length), *self.drafts], np.uint32)

    def mask(self, window: int) -> np.ndarray:
        """The attention mask over time, (T, T) bool, within a sliding window."""
        at = self.positions.astype(np.int64)
        finished = np.arange(len(at)) < self.length
        age = at[:, None] - at[None]
        past = (age > 0) & (age < window) & finished[None]
        return past | np.eye(len(at), dtype=bool)


class SpaceTimeTransformer(nnx.Module):
    """(B, T, N, M) -> (B, T, N, M), causal over T.

    The N tokens are the ``height * width`` positions of an image, then ``extra`` tokens without a position.
    """

    def __init__(self, config: TransformerConfig, grid: tuple[int, int], extra: int = 0, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = grid[0] * grid[1] + extra
        self.grid = grid
        # Without attention tokens need no position: a patch means the same wherever it lies.
        embedded = (config.space or config.time_every) and config.position_embeddings
        # Position embeddings. (Checkpoints know them as ``slots``.)
        self.slots = learned_tokens(rngs, self.tokens, config.width) if embedded else None
        if config.registers:
            self.registers = learned_tokens(rngs, config.registers, config.width)
        groups = config.depth // config.group
        self.groups: Any = nnx.vmap(lambda r: Group(config, rngs=r))(rngs.split(groups)) if groups else None
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)

    def empty(self, batch: int, tokens: int = 0) -> KVCache:
        """Return an empty KV cache for ``batch`` rows of a frame's tokens, or of ``tokens`` others."""
        c = self.config
        layers = c.depth // c.group if c.time_every else 0
        shape = (batch, tokens or self.tokens + c.registers, c.kv_heads or c.heads, c.head)
        return empty_cache(layers, c.scan, shape, c.window - 1, compute_dtype(c.dtype))

    def __call__(
        self, x_BTNM: Array, mask_NN: Array | None = None, *, times: Times | None = None, clips_BT: Array | None = None
    ) -> Array:
        """Run a whole clip.

        ``mask_NN``: the attention mask within a frame, True where token n reads token m; or (T, N, N), one per frame.
        ``clips_BT``: the number of the clip each frame belongs to, where a row holds several; none reads another.
        """
        c, length = self.config, x_BTNM.shape[1]
        if size("sequence") > 1:  # frames that fill up a clip come last, and nothing reads them
            x_BTNM, times, clips_BT, mask_NN = self._filled(x_BTNM, times, clips_BT, mask_NN)
        time_mask = None if times is None else jnp.asarray(times.mask(c.window))
        if clips_BT is not None:
            time_mask = jnp.asarray(Times(x_BTNM.shape[1], ()).mask(c.window)) if time_mask is None else time_mask
            time_mask = time_mask[None] & (clips_BT[:, :, None] == clips_BT[:, None, :])
            time_mask = jnp.repeat(time_mask, self.tokens + c.registers, axis=0)  # time attention has B*N rows
        at = jnp.arange(x_BTNM.shape[1], dtype=jnp.uint32) if times is None else times.positions
        x, space_mask, rotation = self._embed(x_BTNM, mask_NN)
        x = self.run_layers(x, AttentionInputs(c, rotation, rotary_time(at, c.head), space_mask, time_mask), None)[0]
        return x[:, :length] if size("sequence") > 1 else x

    def step(self, x_BNM: Array, cache: KVCache, mask_NN: Array | None = None) -> tuple[Array, NewKV]:
        """Run one frame, with past frames from the KV cache: (B, N, M), and its keys and values to append."""
        x, mask, rotation = self._embed(x_BNM[:, None], mask_NN)
        x, new, _ = self.run_layers(x, self.cached_inputs(cache, rotation, mask), cache)
        return x[:, 0], new

    def step_tokens(
        self, x_BnM: Array, first: Array, mask_nN: Array, cache: KVCache, frame_kv: FrameKV
    ) -> tuple[Array, FrameKV]:
        """Run some tokens of the current frame, from ``first`` on: (B, n, M), and ``frame_kv`` with theirs.

        They read the frame's other tokens from ``frame_kv`` where ``mask_nN`` is True, and past frames from the KV
        cache. So a frame token by token costs as much as a frame at once. Registers are not supported.
        """
        positions = first + jnp.arange(x_BnM.shape[1])
        x, _, rotation = self._embed(x_BnM[:, None], None, positions)
        inputs = self.cached_inputs(cache, rotation, mask_nN)._replace(offset=first)
        own = jax.tree.map(
            lambda ring: jax.lax.dynamic_slice_in_dim(ring, first, x_BnM.shape[1], axis=ring.ndim - 4), cache.layers
        )
        x, _, frame_kv = self.run_layers(x, inputs, cache._replace(layers=own), frame_kv)
        return x[:, 0], frame_kv

    def empty_frame_kv(self, batch: int, more: int = 0) -> FrameKV:
        """Return zeros (B, N + more, G, D) for a frame's keys and values, for ``step_tokens``."""
        c = self.config
        if self.groups is None:
            return ()
        groups, one = c.depth // c.group, self.groups if isinstance(self.groups, Group) else self.groups[0]
        shape = (batch, self.tokens + more, c.kv_heads or c.heads, c.head)
        zeros = jnp.zeros((groups, *shape) if c.scan else shape, compute_dtype(c.dtype))
        layers = tuple((zeros, zeros) if layer.space is not None else () for layer in one.layers)
        return (layers,) * (1 if c.scan else groups)

    def unstack(self) -> None:
        """Give each group arrays of its own, unless groups are scanned: see ``unstack_layers``."""
        if self.groups is not None and not self.config.scan:
            self.groups = nnx.List(self._each())

    def _each(self) -> list[Group]:
        """Return the groups, one by one."""
        if not isinstance(self.groups, Group):
            return list(self.groups or ())
        graph, stack = nnx.split(self.groups)
        return [nnx.merge(graph, weights) for weights in _unstacked(stack, self.config.depth // self.config.group)]

    def _embed(self, x: Array, mask: Array | None, positions: Array | None = None):
        """Add position embeddings and registers: (tokens, mask with registers, rotations of space).

        ``positions``: of the tokens, where they are not all of a frame's.
        """
        c = self.config
        extra = self.tokens - self.grid[0] * self.grid[1] + c.registers
        rotation = tuple(jnp.asarray(table) for table in rotary_space(*self.grid, extra, c.head))
        embeddings = None if self.slots is None else self.slots[...].astype(x.dtype)
        if positions is not None:
            rotation, embeddings = jax.tree.map(lambda table: table[positions], (rotation, embeddings))
        if embeddings is not None:
            x = x + embeddings[None, None]
        if c.registers:
            r = jnp.broadcast_to(self.registers[...].astype(x.dtype), (*x.shape[:2], c.registers, c.width))
            x = jnp.concatenate([x, r], axis=2)
            mask = _with_registers(mask, c.registers)
        if mask is not None and mask.ndim == 3:  # one for each frame, the same in every row
            mask = jnp.tile(mask, (x.shape[0], 1, 1))
        return x, mask, rotation

    def _filled(self, x: Array, times: Times | None, clips: Array | None, mask: Array | None):
        """Return the inputs of ``__call__`` with frames added until the mesh divides them, and their times."""
        length = x.shape[1]
        more, times = padding(length), times or Times(length, ())
        if not more:
            return x, times, clips, mask
        x = jnp.pad(x, [(0, 0), (0, more), (0, 0), (0, 0)])
        last = int(times.positions.max()) + 1
        times = Times(times.length, (*times.drafts, *range(last, last + more)))
        clips = None if clips is None else jnp.pad(clips, [(0, 0), (0, more)], mode="edge")
        if mask is not None and mask.ndim == 3:
            mask = jnp.pad(mask, [(0, more), (0, 0), (0, 0)], constant_values=True)
        return x, times, clips, mask

    def cached_inputs(self, cache: KVCache, rotation: Any, mask: Array | None) -> AttentionInputs:
        """Return what attention to a KV cache needs: ``rotation`` of space, and the ``mask`` within the frame."""
        c = self.config
        valid = valid_slots(c.window - 1, cache.time)
        return AttentionInputs(c, rotation, rotary_time(cache.time[None], c.head), mask, time_mask=valid)

    def run_layers(self, x: Array, inputs: AttentionInputs, cache: KVCache | None, frame_kv: FrameKV = ()):
        """Run all groups: (tokens, their new keys and values, updated ``frame_kv``)."""
        c, count = self.config, self.config.depth // self.config.group
        if self.groups is None:
            return self.norm(x[:, :, : self.tokens]), (), frame_kv
        parts = [nnx.split(group) for group in ([self.groups] if c.scan else self._each())]
        graph, cached = parts[0][0], cache.layers if cache is not None else ()

        def run(x: Any, of_group: Any) -> Any:
            weights, cached, frame_kv = of_group
            x = layer_input(c, x).astype(jnp.float32)
            split = splits() and cached is None and frame_kv is None
            weights = gathered(weights, count, compute_dtype(c.dtype), cut=split)
            if split:
                return by_rows(run_split(graph, weights, x, inputs).astype(c.stream)), ((), ((),) * c.group)
            x, new, frame_kv = run_group(nnx.merge(graph, weights), x, inputs, cached, frame_kv)
            return by_rows(x.astype(c.stream)), (new, frame_kv)

        step = run if c.remat == "none" else jax.checkpoint(run, policy=policy_of(c.remat))
        # One entry per group, or a single one with a leading axis of groups where these are scanned.
        empty = [None] * len(parts)
        groups = list(zip([weights for _, weights in parts], cached or empty, frame_kv or empty, strict=True))
        x, results = by_rows(x.astype(c.stream)), []
        if c.scan:
            x, result = jax.lax.scan(step, x, groups[0])
            results.append(result)
        else:
            for group in groups:
                x, result = step(x, group)
                results.append(result)
        new, frame_kv = zip(*results, strict=True)
        return self.norm(x[:, :, : self.tokens].astype(jnp.float32)), new if cached else (), frame_kv


@partial(jax.jit, static_argnums=1)  # one program, where slice by slice would be a hundred
def _unstacked(stack: Any, count: int) -> list:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(count)]


def unstack_layers(model: nnx.Module) -> Any:
    """Return the model with the stacked weights of every transformer that is not scanned split into one array each.

    Splitting copies weights. A program that is given stacks does it in every call, and in every turn of its loops: for
    a small frame that is as much work as generating it.
    """
    model = nnx.clone(model)
    for module in [module for _, module in nnx.iter_modules(model) if isinstance(module, SpaceTimeTransformer)]:
        module.unstack()
    return model


def _with_registers(mask_NN, registers: int):
    """Return the attention mask with registers: every token reads them, so they read only what every token may read.

    Otherwise information would pass through them from a token to one that must not read it.
    """
    if mask_NN is None:
        return None
    open_to_all = jnp.all(mask_NN, axis=-2, keepdims=True)
    open_to_all = jnp.broadcast_to(open_to_all, (*mask_NN.shape[:-2], registers, mask_NN.shape[-1]))
    wide = jnp.concatenate([mask_NN, open_to_all], axis=-2)
    return jnp.pad(wide, [(0, 0)] * (wide.ndim - 1) + [(0, registers)], constant_values=True)
