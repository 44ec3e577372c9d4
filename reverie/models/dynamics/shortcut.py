"""Shortcut forcing: diffusion told how far it steps, which so learns to step far (Dreamer 4, arXiv 2509.24527, 3.2).

A step of size d must lead where two steps of half the size lead; the smallest step is taught by the data (shortcut
models, arXiv 2410.12557, with a level of noise of its own for every frame). Four steps then make a frame.

What the paper leaves open is a field here, with who chose what: the number of levels, the share of steps whose targets
are the network's own half steps, whether drafts read finished frames (4ku's clean context, our default) or noisy ones
(the paper). Level and size are one embedding, added to every token of a frame or a token of its own (``conditioning``).

Shapes: B batch, T time, N tokens per frame, L latent width.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.models.dynamics.diffusion import Diffusion, DiffusionConfig
from reverie.nn.batch import Loss, draw_rows, mean, split_keys
from reverie.nn.flow import noised
from reverie.nn.running import Statistics
from reverie.nn.step import step_key


@dataclass(frozen=True, kw_only=True)
class ShortcutConfig(DiffusionConfig):
    """Dynamics over a grid of vectors; the fields of diffusion dynamics, and the grid of levels and sizes."""

    levels: int = 64  # K_max, a power of two: the smallest step is 1 / levels (lucidrains, V; others 8 or 256)
    bootstrap: float = 0.25  # share of steps whose targets are own half steps (open-dreamer; of rows: E, N, 4ku)
    steepest: float = 4.0  # bound of a half step's velocity (open-dreamer)
    teacher: float = 0.0  # half steps are those of an average of the weights, of this decay (open-dreamer); 0: as paper
    passes: int = 4  # K
    predict: Literal["x"] = "x"  # half steps are taught as clean frames; a flow's error would be another weighting

    def make(self, rngs: nnx.Rngs) -> "Shortcut":
        """Return the module; ValueError where passes or levels are no power of two, or a field has no meaning here."""
        if self.levels & (self.levels - 1) or self.passes & (self.passes - 1) or self.passes > self.levels:
            raise ValueError(f"{self.passes} passes and {self.levels} levels must be powers of two, passes the fewer")
        if self.predict != "x":
            raise ValueError(f"shortcut forcing predicts clean frames: predict is 'x', not '{self.predict}'")
        if not 0 <= self.bootstrap < 1:
            raise ValueError(f"bootstrap is a share of the steps, 0 or more and below 1, not {self.bootstrap}")
        return Shortcut(self, rngs=rngs)


class Shortcut(Diffusion):
    """Diffusion dynamics with a second label, the size of the step."""

    labels = 2
    config: ShortcutConfig

    def __init__(self, config: ShortcutConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        weights = nnx.to_flat_state(nnx.state(self, nnx.Param)) if config.teacher else []
        self.taught = nnx.Dict({".".join(map(str, path)): Statistics(weight[...] + 0) for path, weight in weights})

    def loss(self, latents_BTNL: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Squared error of clean latents: true ones for the smallest size; in a share of steps, for larger ones, those
        of two half steps.

        By steps and not by rows: so small batches get their share, and parts and devices do the same work.
        """
        keys_size, keys_level, keys_noise, keys_past, keys_cut = split_keys(keys_B, 5)
        truth = latents_BTNL[:, 1:]
        own = self._own(keys_B[0])
        size, level = self.draw(own, keys_size, keys_level, truth.shape[1])
        draft = noised(truth, draw_rows(jax.random.normal, keys_noise, truth.shape[1:]), level[..., None, None])
        begins = self._begins(keys_cut, latents_BTNL.shape[1])
        data = self._denoiser(latents_BTNL, actions_BT, keys_past, begins)(draft, level, size)
        # Nothing of a target is trained. With inputs that are, the backward pass would keep all they passed through.
        clip = jax.lax.stop_gradient((latents_BTNL, actions_BT))
        teach = self._teacher()._denoiser(*clip, keys_past, begins)

        def half_steps() -> Array:
            return two_half_steps(teach, draft, level, size, self.config.steepest)

        with jax.named_scope(f"share={self._share}"):  # read by training/flops.py
            target = jax.lax.stop_gradient(jax.lax.cond(own, half_steps, lambda: truth) if self._share else truth)
        error = jnp.mean(jnp.square(data - target), axis=-1)
        metrics = {"error": mean(error), "bootstrap": mean(own.astype(jnp.float32))}
        return Loss((self._weighted(error, level, latents_BTNL),), metrics, () if self.config.teacher else None)

    def settle(self, note: tuple[()], key: Array, progress: Array) -> None:
        """Keep the average of the weights that taught this step."""
        for name, average in self._averages().items():
            self.taught[name][...] = average

    def draw(self, own: Array, keys_size: Array, keys_level: Array, frames: int) -> tuple[Array, Array]:
        """Return sizes and levels (B, T-1): the smallest size where the data teaches, all others in a step of ``own``.

        A level is a multiple of its size, below 1: from there one step of that size does not go too far.
        """
        finest = self.config.levels.bit_length() - 1
        power = draw_rows(jax.random.randint, keys_size, (frames,), 0, max(finest, 1))
        power = jnp.where(own, power, finest)  # size = 2 ** -power
        size = jnp.exp2(-power.astype(jnp.float32))
        return size, jnp.floor(draw_rows(jax.random.uniform, keys_level, (frames,)) / size) * size

    def _teacher(self) -> "Shortcut":
        """Return the network whose half steps are targets: an average of the weights, brought up to date, or itself."""
        graph, weights, rest = nnx.split(self, nnx.Param, ...)
        if not self.config.teacher:
            return nnx.merge(graph, jax.lax.stop_gradient(weights), rest)
        averages = self._averages()
        slow = [(path, w.replace(averages[".".join(map(str, path))])) for path, w in nnx.to_flat_state(weights)]
        return nnx.merge(graph, nnx.from_flat_state(slow), rest)

    def _averages(self) -> dict[str, Array]:
        """The average of every weight with its value now, by its name; it has no gradient."""
        decay, weights = jnp.float32(self.config.teacher), nnx.to_flat_state(nnx.state(self, nnx.Param))
        now = {".".join(map(str, path)): jax.lax.stop_gradient(weight[...]) for path, weight in weights}
        return {name: decay * self.taught[name][...] + (1 - decay) * weight for name, weight in now.items()}

    @property
    def _share(self) -> float:
        return self.config.bootstrap if self.config.levels > 1 else 0.0

    def _own(self, key: Array) -> Array:
        """Whether this step is one of the share that the network teaches itself: one answer for all its rows."""
        return jax.random.uniform(jax.random.fold_in(step_key(key), 2)) < jnp.float32(self._share)

    def _label(self, level: Array, size: Array | float | None = None) -> Array:
        """The level, and the size from 0 (the smallest) to 1 (all at once)."""
        finest = np.float32(max(np.log2(self.config.levels), 1))
        smallest = 1 / self.config.levels
        size = jnp.full_like(level, smallest) if size is None else jnp.broadcast_to(jnp.float32(size), level.shape)
        return jnp.stack([level, 1 + jnp.log2(size) / finest], axis=-1)


def two_half_steps(denoise, draft: Array, level: Array, size: Array, steepest: float) -> Array:
    """Return the data (B, T, N, L) to which two half steps lead on: a target without division by 1 - level."""

    def velocity(point, level):
        rest = jnp.maximum(1 - level, 1e-6)[..., None, None]
        return jnp.clip((denoise(point, level, size / 2) - point) / rest, -steepest, steepest)

    first = velocity(draft, level)
    half = draft + first * (size / 2)[..., None, None]
    second = velocity(half, level + size / 2)
    return draft + (1 - level)[..., None, None] * (first + second) / 2
