"""Diffusion-forcing dynamics: the next frame's latents out of noise, step by step (arXiv 2407.01392; as in Jasmine).

Every frame of a clip has its own level of noise, and the network, told the level, predicts the clean frame. With
``context="forcing"`` frames read each other as noisy as they are; with ``"clean"`` a noisy draft reads finished frames
as it will when played (slightly noised, and labelled so), at twice the frames per step. At the sizes of a laptop the
former learns to clean each frame by itself and to ignore context and actions.

Where we differ from open replicas: the sampler steps to the next level instead of re-noising its own prediction, and
tells the network the level it *has*; a remembered frame is noised once, by a noise that depends on its time alone, so
memory is exact.

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
from reverie.nn.batch import Loss, draw_rows, mean, row_keys, split_keys
from reverie.nn.embed import ActionEmbedding, LevelEmbedding, from_start
from reverie.nn.flow import data_of, denoise, noised, ramp
from reverie.nn.linear import Linear
from reverie.nn.memory import Memory, earlier, remember
from reverie.nn.transformer import SpaceTimeTransformer, Times, TransformerConfig

CHANGED = 0.1  # how far a latent moves, root mean square, when what it shows has changed


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Dynamics over a grid of vectors. The first three fields follow from the tokenizer and data: see ``fitted``."""

    width: int = 32
    grid: tuple[int, int] = (4, 4)
    actions: ActionSpace = field(default_factory=ActionSpace)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    conditioning: Literal["add", "prepend"] = "add"  # action and level are added to every token, or are tokens (paper)
    context: Literal["clean", "forcing"] = "clean"
    predict: Literal["x", "v"] = "x"  # the clean frame, or the flow towards it
    previous: bool = True  # a token is told the latent in its place a frame before, as noisy as it is remembered
    context_level: float = 0.9  # share of data in a remembered frame
    changed_weight: float = 0.0  # extra weight of tokens that differ from the frame before
    images: float = 0.0  # share of rows whose frames stand alone, so that a first frame can be dreamed (Dreamer 4: 0.3)
    short: int = 0  # other rows are cut into clips of so many frames, as if a batch were short; 0: none is
    whole: float = 0.1  # share of rows that are not cut, where others are (open-dreamer; the paper: "occasionally")
    passes: int = 8  # K
    temperature: float = 1.0  # the noise a dream begins from, as a share of that in training

    def fitted(self, tokenizer: Any, actions: ActionSpace) -> "DiffusionConfig":
        """Return this config for a tokenizer's vectors and a space of actions."""
        return dataclasses.replace(self, width=tokenizer.width, grid=tokenizer.grid, actions=actions)

    def make(self, rngs: nnx.Rngs) -> "Diffusion":
        """Return the module."""
        return Diffusion(self, rngs=rngs)


class Remembered(NamedTuple):
    """The transformer's ring, and the last finished frame as it was remembered."""

    ring: Memory
    last_BNL: Array


class Diffusion(nnx.Module):
    """A space-time transformer over noisy latents, their level and the actions."""

    labels = 1  # how many numbers the network is told of a frame's noise

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
        """Squared error of every frame but the first, told from a noisy one of random level, weighted by ``ramp``."""
        level, data, target = self._predict(latents_BTNL, actions_BT, keys_B)
        error = jnp.mean(jnp.square(data - target), axis=-1)
        metrics = self._told(error, latents_BTNL)
        if self.config.predict == "v":  # the error of the flow: that of the data, larger the less noise there is
            error = error / jnp.square(jnp.maximum(1 - level, 0.05))[..., None]
        return Loss((self._weighted(error, level, latents_BTNL),), metrics)

    def report(self, latents_BTNL: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Squared error from noise alone, and that of tokens which changed."""
        _, data, target = self._predict(latents_BTNL, actions_BT, row_keys(key, len(latents_BTNL)), level=0.0)
        found = self._told(jnp.mean(jnp.square(data - target), axis=-1), latents_BTNL)
        return {name: each.value for name, each in found.items()}

    def _told(self, error_BTN, latents_BTNL):
        return {"error": mean(error_BTN), "error_changed": mean(error_BTN, self._moved(latents_BTNL))}

    def _weighted(self, error_BTN, level_BT, latents_BTNL):
        """The mean error, by level and by what changed."""
        weights = 1 + jnp.float32(self.config.changed_weight) * self._moved(latents_BTNL)
        return mean(error_BTN, ramp(level_BT)[..., None] * weights)

    def _moved(self, latents_BTNL):
        step = jnp.mean(jnp.square(latents_BTNL[:, 1:] - latents_BTNL[:, :-1]), axis=-1)
        return (step > CHANGED**2).astype(jnp.float32)

    def _predict(self, latents_BTNL, actions_BT, keys_B, level: float | None = None):
        """Return levels (B, T-1), predicted and true latents (B, T-1, N, L) of frames 1..T-1."""
        keys_level, keys_noise, keys_past, keys_cut = split_keys(keys_B, 4)
        target = latents_BTNL[:, 1:]
        levels = draw_rows(jax.random.uniform, keys_level, target.shape[1:2])
        levels = levels if level is None else jnp.full_like(levels, level)
        draft = noised(target, draw_rows(jax.random.normal, keys_noise, target.shape[1:]), levels[..., None, None])
        begins = None if level is not None else self._begins(keys_cut, latents_BTNL.shape[1])
        denoise = self._denoiser(latents_BTNL, actions_BT, keys_past, begins)
        return levels, denoise(draft, levels), target

    def _begins(self, keys_B, length: int):
        """Where clips begin, (B, T): at every frame of some rows, ever so often in others; None: only at the first.

        A row cut into pieces costs what a whole one does, in one compiled program.
        """
        c, at = self.config, np.arange(length)
        if not (c.images or c.short):
            return None
        single, cut = draw_rows(jax.random.uniform, keys_B, (2,)).T
        short = cut >= jnp.float32(c.whole if c.short else 1.0)
        kind = jnp.where(single < jnp.float32(c.images), 2, short.astype(jnp.int32))
        return jnp.asarray(np.stack([at == 0, at % (c.short or length) == 0, at >= 0]))[kind]

    def _denoiser(self, latents_BTNL, actions_BT, keys_B, begins_BT=None, rows: int | None = None):
        """Return a function from drafts (B, T-1, N, L) of frames 1..T-1, at levels (B, T-1), to the data they show.

        A third argument goes to ``_label``; ``rows``: only of so many first ones. ``keys_B`` noise the past, once.
        """
        length = latents_BTNL.shape[1]
        actions_BT = from_start(actions_BT, self.config.actions, begins_BT)
        kept = jnp.float32(self.config.context_level)
        past = noised(latents_BTNL, draw_rows(jax.random.normal, keys_B, latents_BTNL.shape[1:]), kept)
        past, latents_BTNL, actions_BT = past[:rows], latents_BTNL[:rows], actions_BT[:rows]
        label = self._label(jnp.full(latents_BTNL.shape[:2], kept))
        begins_BT = None if begins_BT is None else begins_BT[:rows]
        clips = None if begins_BT is None else jnp.cumsum(begins_BT, axis=1)

        def before(frames):
            shifted = earlier(frames, 0)[:, :-1]
            return shifted if begins_BT is None else jnp.where(begins_BT[..., None, None], 0.0, shifted)

        def clean(draft, levels, *told):
            shifted = before(past)
            done = self._embed(past[:, :-1], label[:, :-1], actions_BT[:, :-1], shifted[:, :-1])
            drafts = self._embed(draft, self._label(levels, *told), actions_BT[:, 1:], shifted[:, 1:])
            x = jnp.concatenate([done, drafts], axis=1)
            own = None if clips is None else jnp.concatenate([clips[:, :-1], clips[:, 1:]], axis=1)
            times = Times(length - 1, tuple(range(1, length)))
            y = self.transformer(x, times=times, clips_BT=own)[:, length - 1 :]
            return self._data(y, draft, levels[..., None, None])

        def forcing(draft, levels, *told):
            seen = jnp.concatenate([past[:, :1], draft], axis=1)
            labels = jnp.concatenate([label[:, :1], self._label(levels, *told)], axis=1)
            y = self.transformer(self._embed(seen, labels, actions_BT, before(seen)), clips_BT=clips)[:, 1:]
            return self._data(y, draft, levels[..., None, None])

        return clean if self.config.context == "clean" else forcing

    # -- one frame at a time -----------------------------------------------------------------------------------------

    def empty(self, batch: int) -> Remembered:
        """Return the memory with which a world begins."""
        return Remembered(self.transformer.empty(batch), jnp.zeros((batch, self.tokens, self.config.width)))

    def observe(self, memory: Remembered, latents_BNL: Array, actions_B: Array) -> tuple[Remembered, Array]:
        """Take in a finished frame and the action that led to it; returns features (B, N, M) too."""
        past = self._remembered(latents_BNL, memory.ring.time)
        h, fresh = self._step(memory, past, self._label(jnp.float32(self.config.context_level)), actions_B)
        return Remembered(remember(memory.ring, fresh), past), h

    def imagine(
        self, memory: Remembered, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[Remembered, Array, Array]:
        """Dream the frame ``actions_B`` leads to: (memory with it taken in, latents (B, N, L), features (B, N, M))."""

        def predict(point, level):
            label = self._label(level, 1 / self.config.passes)
            return self._data(self._step(memory, point, label, actions_B)[0], point, level)

        latents = denoise(predict, self._noise(key, len(actions_B), temperature), self.config.passes)
        memory, h = self.observe(memory, latents, actions_B)
        return memory, latents, h

    def imagine_uncached(
        self, latents_BTNL: Array, actions_BT: Array, key: Array, temperature: float | Array | None = None
    ) -> Array:
        """``imagine`` by running the whole past in every pass: latents (B, T, N, L), actions (B, T+1) -> (B, N, L).

        For tests and benchmarks: it must dream the same frame, and shows what memory saves.
        """
        batch, length = latents_BTNL.shape[:2]
        past = jnp.stack([self._remembered(latents_BTNL[:, t], jnp.uint32(t)) for t in range(length)], axis=1)
        before = earlier(past, 0)

        def predict(point, level):
            x = jnp.concatenate([past, point[:, None]], axis=1)
            labels = self._label(jnp.full((batch, length), self.config.context_level))
            now = jnp.broadcast_to(self._label(level, 1 / self.config.passes), (batch, 1, labels.shape[-1]))
            x = self._embed(x, jnp.concatenate([labels, now], axis=1), actions_BT, before)
            y = self.transformer(x)[:, -1]
            return self._data(y, point, level)

        return denoise(predict, self._noise(key, batch, temperature), self.config.passes)

    # -- latents in, latents out -------------------------------------------------------------------------------------

    def _noise(self, key, batch: int, temperature):
        heat = jnp.asarray(self.temperature if temperature is None else temperature, jnp.float32)
        return heat * jax.random.normal(key, (batch, self.tokens, self.config.width))

    def _remembered(self, latents_BNL, time):
        """A finished frame with the noise of its time: the same whenever it is asked for, and in every row."""
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), time), latents_BNL.shape[1:])
        return noised(latents_BNL, noise[None], jnp.float32(self.config.context_level))

    def _step(self, memory, point_BNL, label, actions_B):
        labels = jnp.broadcast_to(label, (len(point_BNL), 1, label.shape[-1]))
        x = self._embed(point_BNL[:, None], labels, actions_B[:, None], memory.last_BNL[:, None])[:, 0]
        h, fresh = self.transformer.step(x, memory.ring)
        return h[:, : self.tokens], fresh

    def _label(self, level: Array, size: Array | float = 0.0) -> Array:
        """What the network is told of the noise in a frame, (..., 1): its level; not how far the sampler steps."""
        return level[..., None]

    def _embed(self, x_BTNL, labels_BTS, actions, before_BTNL):
        x = self.embed(x_BTNL)
        if self.before is not None:
            x = x + self.before(before_BTNL)
        told = self.level(labels_BTS), self.actions(actions)
        if self.prepend:
            return jnp.concatenate([x, jnp.stack(told, axis=2)], axis=2)
        return x + (told[0] + told[1])[:, :, None]

    def _data(self, features, point, level):
        """What the network takes the clean latents to be."""
        out = self.head(features[..., : self.tokens, :]).astype(jnp.float32)
        return out if self.config.predict == "x" else data_of(out, point, level)
