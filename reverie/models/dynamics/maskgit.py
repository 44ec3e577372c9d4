"""MaskGIT dynamics: the next frame's tokens, all at once, refined in a few passes (Genie, arXiv 2402.15391, 2.1.3).

Training hides tokens of a frame and asks for them back; sampling starts from a frame that is all hidden and keeps, pass
by pass, the tokens the model is surest of (MaskGIT, arXiv 2202.04200, section 3.2). Where we differ from the open
replicas: with ``context="clean"`` a hidden frame reads *finished* earlier frames in training as it will when played
(twice the frames per step, no gap between the two); frames of the past can never be touched while sampling; temperature
falls to zero over the passes instead of rising; the noise goes on the confidences as in the paper.

Shapes: B batch, T time, N tokens per frame, M model width, V codes, K passes.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import ActionSpace
from reverie.errors import ReverieError
from reverie.nn.batch import Loss, draw_rows, fold_keys, row_keys, split_keys
from reverie.nn.codes import draw, likelihood, ranking, surprise
from reverie.nn.embed import ActionEmbedding, from_start
from reverie.nn.linear import Linear
from reverie.nn.memory import Past, earlier, remember
from reverie.nn.patch import neighbourhood
from reverie.nn.transformer import SpaceTimeTransformer, Times, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig:
    """Dynamics over a grid of codes. The first three fields follow from the tokenizer and the data: see ``fitted``."""

    codes: int = 1024
    grid: tuple[int, int] = (16, 16)
    actions: ActionSpace = field(default_factory=ActionSpace)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    conditioning: Literal["prepend", "add"] = "prepend"  # an action is a token of its frame, or added to all of them
    context: Literal["clean", "hidden"] = (
        "clean"  # what a hidden frame reads in training: finished frames, or hidden ones
    )
    previous: bool = False  # a token is told what stood in its place a frame before: one layer's work, done at once
    neighbours: int = 0  # and what stood up to so many places around it: what moves comes from there (needs previous)
    mask_min: float = 0.5  # share of hidden tokens is drawn from U(mask_min, 1), one draw per frame
    changed_weight: float = 0.0  # extra weight of tokens that differ from the frame before
    context_noise: float = 0.0  # share of frames that training predicts from a disturbed one: see ``_disturbed``
    passes: int = 25  # K, refinement passes per frame
    pace: Literal["cosine", "geometric", "single"] = "cosine"  # few tokens in the first passes, or most: ``schedule``
    temperature: float = 1.0

    def fitted(self, tokenizer: Any, actions: ActionSpace) -> "MaskGITConfig":
        """Return this config for a tokenizer's codes and a space of actions."""
        return dataclasses.replace(self, codes=tokenizer.codes, grid=tokenizer.grid, actions=actions)

    def make(self, rngs: nnx.Rngs) -> "MaskGIT":
        """Return the module."""
        return MaskGIT(self, rngs=rngs)


class MaskGIT(nnx.Module):
    """A space-time transformer over token embeddings, with one more code for "hidden"."""

    def __init__(self, config: MaskGITConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.transformer.width
        self.prepend = config.conditioning == "prepend"
        self.tokens, self.temperature = config.grid[0] * config.grid[1], config.temperature
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (config.codes + 1, width)) * 0.5)
        self.before = (
            nnx.Param(jax.random.normal(rngs.params(), (config.codes + 1, width)) * 0.5) if config.previous else None
        )
        if config.neighbours and not config.previous:
            raise ReverieError("neighbours are those of the frame before: they need previous.")
        window = (2 * config.neighbours + 1) ** 2 if config.neighbours else 0
        self.around = Linear(window * width, width, rngs=rngs) if window else None
        self.actions = ActionEmbedding(config.actions, width, rngs=rngs)
        self.transformer = SpaceTimeTransformer(config.transformer, config.grid, extra=int(self.prepend), rngs=rngs)
        self.head = Linear(width, config.codes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, latents_BTN: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Cross-entropy of the hidden tokens of every frame but the first, (B, T, N) int32 codes."""
        logits, hidden = self._predict_hidden(latents_BTN, actions_BT, keys_B)
        return likelihood(logits, latents_BTN, hidden, self.config.changed_weight)

    def report(self, latents_BTN: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Top-k accuracy of frames that are hidden completely, and of those of their tokens that change."""
        logits, _ = self._predict_hidden(latents_BTN, actions_BT, row_keys(key, len(latents_BTN)), share=1.0)
        return ranking(logits, latents_BTN)

    def _predict_hidden(self, latents_BTN, actions_BT, keys_B, share: float | None = None):
        """Return logits (B, T-1, N, V) of frames 1..T-1 with tokens hidden, and which were, float (B, T-1, N)."""
        _, length, tokens = latents_BTN.shape
        actions_BT = from_start(actions_BT, self.config.actions)
        seen_BTN = self._disturbed(latents_BTN, fold_keys(keys_B, 1)) if share is None else latents_BTN
        keys_share, keys_mask = split_keys(keys_B, 2)
        low = jnp.float32(self.config.mask_min)
        rate = low + (1 - low) * draw_rows(jax.random.uniform, keys_share, (length - 1, 1))
        rate = rate if share is None else jnp.full_like(rate, share)
        hidden = draw_rows(jax.random.uniform, keys_mask, (length - 1, tokens)) < rate
        draft = jnp.where(hidden, self.config.codes, latents_BTN[:, 1:])
        if self.config.context == "clean":  # the last finished frame is nobody's past: T-1 of them, and T-1 drafts
            done, acted = seen_BTN[:, :-1], (actions_BT[:, :-1], actions_BT[:, 1:])
            x = [
                self._embed(done, acted[0], earlier(done, self.config.codes)[:, :-1]),
                self._embed(draft, acted[1], done),
            ]
            x = jnp.concatenate(x, axis=1)
            x = self.transformer(x, times=Times(length - 1, tuple(range(1, length))))[:, length - 1 :]
        else:
            x = self._embed(
                jnp.concatenate([latents_BTN[:, :1], draft], axis=1),
                actions_BT,
                earlier(seen_BTN, self.config.codes)[:, :-1],
            )
            x = self.transformer(x)[:, 1:]
        return self._logits(x), hidden.astype(jnp.float32)

    def _disturbed(self, latents_BTN: Array, keys_B: Array) -> Array:
        """Return the frames to predict from: in a share of them half of the tokens are of another moment of the clip.

        So what moves is gone from some, and twice in others, as happens in generated frames. Without it such frames are
        unknown to the model, and nothing brings back a player who was lost once (docs/log.md).
        """
        if not self.config.context_noise:
            return latents_BTN
        frames, tokens = (draw_rows(jax.random.uniform, keys, latents_BTN.shape[1:]) for keys in split_keys(keys_B, 2))
        picked = (frames[..., :1] < jnp.float32(self.config.context_noise)) & (tokens < 0.5)
        return jnp.where(picked, latents_BTN[:, ::-1], latents_BTN)

    # -- one frame at a time -----------------------------------------------------------------------------------------

    def empty(self, batch: int) -> Past:
        """Return the memory with which a world begins."""
        return Past(self.transformer.empty(batch), jnp.full((batch, self.tokens), self.config.codes, jnp.int32))

    def observe(self, memory: Past, latents_BN: Array, actions_B: Array) -> tuple[Past, Array]:
        """Take in a finished frame and the action that led to it; returns features (B, N, M) too."""
        h, fresh = self._step(memory, latents_BN, actions_B)
        return Past(remember(memory.ring, fresh), latents_BN), h

    def imagine(
        self, memory: Past, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[Past, Array, Array]:
        """Dream the frame ``actions_B`` leads to: (memory with it taken in, latents (B, N), features (B, N, M))."""

        def predict(latents_BN):
            return self._logits(self._step(memory, latents_BN, actions_B)[0])

        latents = self.sample(predict, len(actions_B), key, temperature)
        memory, h = self.observe(memory, latents, actions_B)
        return memory, latents, h

    def imagine_uncached(
        self, latents_BTN: Array, actions_BT: Array, key: Array, temperature: float | Array | None = None
    ) -> Array:
        """``imagine`` by running the whole past in every pass: latents (B, T, N) and actions (B, T+1) -> (B, N).

        For tests and benchmarks: it must dream the same frame, and shows what memory saves.
        """

        def predict(latents_BN):
            x = jnp.concatenate([latents_BTN, latents_BN[:, None]], axis=1)
            x = self._embed(x, actions_BT, earlier(latents_BTN, self.config.codes))
            return self._logits(self.transformer(x)[:, -1])

        return self.sample(predict, len(latents_BTN), key, temperature)

    def schedule(self) -> np.ndarray:
        """Return how many tokens are still hidden after each of the K passes, (K,) int32; none after the last.

        MaskGIT's cosine leaves the most for the last passes. In a world that mostly stands still most tokens are sure
        at once, and the few that hang together (is the player here, or there?) want to be drawn one by one, each
        knowing those before: so a geometric pace ends. With the cosine, two players or none came of it (docs/log.md).
        "single" draws all but K - 1 tokens in the first pass, and these one by one.
        """
        passes = self.config.passes
        done = np.arange(1, passes)
        if self.config.pace == "single":
            left = np.minimum(passes - done, self.tokens)
        elif self.config.pace == "cosine":
            left = self.tokens * np.cos(np.pi / 2 * done / passes)
        else:
            left = self.tokens ** (1 - done / max(passes - 1, 1))
        return np.append(np.floor(left + 1e-6), 0).astype(np.int32)

    def sample(self, predict, batch: int, key: Array, temperature: float | Array | None = None) -> Array:
        """Fill a hidden frame (B, N) in K passes. ``predict``: a partly hidden frame (B, N) -> logits (B, N, V)."""
        c, tokens = self.config, self.tokens
        heat = jnp.asarray(self.temperature if temperature is None else temperature, jnp.float32)
        left = self.schedule()
        key_code, key_order = jax.random.split(key)
        chance = jax.random.uniform(key_code, (c.passes, batch, tokens))
        doubt = jax.random.gumbel(key_order, (c.passes, batch, tokens))

        def refine(k, latents):
            logits = predict(latents)
            codes = draw(chance[k], logits, heat)
            confidence = -surprise(logits, codes)
            cooling = heat * (1 - (k + 1).astype(jnp.float32) / c.passes)
            confidence = confidence + cooling * doubt[k]
            hidden = latents == c.codes
            confidence = jnp.where(hidden, confidence, jnp.inf)
            rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)  # 0: least sure
            keep_hidden = rank < jnp.asarray(left)[k]
            return jnp.where(hidden, jnp.where(keep_hidden, c.codes, codes), latents)

        start = jnp.full((batch, tokens), c.codes, jnp.int32)
        return jax.lax.fori_loop(0, c.passes, refine, start)

    # -- tokens in, logits out ---------------------------------------------------------------------------------------

    def _embed(self, latents_BTN, actions, before_BTN):
        x = self.embed[...][latents_BTN]
        if self.before is not None:
            before = self.before[...][before_BTN]
            x = x + before
            if self.around is not None:
                x = x + self.around(neighbourhood(before, self.config.grid, self.config.neighbours))
        action = self.actions(actions)[:, :, None]
        return jnp.concatenate([x, action], axis=2) if self.prepend else x + action

    def _step(self, memory, latents_BN, actions_B):
        x = self._embed(latents_BN[:, None], actions_B[:, None], memory.last_BN[:, None])[:, 0]
        h, fresh = self.transformer.step(x, memory.ring)
        return h[:, : self.tokens], fresh

    def _logits(self, x):
        return self.head(x[..., : self.tokens, :]).astype(jnp.float32)
