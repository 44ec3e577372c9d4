"""MaskGIT dynamics: the next frame's tokens in parallel, refined in a few passes (Genie, arXiv 2402.15391, 2.1.3).

Training masks tokens of a frame and predicts them. Sampling starts from a fully masked frame and in each pass keeps the
tokens with the highest confidence (MaskGIT, arXiv 2202.04200, section 3.2). Where we differ from the open replicas:

- With ``context="clean"`` a masked frame reads *finished* earlier frames in training, as it does in a rollout. It costs
  twice the frames per step and leaves no gap between training and rollout.
- Sampling cannot change past frames.
- The temperature falls to zero over the passes instead of rising.
- Gumbel noise is added to the confidences, as in the paper.

Shapes: B batch, T time, N tokens per frame, M model width, V codes, K passes.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import ActionSpace
from reverie.config import FROM_DATA
from reverie.errors import ReverieError
from reverie.nn.batch import Loss, draw_rows, fold_keys, row_keys, split_keys
from reverie.nn.codes import AT_ONCE, cross_entropy, nll, sample_codes, top_k_accuracy
from reverie.nn.embed import ActionEmbedding, from_start
from reverie.nn.kv_cache import TokenState, previous_frames
from reverie.nn.linear import Linear
from reverie.nn.patch import neighbourhood
from reverie.nn.transformer import SpaceTimeTransformer, Times, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig:
    """Dynamics over a grid of codes. The first three fields follow from the tokenizer and the data: see ``fitted``."""

    codes: int = field(default=1024, metadata=FROM_DATA)
    grid: tuple[int, int] = field(default=(16, 16), metadata=FROM_DATA)
    actions: ActionSpace = field(default_factory=ActionSpace, metadata=FROM_DATA)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    conditioning: Literal["prepend", "add"] = "prepend"  # the action is a token of its frame, or is added to all
    context: Literal["clean", "hidden"] = "clean"  # what a masked frame reads in training: finished or masked frames
    previous: bool = False  # add the previous frame's token at the same position to the input
    neighbours: int = 0  # add those up to so many positions around it too, from where things move (needs previous)
    mask_min: float = 0.5  # smallest share of a frame's tokens that training masks; each frame draws its own
    changed_weight: float = 0.0  # extra weight of tokens that differ from the frame before
    codes_at_once: int = AT_ONCE  # codes whose logits the loss holds at a time; the result is the same
    context_noise: float = 0.0  # share of frames that training predicts from a corrupted context
    passes: int = 25  # refinement passes per frame (K)
    schedule: Literal["cosine", "geometric", "single"] = "cosine"  # tokens per pass; single: the last ones one by one
    temperature: float = 1.0  # sampling temperature; 0: the likeliest code

    def fitted(self, tokenizer: Any, actions: ActionSpace) -> "MaskGITConfig":
        """Return this config for a tokenizer's codes and a space of actions."""
        return dataclasses.replace(self, codes=tokenizer.codes, grid=tokenizer.grid, actions=actions)

    def make(self, rngs: nnx.Rngs) -> "MaskGIT":
        """Return the module."""
        return MaskGIT(self, rngs=rngs)


class MaskGIT(nnx.Module):
    """A space-time transformer over token embeddings, with one more code for the mask token."""

    uncertainty = "bits per token"

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
        """Cross-entropy of the masked tokens of every frame but the first; latents are (B, T, N) int32 codes."""
        x, masked = self._predict_masked(latents_BTN, actions_BT, keys_B)
        c = self.config
        return cross_entropy(self.head, x, latents_BTN, masked, c.changed_weight, c.codes_at_once)

    def report(self, latents_BTN: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Top-k accuracy in fully masked frames, and accuracy of their tokens that change."""
        x, _ = self._predict_masked(latents_BTN, actions_BT, row_keys(key, len(latents_BTN)), ratio=1.0)
        return top_k_accuracy(self.head, x, latents_BTN, self.config.codes_at_once)

    def _predict_masked(self, latents_BTN, actions_BT, keys_B, ratio: float | None = None):
        """Return features (B, T-1, N, M) of frames 1..T-1 with tokens masked, and which were, float (B, T-1, N).

        ``ratio``: the mask ratio; None draws it as in training.
        """
        _, length, tokens = latents_BTN.shape
        actions_BT = from_start(actions_BT, self.config.actions)
        context_BTN = self._corrupted(latents_BTN, fold_keys(keys_B, 1)) if ratio is None else latents_BTN
        keys_ratio, keys_mask = split_keys(keys_B, 2)
        low = jnp.float32(self.config.mask_min)
        ratios = low + (1 - low) * draw_rows(jax.random.uniform, keys_ratio, (length - 1, 1))
        ratios = ratios if ratio is None else jnp.full_like(ratios, ratio)
        masked = draw_rows(jax.random.uniform, keys_mask, (length - 1, tokens)) < ratios
        drafts = jnp.where(masked, self.config.codes, latents_BTN[:, 1:])
        if self.config.context == "clean":  # T-1 finished frames (none reads the last one), then T-1 drafts
            finished = context_BTN[:, :-1]
            x = [
                self._embed(finished, actions_BT[:, :-1], previous_frames(finished, self.config.codes)[:, :-1]),
                self._embed(drafts, actions_BT[:, 1:], finished),
            ]
            x = jnp.concatenate(x, axis=1)
            x = self.transformer(x, times=Times(length - 1, tuple(range(1, length))))[:, length - 1 :]
        else:
            x = self._embed(
                jnp.concatenate([latents_BTN[:, :1], drafts], axis=1),
                actions_BT,
                previous_frames(context_BTN, self.config.codes)[:, :-1],
            )
            x = self.transformer(x)[:, 1:]
        return x[..., : self.tokens, :], masked.astype(jnp.float32)

    def _corrupted(self, latents_BTN: Array, keys_B: Array) -> Array:
        """Return context frames: in a share of them half of the tokens come from another moment of the clip.

        So a moving thing is missing from some and doubled in others, as happens in generated frames. A model that never
        saw such frames does not bring back a player that was lost once (docs/log.md).
        """
        if not self.config.context_noise:
            return latents_BTN
        frames, tokens = (draw_rows(jax.random.uniform, keys, latents_BTN.shape[1:]) for keys in split_keys(keys_B, 2))
        replaced = (frames[..., :1] < jnp.float32(self.config.context_noise)) & (tokens < 0.5)
        return jnp.where(replaced, latents_BTN[:, ::-1], latents_BTN)

    # -- one frame at a time -----------------------------------------------------------------------------------------

    def empty(self, batch: int, inputs: bool = False) -> TokenState:
        """Return the state before the first frame. ``inputs``: an agent's, for which features are ``inputs``."""
        last, before = (jnp.full((batch, self.tokens), self.config.codes, jnp.int32) for _ in range(2))
        return TokenState(self.transformer.empty(batch), last, before if inputs else None)

    def observe(self, state: TokenState, latents_BN: Array, actions_B: Array) -> tuple[TokenState, Array]:
        """Append a finished frame and the action that led to it; returns features (B, N, M) too, or ``inputs``."""
        h, new_kv = self._step(state, latents_BN, actions_B)
        before = None if state.before_BN is None else state.last_BN
        state = TokenState(state.cache.append(new_kv), latents_BN, before)
        return state, h if before is None else self.inputs(state)

    def inputs(self, state: TokenState) -> Array:
        """Return what the network reads: embeddings of the last frame's tokens and of those before, (B, N, 2M)."""
        before = self.embed if self.before is None else self.before
        return jnp.concatenate([self.embed[...][state.last_BN], before[...][state.before_BN]], axis=-1)

    def imagine(
        self, state: TokenState, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[TokenState, Array, Array]:
        """Generate the frame ``actions_B`` leads to: (state with it appended, latents (B, N), features (B, N, M))."""
        return self.imagine_with_uncertainty(state, actions_B, key, temperature)[:3]

    def imagine_with_uncertainty(
        self, state: TokenState, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[TokenState, Array, Array, Array]:
        """See ``imagine``; the last value is the mean surprisal (B,) of the frame's tokens in bits: see ``sample``."""

        def predict(latents_BN):
            return self._logits(self._step(state, latents_BN, actions_B)[0])

        latents, unsure = self.sample(predict, len(actions_B), key, temperature)
        state, h = self.observe(state, latents, actions_B)
        return state, latents, h, unsure

    def imagine_uncached(
        self, latents_BTN: Array, actions_BT: Array, key: Array, temperature: float | Array | None = None
    ) -> Array:
        """The same frame by running the whole past in every pass: latents (B, T, N), actions (B, T+1) -> (B, N)."""

        def predict(latents_BN):
            x = jnp.concatenate([latents_BTN, latents_BN[:, None]], axis=1)
            x = self._embed(x, actions_BT, previous_frames(latents_BTN, self.config.codes))
            return self._logits(self.transformer(x)[:, -1])

        return self.sample(predict, len(latents_BTN), key, temperature)[0]

    def schedule(self) -> np.ndarray:
        """Return how many tokens are still masked after each of the K passes, (K,) int32; none after the last.

        "cosine" (MaskGIT) leaves most tokens to the last passes. In a world that mostly stands still most tokens are
        certain at once. The few that depend on each other (is the player here, or there?) should be sampled one by one,
        each given those before. So "geometric" leaves few tokens to the last passes; with the cosine, two players or
        none came of it (docs/log.md). "single" samples all but K - 1 tokens in the first pass, and these one by one.
        """
        passes = self.config.passes
        done = np.arange(1, passes)
        if self.config.schedule == "single":
            left = np.minimum(passes - done, self.tokens)
        elif self.config.schedule == "cosine":
            left = self.tokens * np.cos(np.pi / 2 * done / passes)
        else:
            left = self.tokens ** (1 - done / max(passes - 1, 1))
        return np.append(np.floor(left + 1e-6), 0).astype(np.int32)

    def sample(self, predict, batch: int, key: Array, temperature: float | Array | None = None) -> tuple[Array, Array]:
        """Sample a frame in K passes: (codes (B, N), their mean surprisal (B,) in bits).

        ``predict``: a partly masked frame (B, N) -> logits (B, N, V). The surprisal of a code is that in the pass which
        kept it, at temperature 1. It is one sample of the distribution's entropy. The entropy itself needs another sum
        over all codes in each pass, 4 to 8 % of a frame's time, and says no more about the error (docs/log.md).
        """
        c, tokens = self.config, self.tokens
        temperature = jnp.asarray(self.temperature if temperature is None else temperature, jnp.float32)
        left = self.schedule()
        key_code, key_order = jax.random.split(key)
        uniform = jax.random.uniform(key_code, (c.passes, batch, tokens))
        gumbel = jax.random.gumbel(key_order, (c.passes, batch, tokens))

        def refine(k, carry):
            latents, nats = carry
            logits = predict(latents)
            codes = sample_codes(uniform[k], logits, temperature)
            surprisal = nll(logits, codes)
            confidence = -surprisal
            cooling = temperature * (1 - (k + 1).astype(jnp.float32) / c.passes)
            confidence = confidence + cooling * gumbel[k]
            masked = latents == c.codes
            confidence = jnp.where(masked, confidence, jnp.inf)
            rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)  # 0: lowest confidence
            stays_masked = rank < jnp.asarray(left)[k]
            latents = jnp.where(masked, jnp.where(stays_masked, c.codes, codes), latents)
            return latents, jnp.where(masked, surprisal, nats)

        start = jnp.full((batch, tokens), c.codes, jnp.int32), jnp.zeros((batch, tokens))
        latents, nats = jax.lax.fori_loop(0, c.passes, refine, start)
        return latents, jnp.mean(nats, axis=-1) / math.log(2)

    # -- tokens in, logits out ---------------------------------------------------------------------------------------

    def _embed(self, latents_BTN, actions, previous_BTN):
        x = self.embed[...][latents_BTN]
        if self.before is not None:
            previous = self.before[...][previous_BTN]
            x = x + previous
            if self.around is not None:
                x = x + self.around(neighbourhood(previous, self.config.grid, self.config.neighbours))
        action = self.actions(actions)[:, :, None]
        return jnp.concatenate([x, action], axis=2) if self.prepend else x + action

    def _step(self, state, latents_BN, actions_B):
        x = self._embed(latents_BN[:, None], actions_B[:, None], state.last_BN[:, None])[:, 0]
        h, new_kv = self.transformer.step(x, state.cache)
        return h[:, : self.tokens], new_kv

    def _logits(self, x):
        return self.head(x[..., : self.tokens, :]).astype(jnp.float32)
