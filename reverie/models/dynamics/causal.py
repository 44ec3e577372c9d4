"""Causal dynamics: the next frame's tokens one after another, each knowing all before it (Jasmine, arXiv 2510.27002).

Training puts finished frames and, behind them, a draft of each but the first through one transformer. Finished frames
read themselves whole; a draft's token reads the draft's tokens before it and, through its own place in time, finished
frames of which every place has read everything. So each token sees every token of every earlier frame in the window.
(The predecessor lets tokens read only earlier *places*, in the past as well: there, token n of a frame never knows
tokens n and after of any frame, and the first token only actions.) Playing takes a draft token by token, exactly so.

Several tokens may be drawn at once (``block``): then a token knows those of earlier blocks only.

Shapes: B batch, T time, N tokens per frame, M model width, V codes, n tokens of a block.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import ActionSpace
from reverie.nn.batch import Loss
from reverie.nn.codes import draw, likelihood, ranking
from reverie.nn.embed import ActionEmbedding, from_start
from reverie.nn.linear import Linear
from reverie.nn.memory import Past, earlier, remember
from reverie.nn.transformer import SpaceTimeTransformer, Times, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Dynamics over a grid of codes. The first three fields follow from the tokenizer and the data: see ``fitted``."""

    codes: int = 1024
    grid: tuple[int, int] = (16, 16)
    actions: ActionSpace = field(default_factory=ActionSpace)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    block: int = 1  # tokens drawn at once
    previous: bool = True  # a token is told what stood in its place a frame before
    changed_weight: float = 0.0  # extra weight of tokens that differ from the frame before
    temperature: float = 1.0
    top_k: int = 0  # draw from so many likeliest codes; 0: from all
    top_p: float = 1.0  # draw from the likeliest codes that have so much of the probability

    def fitted(self, tokenizer: Any, actions: ActionSpace) -> "CausalConfig":
        """Return this config for a tokenizer's codes and a space of actions."""
        return dataclasses.replace(self, codes=tokenizer.codes, grid=tokenizer.grid, actions=actions)

    def make(self, rngs: nnx.Rngs) -> "Causal":
        """Return the module; ValueError where blocks do not fill a frame."""
        if self.grid[0] * self.grid[1] % self.block or self.transformer.registers:
            raise ValueError(
                f"blocks of {self.block} must fill {self.grid[0]}x{self.grid[1]} tokens, without registers"
            )
        return Causal(self, rngs=rngs)


class Causal(nnx.Module):
    """One space-time transformer for finished frames and for drafts; an embedding of codes for each."""

    def __init__(self, config: CausalConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.transformer.width
        self.tokens, self.temperature = config.grid[0] * config.grid[1], config.temperature

        def table():
            return nnx.Param(jax.random.normal(rngs.params(), (config.codes + 1, width)) * 0.5)

        self.done, self.drawn = table(), table()  # of a finished frame's token; of the token a block before
        self.before = table() if config.previous else None
        self.actions = ActionEmbedding(config.actions, width, rngs=rngs)
        self.transformer = SpaceTimeTransformer(config.transformer, config.grid, rngs=rngs)
        self.head = Linear(width, config.codes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    @property
    def order(self) -> np.ndarray:
        """Which tokens of a draft a token reads, (N, N) bool: those up to its own block, each standing for the last."""
        block = np.arange(self.tokens) // self.config.block
        return block[:, None] >= block[None]

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, latents_BTN: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Cross-entropy of every token of every frame but the first, (B, T, N) int32 codes."""
        every = jnp.ones(latents_BTN[:, 1:].shape)
        return likelihood(self._predict(latents_BTN, actions_BT), latents_BTN, every, self.config.changed_weight)

    def report(self, latents_BTN: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Top-k accuracy of tokens whose predecessors are given, and of those that change."""
        return ranking(self._predict(latents_BTN, actions_BT), latents_BTN)

    def _predict(self, latents_BTN, actions_BT, drafts: int = 0):
        """Return logits (B, T-1, N, V) of frames 1..T-1, or of the last ``drafts`` of them."""
        done, drafts = latents_BTN.shape[1] - 1, drafts or latents_BTN.shape[1] - 1
        actions_BT = from_start(actions_BT, self.config.actions)
        before = earlier(latents_BTN, self.config.codes)[:, :-2]
        finished = self._finished(latents_BTN[:, :-1], actions_BT[:, :-1], before)
        late = jnp.pad(latents_BTN, ((0, 0), (0, 0), (self.config.block, 0)), constant_values=self.config.codes)
        late, acted, before = (x[:, -drafts:] for x in (late[..., : self.tokens], actions_BT, latents_BTN[:, :-1]))
        x = jnp.concatenate([finished, self._draft(late, acted, before)], axis=1)
        whole = np.ones((done, self.tokens, self.tokens), bool)
        mask = jnp.asarray(np.concatenate([whole, np.broadcast_to(self.order, (drafts, *self.order.shape))]))
        y = self.transformer(x, mask, times=Times(done, tuple(range(done + 1 - drafts, done + 1))))
        return self.head(y[:, done:]).astype(jnp.float32)

    # -- one frame at a time -----------------------------------------------------------------------------------------

    def empty(self, batch: int) -> Past:
        """Return the memory with which a world begins."""
        return Past(self.transformer.empty(batch), jnp.full((batch, self.tokens), self.config.codes, jnp.int32))

    def observe(self, memory: Past, latents_BN: Array, actions_B: Array) -> tuple[Past, Array]:
        """Take in a finished frame and the action that led to it; returns features (B, N, M) too."""
        x = self._finished(latents_BN[:, None], actions_B[:, None], memory.last_BN[:, None])[:, 0]
        h, fresh = self.transformer.step(x, memory.ring)
        return Past(remember(memory.ring, fresh), latents_BN), h

    def imagine(
        self, memory: Past, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[Past, Array, Array]:
        """Dream the frame ``actions_B`` leads to: (memory with it taken in, latents (B, N), features (B, N, M))."""
        block, order = self.config.block, jnp.asarray(self.order)

        def predict(latents_BN, first, kept):
            late = jnp.pad(latents_BN, ((0, 0), (block, 0)), constant_values=self.config.codes)
            late, before = (
                jax.lax.dynamic_slice_in_dim(codes, first, block, axis=1)[:, None] for codes in (late, memory.last_BN)
            )
            x = self._draft(late, actions_B[:, None], before)[:, 0]
            mask = jax.lax.dynamic_slice_in_dim(order, first, block)
            y, kept = self.transformer.tokens_step(x, first, mask, memory.ring, kept)
            return self.head(y).astype(jnp.float32), kept

        kept = self.transformer.nothing_kept(len(actions_B))
        latents = self.sample(predict, kept, len(actions_B), key, temperature)
        memory, h = self.observe(memory, latents, actions_B)
        return memory, latents, h

    def imagine_uncached(
        self, latents_BTN: Array, actions_BT: Array, key: Array, temperature: float | Array | None = None
    ) -> Array:
        """``imagine`` by running the whole past for every block: latents (B, T, N), actions (B, T+1) -> (B, N).

        For tests and benchmarks: it must dream the same frame, and shows what memory saves.
        """

        def predict(latents_BN, first, kept):
            clip = jnp.concatenate([latents_BTN, latents_BN[:, None]], axis=1)
            logits = self._predict(clip, actions_BT, drafts=1)[:, 0]
            return jax.lax.dynamic_slice_in_dim(logits, first, self.config.block, axis=1), kept

        return self.sample(predict, None, len(latents_BTN), key, temperature)

    def sample(self, predict, kept, batch: int, key: Array, temperature: float | Array | None = None) -> Array:
        """Fill a frame block by block, (B, N). ``predict``: (latents, first, kept) -> logits (B, n, V) there, kept."""
        c = self.config
        heat = jnp.asarray(self.temperature if temperature is None else temperature, jnp.float32)
        blocks = self.tokens // c.block
        chance = jax.random.uniform(key, (blocks, batch, c.block))

        def fill(i, carry):
            latents, kept = carry
            logits, kept = predict(latents, i * c.block, kept)
            codes = draw(chance[i], logits, heat, c.top_k, c.top_p)
            return jax.lax.dynamic_update_slice_in_dim(latents, codes, i * c.block, axis=1), kept

        start = jnp.full((batch, self.tokens), c.codes, jnp.int32)
        return jax.lax.fori_loop(0, blocks, fill, (start, kept))[0]

    # -- tokens in ---------------------------------------------------------------------------------------------------

    def _finished(self, latents_BTN, actions_BT, before_BTN):
        return self._told(self.done[...][latents_BTN], actions_BT, before_BTN)

    def _draft(self, late_BTN, actions_BT, before_BTN):
        return self._told(self.drawn[...][late_BTN], actions_BT, before_BTN)

    def _told(self, x_BTNM, actions_BT, before_BTN):
        x = x_BTNM if self.before is None else x_BTNM + self.before[...][before_BTN]
        return x + self.actions(actions_BT)[:, :, None]
