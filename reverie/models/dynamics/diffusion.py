"""Diffusion-forcing dynamics: the next frame's latents from noise, step by step (arXiv 2407.01392; as in Jasmine).

Every frame of a clip has its own noise level, and the network, conditioned on the level, predicts the clean frame. With
``context="forcing"`` frames read each other as noisy as they are. With ``"clean"`` a noisy draft reads finished frames
as in a rollout (slightly noised, and labelled so), at twice the frames per step. At the sizes of a laptop, "forcing"
learns to denoise each frame by itself and to ignore context and actions.

Where we differ from open replicas: the sampler steps to the next level instead of adding noise to its own prediction
again, and conditions the network on the level its input *has*. The context noise of a frame is drawn once and depends
on the frame's time alone, so the KV cache is exact.

Shapes: B batch, T time, N tokens per frame, L latent width, M model width, K passes, S labels.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import ActionSpace
from reverie.config import FROM_DATA
from reverie.nn.agent_tokens import AgentState
from reverie.nn.batch import Loss, draw_rows, mean, row_keys, split_keys
from reverie.nn.embed import ActionEmbedding, LevelEmbedding, from_start
from reverie.nn.flow import data_of, denoise, moved, noised, ramp
from reverie.nn.kv_cache import KVCache, previous_frames
from reverie.nn.linear import Linear
from reverie.nn.transformer import SpaceTimeTransformer, Times, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Dynamics over a grid of vectors. The first three fields follow from the tokenizer and data: see ``fitted``."""

    width: int = field(default=32, metadata=FROM_DATA)
    grid: tuple[int, int] = field(default=(4, 4), metadata=FROM_DATA)
    actions: ActionSpace = field(default_factory=ActionSpace, metadata=FROM_DATA)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    conditioning: Literal["add", "prepend"] = "add"  # action and level are added to every token, or are tokens (paper)
    context: Literal["clean", "forcing"] = "clean"  # what drafts read in training: finished frames, or noisy ones
    predict: Literal["x", "v"] = "x"  # what the network predicts: the clean frame, or the velocity of the flow
    previous: bool = True  # add the previous frame, with its context noise, to the input
    context_level: float = 0.9  # noise level of context frames: 1 is clean, 0 pure noise
    changed_weight: float = 0.0  # extra weight of tokens that differ from the frame before
    image_share: float = 0.0  # share of rows trained as single images, to sample first frames (Dreamer 4: 0.3)
    short_length: int = 0  # frames of the clips into which other rows are cut; 0: none is cut
    long_share: float = 0.1  # share of rows that are not cut, if others are (open-dreamer; the paper: "occasionally")
    passes: int = 8  # denoising passes per frame (K)
    temperature: float = 1.0  # scale of the noise that sampling starts from; 1 as in training

    def fitted(self, tokenizer: Any, actions: ActionSpace) -> "DiffusionConfig":
        """Return this config for a tokenizer's vectors and a space of actions."""
        return dataclasses.replace(self, width=tokenizer.width, grid=tokenizer.grid, actions=actions)

    def make(self, rngs: nnx.Rngs) -> "Diffusion":
        """Return the module."""
        return Diffusion(self, rngs=rngs)


class LatentState(NamedTuple):
    """The state of dynamics over vectors: the transformer's KV cache, and the last finished frame with its noise.

    ``agents``: the state of agent tokens; None if there are none.
    """

    cache: KVCache
    last_BNL: Array
    agents: AgentState | None = None


class Context(NamedTuple):
    """A training clip as drafts of its frames see it; ``begins_BT`` and ``clips_BT`` are None for one clip per row."""

    frames_BTNL: Array  # with context noise
    labels_BTS: Array
    actions_BT: Array
    begins_BT: Array | None  # True at the first frame of a clip
    clips_BT: Array | None  # the number of the clip

    def previous(self, frames_BTNL: Array) -> Array:
        """The frame before each frame, zeros before the first of a clip."""
        shifted = previous_frames(frames_BTNL, 0)[:, :-1]
        return shifted if self.begins_BT is None else jnp.where(self.begins_BT[..., None, None], 0.0, shifted)


class Diffusion(nnx.Module):
    """A space-time transformer over noisy latents, their noise level and the actions."""

    labels = 1  # how many numbers describe a frame's noise to the network
    agents: Any = None  # AgentTokens, if an agent has put them here

    def __init__(self, config: DiffusionConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.transformer.width
        self.tokens, self.temperature = config.grid[0] * config.grid[1], config.temperature
        self.embed = Linear(config.width, width, rngs=rngs)
        self.before = Linear(config.width, width, rngs=rngs) if config.previous else None
        self.level = LevelEmbedding(self.labels, width, rngs=rngs)
        self.actions = ActionEmbedding(config.actions, width, rngs=rngs)
        self.prepend = config.conditioning == "prepend"
        self.transformer = SpaceTimeTransformer(config.transformer, config.grid, 2 * self.prepend, rngs=rngs)
        self.head = Linear(width, config.width, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, latents_BTNL: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Squared error of every frame but the first, predicted from a random noise level, weighted by ``ramp``."""
        level, data, target = self._predict(latents_BTNL, actions_BT, keys_B)
        error = jnp.mean(jnp.square(data - target), axis=-1)
        metrics = self._metrics(error, latents_BTNL)
        if self.config.predict == "v":  # the velocity's error: that of the data, larger the less noise there is
            error = error / jnp.square(jnp.maximum(1 - level, 0.05))[..., None]
        return Loss((self._weighted(error, level, latents_BTNL),), metrics)

    def report(self, latents_BTNL: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Squared error of predictions from pure noise, and that of tokens which changed."""
        _, data, target = self._predict(latents_BTNL, actions_BT, row_keys(key, len(latents_BTNL)), level=0.0)
        found = self._metrics(jnp.mean(jnp.square(data - target), axis=-1), latents_BTNL)
        return {name: each.value for name, each in found.items()}

    def _metrics(self, error_BTN, latents_BTNL):
        return {"error": mean(error_BTN), "error_changed": mean(error_BTN, moved(latents_BTNL))}

    def _weighted(self, error_BTN, level_BT, latents_BTNL):
        """The mean error, weighted by level and by what changed."""
        weights = 1 + jnp.float32(self.config.changed_weight) * moved(latents_BTNL)
        return mean(error_BTN, ramp(level_BT)[..., None] * weights)

    def _predict(self, latents_BTNL, actions_BT, keys_B, level: float | None = None):
        """Return levels (B, T-1), predicted and true latents (B, T-1, N, L) of frames 1..T-1.

        ``level``: the noise level of all drafts; None draws levels and cuts clips as in training.
        """
        keys_level, keys_noise, keys_context, keys_clips = split_keys(keys_B, 4)
        target = latents_BTNL[:, 1:]
        levels = draw_rows(jax.random.uniform, keys_level, target.shape[1:2])
        levels = levels if level is None else jnp.full_like(levels, level)
        drafts = noised(target, draw_rows(jax.random.normal, keys_noise, target.shape[1:]), levels[..., None, None])
        begins = None if level is not None else self._begins(keys_clips, latents_BTNL.shape[1])
        context = self._context(latents_BTNL, actions_BT, keys_context, begins)
        return levels, self._denoised(context, drafts, levels), target

    def _begins(self, keys_B, length: int):
        """Where clips begin, (B, T): at every frame, every ``short_length`` frames, or once; None: once in every row.

        A row of several clips costs what a row of one does, in one compiled program.
        """
        c, at = self.config, np.arange(length)
        if not (c.image_share or c.short_length):
            return None
        image, cut = draw_rows(jax.random.uniform, keys_B, (2,)).T
        short = cut >= jnp.float32(c.long_share if c.short_length else 1.0)
        kind = jnp.where(image < jnp.float32(c.image_share), 2, short.astype(jnp.int32))
        return jnp.asarray(np.stack([at == 0, at % (c.short_length or length) == 0, at >= 0]))[kind]

    def _context(self, latents_BTNL, actions_BT, keys_B, begins_BT=None) -> Context:
        """Return a training clip with context noise, which ``keys_B`` draw once for all frames."""
        actions_BT = from_start(actions_BT, self.config.actions, begins_BT)
        level = jnp.float32(self.config.context_level)
        frames = noised(latents_BTNL, draw_rows(jax.random.normal, keys_B, latents_BTNL.shape[1:]), level)
        labels = self._label(jnp.full(latents_BTNL.shape[:2], level))
        clips = None if begins_BT is None else jnp.cumsum(begins_BT, axis=1)
        return Context(frames, labels, actions_BT, begins_BT, clips)

    def _denoised(self, context: Context, drafts, levels, *size):
        """Return the clean latents predicted from drafts (B, T-1, N, L) of frames 1..T-1 at noise levels (B, T-1).

        ``size``: of the sampler's step, if ``_label`` takes one.
        """
        features = self._read_finished if self.config.context == "clean" else self._read_each_other
        return self._data(features(context, drafts, self._label(levels, *size)), drafts, levels[..., None, None])

    def _read_finished(self, context: Context, drafts, labels):
        """Return the features of drafts that read finished frames: T-1 finished frames are run, then T-1 drafts."""
        frames, actions, clips, count = context.frames_BTNL, context.actions_BT, context.clips_BT, drafts.shape[1]
        previous = context.previous(frames)
        x_finished = self._embed(frames[:, :-1], context.labels_BTS[:, :-1], actions[:, :-1], previous[:, :-1])
        x_drafts = self._embed(drafts, labels, actions[:, 1:], previous[:, 1:])
        clips = None if clips is None else jnp.concatenate([clips[:, :-1], clips[:, 1:]], axis=1)
        times = Times(count, tuple(range(1, count + 1)))
        x = jnp.concatenate([x_finished, x_drafts], axis=1)
        return self.transformer(x, times=times, clips_BT=clips)[:, count:]

    def _read_each_other(self, context: Context, drafts, labels):
        """Return the features of drafts that read the first frame and each other."""
        frames = jnp.concatenate([context.frames_BTNL[:, :1], drafts], axis=1)
        labels = jnp.concatenate([context.labels_BTS[:, :1], labels], axis=1)
        x = self._embed(frames, labels, context.actions_BT, context.previous(frames))
        return self.transformer(x, clips_BT=context.clips_BT)[:, 1:]

    # -- one frame at a time -----------------------------------------------------------------------------------------

    def empty(self, batch: int, task: Array | int = 0) -> LatentState:
        """Return the state before the first frame. ``task``: the id of that of each row's agent, if tokens read it."""
        agents = None if self.agents is None else self.agents.empty(self.transformer, batch, task)
        return LatentState(self.transformer.empty(batch), jnp.zeros((batch, self.tokens, self.config.width)), agents)

    def observe(self, state: LatentState, latents_BNL: Array, actions_B: Array) -> tuple[LatentState, Array]:
        """Append a finished frame and the action that led to it; returns features too.

        These are the frame's tokens (B, N, M), or agent tokens (B, A, M) where there are any.
        """
        frame = self._with_context_noise(latents_BNL, state.cache.time)
        x = self._tokens(state, frame, self._label(jnp.float32(self.config.context_level)), actions_B)
        h, new_kv = self.transformer.step(x, state.cache)
        h, agents = h[:, : self.tokens], None
        if self.agents is not None:
            agents, h = self.agents.read(self.transformer, x, state.cache, state.agents)
        return LatentState(state.cache.append(new_kv), frame, agents), h

    def imagine(
        self, state: LatentState, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[LatentState, Array, Array]:
        """Generate the frame ``actions_B`` leads to: (state with it, latents (B, N, L), features (B, N, M))."""
        return self.imagine_with_uncertainty(state, actions_B, key, temperature)[:3]

    @property
    def uncertainty(self) -> str:
        """See ``Dynamics``: a single pass has no second estimate."""
        return "in units of its latents" if self.config.passes > 1 else ""

    def imagine_with_uncertainty(
        self, state: LatentState, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[LatentState, Array, Array, Array]:
        """See ``imagine``; the last value (B,) is how far the sampler's first and last estimate lie apart.

        It is a root mean square over all latents of the frame. The first estimate is made from noise alone.
        """

        def predict(point, level):
            label = self._label(level, 1 / self.config.passes)
            h, _ = self.transformer.step(self._tokens(state, point, label, actions_B), state.cache)
            return self._data(h, point, level)

        latents, first = denoise(predict, self._noise(key, len(actions_B), temperature), self.config.passes)
        state, h = self.observe(state, latents, actions_B)
        return state, latents, h, jnp.sqrt(jnp.mean(jnp.square(latents - first), axis=(1, 2)))

    def imagine_uncached(
        self, latents_BTNL: Array, actions_BT: Array, key: Array, temperature: float | Array | None = None
    ) -> Array:
        """The same frame by running the whole past in every pass: latents (B, T, N, L), actions (B, T+1)."""
        batch, length = latents_BTNL.shape[:2]
        past = self._past(latents_BTNL)
        previous = previous_frames(past, 0)

        def predict(point, level):
            x = jnp.concatenate([past, point[:, None]], axis=1)
            labels = self._label(jnp.full((batch, length), self.config.context_level))
            now = jnp.broadcast_to(self._label(level, 1 / self.config.passes), (batch, 1, labels.shape[-1]))
            x = self._embed(x, jnp.concatenate([labels, now], axis=1), actions_BT, previous)
            y = self.transformer(x)[:, -1]
            return self._data(y, point, level)

        return denoise(predict, self._noise(key, batch, temperature), self.config.passes)[0]

    # -- latents in, latents out -------------------------------------------------------------------------------------

    def _noise(self, key, batch: int, temperature):
        temperature = jnp.asarray(self.temperature if temperature is None else temperature, jnp.float32)
        return temperature * jax.random.normal(key, (batch, self.tokens, self.config.width))

    def _with_context_noise(self, latents_BNL, time):
        """A finished frame with the context noise of its time: always the same, and the same in every row."""
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), time), latents_BNL.shape[1:])
        return noised(latents_BNL, noise[None], jnp.float32(self.config.context_level))

    def _past(self, latents_BTNL):
        """Finished frames of a whole past, with the context noise of their times."""
        times = jnp.arange(latents_BTNL.shape[1], dtype=jnp.uint32)
        return jax.vmap(self._with_context_noise, in_axes=(1, 0), out_axes=1)(latents_BTNL, times)

    def _tokens(self, state, point_BNL, label, actions_B):
        """The tokens of a frame as they enter the transformer."""
        labels = jnp.broadcast_to(label, (len(point_BNL), 1, label.shape[-1]))
        return self._embed(point_BNL[:, None], labels, actions_B[:, None], state.last_BNL[:, None])[:, 0]

    def _label(self, level: Array, size: Array | float = 0.0) -> Array:
        """How a frame's noise is described to the network, (..., 1): by its level, not by the sampler's step size."""
        return level[..., None]

    def _embed(self, x_BTNL, labels_BTS, actions, previous_BTNL):
        x = self.embed(x_BTNL)
        if self.before is not None:
            x = x + self.before(previous_BTNL)
        level, action = self.level(labels_BTS), self.actions(actions)
        if self.prepend:
            return jnp.concatenate([x, jnp.stack((level, action), axis=2)], axis=2)
        return x + (level + action)[:, :, None]

    def _data(self, features, point, level):
        """The clean latents that the network predicts."""
        out = self.head(features[..., : self.tokens, :]).astype(jnp.float32)
        return out if self.config.predict == "x" else data_of(out, point, level)
