"""Shortcut forcing: diffusion conditioned on its step size, so that few large steps suffice.

Source: Dreamer 4 (arXiv 2509.24527, section 3.2). A step of size d must lead where two steps of half the size lead
(self-consistency). The smallest step is learned from data (shortcut models, arXiv 2410.12557; here every frame has a
noise level of its own). Four steps then generate a frame.

What the paper leaves open is a field here, with choices of others: the number of levels, the share of training steps
with self-consistency targets, and whether these come from an EMA teacher. Drafts read finished frames (4ku's clean
context, our default) or noisy ones (the paper). Level and size are one embedding, added to every token of
a frame or a token of its own (``conditioning``).

Shapes: B batch, T time, N tokens per frame, L latent width.
"""

import functools
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
    """Dynamics over a grid of vectors: the fields of diffusion dynamics, and the grid of levels and step sizes."""

    # Where the levels come from: 64 from lucidrains and V; others have 8 or 256.
    levels: int = 64  # noise levels, a power of two: the smallest step is 1 / levels (K_max)
    bootstrap: float = 0.25  # share of training steps with self-consistency targets (open-dreamer; of rows: E, N, 4ku)
    velocity_clip: float = 4.0  # velocity clip of the half steps (open-dreamer)
    ema_teacher: float = 0.0  # decay of an EMA teacher for the half steps (open-dreamer); 0: the network itself (paper)
    passes: int = 4  # sampling steps per frame, a power of two (K)
    predict: Literal["x"] = (
        "x"  # what the network predicts: clean frames; a velocity's error would be weighted otherwise
    )

    def make(self, rngs: nnx.Rngs) -> "Shortcut":
        """Return the module; ValueError if passes or levels are no power of two, or a field has no meaning here."""
        if self.levels & (self.levels - 1) or self.passes & (self.passes - 1) or self.passes > self.levels:
            raise ValueError(f"{self.passes} passes and {self.levels} levels must be powers of two, passes the fewer")
        if self.predict != "x":
            raise ValueError(f"shortcut forcing predicts clean frames: predict is 'x', not '{self.predict}'")
        if not 0 <= self.bootstrap < 1:
            raise ValueError(f"bootstrap is a share of the steps, 0 or more and below 1, not {self.bootstrap}")
        return Shortcut(self, rngs=rngs)


class Shortcut(Diffusion):
    """Diffusion dynamics conditioned on a second label, the step size."""

    labels = 2
    config: ShortcutConfig

    def __init__(self, config: ShortcutConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        weights = nnx.to_flat_state(nnx.state(self, nnx.Param)) if config.ema_teacher else []
        # The EMA teacher's weights, by name. (Checkpoints know them as ``taught``.)
        self.taught = nnx.Dict({".".join(map(str, path)): Statistics(weight[...] + 0) for path, weight in weights})

    def loss(self, latents_BTNL: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Squared error of clean latents. Targets are the data for the smallest step size, half steps for larger ones.

        A share of the training steps has larger sizes, not a share of the rows. So small batches get them too, and all
        parts and devices do equal work.
        """
        keys_size, keys_level, keys_noise, keys_context, keys_clips = split_keys(keys_B, 5)
        truth = latents_BTNL[:, 1:]
        bootstrap = self._is_bootstrap(keys_B[0])
        size, level = self.draw(bootstrap, keys_size, keys_level, truth.shape[1])
        drafts = noised(truth, draw_rows(jax.random.normal, keys_noise, truth.shape[1:]), level[..., None, None])
        begins = self._begins(keys_clips, latents_BTNL.shape[1])
        context = self._context(latents_BTNL, actions_BT, keys_context, begins)
        data = self._denoised(context, drafts, level, size)
        # No gradient flows to a target. If its inputs had one, the backward pass would keep their activations.
        clip = jax.lax.stop_gradient((latents_BTNL, actions_BT))
        teacher = self._teacher()
        teacher_context = teacher._context(*clip, keys_context, begins)

        def half_steps() -> Array:
            denoise = functools.partial(teacher._denoised, teacher_context)
            return two_half_steps(denoise, drafts, level, size, self.config.velocity_clip)

        with jax.named_scope(f"share={self._share}"):  # read by training/flops.py
            targets = jax.lax.cond(bootstrap, half_steps, lambda: truth) if self._share else truth
            target = jax.lax.stop_gradient(targets)
        error = jnp.mean(jnp.square(data - target), axis=-1)
        metrics = {"error": mean(error), "bootstrap": mean(bootstrap.astype(jnp.float32))}
        return Loss((self._weighted(error, level, latents_BTNL),), metrics, () if self.config.ema_teacher else None)

    def settle(self, note: tuple[()], key: Array, progress: Array) -> None:
        """Store the EMA teacher that was used in this step."""
        for name, average in self._averages().items():
            self.taught[name][...] = average

    def draw(self, bootstrap: Array, keys_size: Array, keys_level: Array, frames: int) -> tuple[Array, Array]:
        """Return step sizes and levels (B, T-1): the smallest size for targets from data, others in a bootstrap step.

        A level is a multiple of its size, below 1, so that one step of that size ends at 1 or before.
        """
        finest = self.config.levels.bit_length() - 1
        power = draw_rows(jax.random.randint, keys_size, (frames,), 0, max(finest, 1))
        power = jnp.where(bootstrap, power, finest)  # size = 2 ** -power
        size = jnp.exp2(-power.astype(jnp.float32))
        return size, jnp.floor(draw_rows(jax.random.uniform, keys_level, (frames,)) / size) * size

    def _teacher(self) -> "Shortcut":
        """Return the network whose half steps are targets: the updated EMA teacher, or the network itself."""
        graph, weights, rest = nnx.split(self, nnx.Param, ...)
        if not self.config.ema_teacher:
            return nnx.merge(graph, jax.lax.stop_gradient(weights), rest)
        averages = self._averages()
        slow = [(path, w.replace(averages[".".join(map(str, path))])) for path, w in nnx.to_flat_state(weights)]
        return nnx.merge(graph, nnx.from_flat_state(slow), rest)

    def _averages(self) -> dict[str, Array]:
        """The EMA of every weight, updated with its current value, by name; without gradient."""
        decay, weights = jnp.float32(self.config.ema_teacher), nnx.to_flat_state(nnx.state(self, nnx.Param))
        now = {".".join(map(str, path)): jax.lax.stop_gradient(weight[...]) for path, weight in weights}
        return {name: decay * self.taught[name][...] + (1 - decay) * weight for name, weight in now.items()}

    @property
    def _share(self) -> float:
        return self.config.bootstrap if self.config.levels > 1 else 0.0

    def _is_bootstrap(self, key: Array) -> Array:
        """Whether this training step has self-consistency targets: one draw for all its rows."""
        return jax.random.uniform(jax.random.fold_in(step_key(key), 2)) < jnp.float32(self._share)

    def _label(self, level: Array, size: Array | float | None = None) -> Array:
        """The noise level, and the step size on a log scale from 0 (the smallest) to 1 (one step for all)."""
        finest = np.float32(max(np.log2(self.config.levels), 1))
        smallest = 1 / self.config.levels
        size = jnp.full_like(level, smallest) if size is None else jnp.broadcast_to(jnp.float32(size), level.shape)
        return jnp.stack([level, 1 + jnp.log2(size) / finest], axis=-1)


def two_half_steps(denoise, drafts: Array, level: Array, size: Array, velocity_clip: float) -> Array:
    """Return the data (B, T, N, L) that two half steps point to: a target without division by 1 - level."""

    def velocity(point, level):
        rest = jnp.maximum(1 - level, 1e-6)[..., None, None]
        return jnp.clip((denoise(point, level, size / 2) - point) / rest, -velocity_clip, velocity_clip)

    first = velocity(drafts, level)
    half = drafts + first * (size / 2)[..., None, None]
    second = velocity(half, level + size / 2)
    return drafts + (1 - level)[..., None, None] * (first + second) / 2
