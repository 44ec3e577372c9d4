"""Causal dynamics: an autoregressive model of a frame's tokens, one after another (Jasmine, arXiv 2510.27002).

Training runs one transformer over finished frames and, after them, a draft of each frame but the first (teacher
forcing: a draft's inputs are the true tokens, shifted by one). In a finished frame every token reads every token. A
draft's token reads the draft's earlier tokens, and finished frames through time attention. So each token sees every
token of every earlier frame in the window. (In Jasmine tokens of past frames read only earlier positions: token n of a
frame never sees tokens n and after of any frame, and the first token sees only actions.) A rollout generates a draft
token by token with the same attention mask.

Several tokens may be sampled at once (``block``); then a token sees those of earlier blocks only.

Shapes: B batch, T time, N tokens per frame, M model width, V codes, n tokens of a block.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import ActionSpace
from reverie.config import FROM_DATA
from reverie.nn.batch import Loss
from reverie.nn.codes import AT_ONCE, cross_entropy, nll, sample_codes, top_k_accuracy
from reverie.nn.embed import ActionEmbedding, from_start
from reverie.nn.kv_cache import TokenState, previous_frames
from reverie.nn.linear import Linear
from reverie.nn.transformer import SpaceTimeTransformer, Times, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """Dynamics over a grid of codes. The first three fields follow from the tokenizer and the data: see ``fitted``."""

    codes: int = field(default=1024, metadata=FROM_DATA)
    grid: tuple[int, int] = field(default=(16, 16), metadata=FROM_DATA)
    actions: ActionSpace = field(default_factory=ActionSpace, metadata=FROM_DATA)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    block: int = 1  # tokens sampled at once
    previous: bool = True  # add the previous frame's token at the same position to the input
    changed_weight: float = 0.0  # extra weight of tokens that differ from the frame before
    codes_at_once: int = AT_ONCE  # codes whose logits the loss holds at a time; the result is the same
    temperature: float = 1.0  # sampling temperature; 0: the likeliest code
    top_k: int = 0  # sample from the k likeliest codes; 0: from all
    top_p: float = 1.0  # sample from the fewest likeliest codes with this much probability (nucleus sampling)

    def fitted(self, tokenizer: Any, actions: ActionSpace) -> "CausalConfig":
        """Return this config for a tokenizer's codes and a space of actions."""
        return dataclasses.replace(self, codes=tokenizer.codes, grid=tokenizer.grid, actions=actions)

    def make(self, rngs: nnx.Rngs) -> "Causal":
        """Return the module; ValueError if blocks do not fill a frame."""
        if self.grid[0] * self.grid[1] % self.block or self.transformer.registers:
            raise ValueError(
                f"blocks of {self.block} must fill {self.grid[0]}x{self.grid[1]} tokens, without registers"
            )
        return Causal(self, rngs=rngs)


class Causal(nnx.Module):
    """A space-time transformer over finished frames and drafts, with an embedding of codes for each."""

    uncertainty = "bits per token"

    def __init__(self, config: CausalConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.transformer.width
        self.tokens, self.temperature = config.grid[0] * config.grid[1], config.temperature

        def table():
            return nnx.Param(jax.random.normal(rngs.params(), (config.codes + 1, width)) * 0.5)

        # Embeddings of codes: in a finished frame, in a draft (of the token one block earlier), in the previous frame.
        self.done, self.drawn = table(), table()
        self.before = table() if config.previous else None
        self.actions = ActionEmbedding(config.actions, width, rngs=rngs)
        self.transformer = SpaceTimeTransformer(config.transformer, config.grid, rngs=rngs)
        self.head = Linear(width, config.codes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    @property
    def draft_mask(self) -> np.ndarray:
        """The attention mask within a draft, (N, N) bool: block-causal, since inputs are shifted by one block."""
        block = np.arange(self.tokens) // self.config.block
        return block[:, None] >= block[None]

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, latents_BTN: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Cross-entropy of every token of every frame but the first; latents are (B, T, N) int32 codes."""
        c, x, every = self.config, self._predict(latents_BTN, actions_BT), jnp.ones(latents_BTN[:, 1:].shape)
        return cross_entropy(self.head, x, latents_BTN, every, c.changed_weight, c.codes_at_once)

    def report(self, latents_BTN: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Top-k accuracy of tokens with teacher forcing, and accuracy of those that change."""
        x = self._predict(latents_BTN, actions_BT)
        return top_k_accuracy(self.head, x, latents_BTN, self.config.codes_at_once)

    def _predict(self, latents_BTN, actions_BT, drafts: int = 0):
        """Return features (B, T-1, N, M) of frames 1..T-1, or of the last ``drafts`` of them.

        The transformer runs frames 0..T-2 as finished ones and, after them, the drafts.
        """
        finished = latents_BTN.shape[1] - 1
        drafts = drafts or finished
        actions_BT = from_start(actions_BT, self.config.actions)
        past_BTN, before_past_BTN = latents_BTN[:, :-1], previous_frames(latents_BTN, self.config.codes)[:, :-2]
        shifted_BTN = self._shifted(latents_BTN)[..., : self.tokens]
        x = [
            self._embed_finished(past_BTN, actions_BT[:, :-1], before_past_BTN),
            self._embed_draft(shifted_BTN[:, -drafts:], actions_BT[:, -drafts:], past_BTN[:, -drafts:]),
        ]
        whole = np.ones((finished, self.tokens, self.tokens), bool)
        mask = np.concatenate([whole, np.broadcast_to(self.draft_mask, (drafts, *whole.shape[1:]))])
        times = Times(finished, tuple(range(finished + 1 - drafts, finished + 1)))
        y = self.transformer(jnp.concatenate(x, axis=1), jnp.asarray(mask), times=times)
        return y[:, finished:]

    # -- one frame at a time -----------------------------------------------------------------------------------------

    def empty(self, batch: int) -> TokenState:
        """Return the state before the first frame."""
        return TokenState(self.transformer.empty(batch), jnp.full((batch, self.tokens), self.config.codes, jnp.int32))

    def observe(self, state: TokenState, latents_BN: Array, actions_B: Array) -> tuple[TokenState, Array]:
        """Append a finished frame and the action that led to it; returns features (B, N, M) too."""
        x = self._embed_finished(latents_BN[:, None], actions_B[:, None], state.last_BN[:, None])[:, 0]
        h, new_kv = self.transformer.step(x, state.cache)
        return TokenState(state.cache.append(new_kv), latents_BN), h

    def imagine(
        self, state: TokenState, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[TokenState, Array, Array]:
        """Generate the frame ``actions_B`` leads to: (state with it appended, latents (B, N), features (B, N, M))."""
        return self.imagine_with_uncertainty(state, actions_B, key, temperature)[:3]

    def imagine_with_uncertainty(
        self, state: TokenState, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[TokenState, Array, Array, Array]:
        """See ``imagine``; the last value is the mean surprisal (B,) of the frame's tokens in bits: see ``sample``."""
        block, draft_mask = self.config.block, jnp.asarray(self.draft_mask)

        def predict(latents_BN, first, frame_kv):
            shifted, previous = (
                jax.lax.dynamic_slice_in_dim(codes, first, block, axis=1)[:, None]
                for codes in (self._shifted(latents_BN), state.last_BN)
            )
            x = self._embed_draft(shifted, actions_B[:, None], previous)[:, 0]
            mask = jax.lax.dynamic_slice_in_dim(draft_mask, first, block)
            y, frame_kv = self.transformer.step_tokens(x, first, mask, state.cache, frame_kv)
            return self._logits(y), frame_kv

        frame_kv = self.transformer.empty_frame_kv(len(actions_B))
        latents, unsure = self.sample(predict, frame_kv, len(actions_B), key, temperature)
        state, h = self.observe(state, latents, actions_B)
        return state, latents, h, unsure

    def imagine_uncached(
        self, latents_BTN: Array, actions_BT: Array, key: Array, temperature: float | Array | None = None
    ) -> Array:
        """The same frame by running the whole past for every block: latents (B, T, N), actions (B, T+1) -> (B, N)."""

        def predict(latents_BN, first, frame_kv):
            clip = jnp.concatenate([latents_BTN, latents_BN[:, None]], axis=1)
            logits = self._logits(self._predict(clip, actions_BT, drafts=1)[:, 0])
            return jax.lax.dynamic_slice_in_dim(logits, first, self.config.block, axis=1), frame_kv

        return self.sample(predict, None, len(latents_BTN), key, temperature)[0]

    def sample(
        self, predict, frame_kv, batch: int, key: Array, temperature: float | Array | None = None
    ) -> tuple[Array, Array]:
        """Sample a frame block by block: (codes (B, N), their mean surprisal (B,) in bits, at temperature 1).

        ``predict``: (latents, first token, frame_kv) -> (logits (B, n, V) of the block that begins there, frame_kv).
        """
        c = self.config
        temperature = jnp.asarray(self.temperature if temperature is None else temperature, jnp.float32)
        blocks = self.tokens // c.block
        uniform = jax.random.uniform(key, (blocks, batch, c.block))

        def fill(i, carry):
            latents, nats, frame_kv = carry
            logits, frame_kv = predict(latents, i * c.block, frame_kv)
            codes = sample_codes(uniform[i], logits, temperature, c.top_k, c.top_p)
            latents = jax.lax.dynamic_update_slice_in_dim(latents, codes, i * c.block, axis=1)
            return latents, nats + jnp.sum(nll(logits, codes), axis=-1), frame_kv

        start = jnp.full((batch, self.tokens), c.codes, jnp.int32), jnp.zeros(batch), frame_kv
        latents, nats, _ = jax.lax.fori_loop(0, blocks, fill, start)
        return latents, nats / (self.tokens * math.log(2))

    # -- tokens in, logits out ---------------------------------------------------------------------------------------

    def _shifted(self, latents):
        """Tokens (..., N) shifted by one block, which a draft reads in place of its own: (..., block + N)."""
        spare = [(0, 0)] * (latents.ndim - 1) + [(self.config.block, 0)]
        return jnp.pad(latents, spare, constant_values=self.config.codes)

    def _embed_finished(self, latents_BTN, actions_BT, previous_BTN):
        return self._conditioned(self.done[...][latents_BTN], actions_BT, previous_BTN)

    def _embed_draft(self, shifted_BTN, actions_BT, previous_BTN):
        return self._conditioned(self.drawn[...][shifted_BTN], actions_BT, previous_BTN)

    def _conditioned(self, x_BTNM, actions_BT, previous_BTN):
        x = x_BTNM if self.before is None else x_BTNM + self.before[...][previous_BTN]
        return x + self.actions(actions_BT)[:, :, None]

    def _logits(self, x):
        return self.head(x).astype(jnp.float32)
