"""Latent action model: what happened between two frames, as one of a few codes (Genie, arXiv 2402.15391, section 2.1).

The encoder reads frames up to t+1 and says which code leads from t to t+1; the decoder sees frames up to t and that
code, and must paint frame t+1. So the code has to carry what the past does not tell: the action.

Where we differ: the error counts what moved (``motion_weight``), since otherwise painting the scenery is worth more than
knowing the action and codes collapse; and codes nothing chooses are restarted (see nn/quantise.py).

Shapes: B batch, T time, H W C image, N patches per frame, M model width, V codes.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.actions import START
from reverie.nn.patch import grid, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.quantise import Quantised, VQConfig, usage
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig


@dataclass(frozen=True)
class LAMConfig:
    """A latent action model over frames (H, W, C)."""

    frame: tuple[int, int, int] = (64, 64, 3)
    patch: int = 16
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    quantiser: VQConfig = field(default_factory=lambda: VQConfig(codes=6, width=32))
    motion_weight: float = 10.0

    def make(self, rngs: nnx.Rngs) -> "LatentActionModel":
        """Return the module."""
        return LatentActionModel(self, rngs=rngs)


class LatentActionModel(nnx.Module):
    """Encoder and decoder around a codebook of actions; after training only the encoder is used."""

    def __init__(self, config: LAMConfig, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        pixels = config.patch**2 * channels
        self.grid = grid(height, width, config.patch)
        self.codes = config.quantiser.codes
        self.patches = nnx.Linear(pixels, config.encoder.width, rngs=rngs)
        self.encoder = SpaceTimeTransformer(config.encoder, self.grid, extra=1, rngs=rngs)
        self.to_code = nnx.Linear(config.encoder.width, config.quantiser.width, rngs=rngs)
        self.quantiser = config.quantiser.make(rngs)
        self.past = nnx.Linear(pixels, config.decoder.width, rngs=rngs)
        self.action = nnx.Linear(config.quantiser.width, config.decoder.width, rngs=rngs)
        self.decoder = SpaceTimeTransformer(config.decoder, self.grid, extra=1, rngs=rngs)
        self.pixels = nnx.Linear(config.decoder.width, pixels, rngs=rngs)

    def infer(self, frames_BTHWC: Array) -> Array:
        """Frames (B, T, H, W, C) -> codes (B, T): the action that led to each frame, START for the first."""
        return self._codes(self._quantise(frames_BTHWC))

    def relaxed(self, frames_BTHWC: Array, key: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Return one-hot codes (B, T, V) through which gradients reach encoder, the model's own loss, and metrics.

        For training together with the dynamics: forward the codes are hard, backward they are a softmax over cosine
        similarities; the model's own loss keeps training decoder and codebook.
        """
        q = self._quantise(frames_BTHWC, key)
        loss, metrics = self._loss(frames_BTHWC, q)
        soft = jax.nn.softmax(q.similarity * 10, axis=-1)
        hard = jax.nn.one_hot(q.codes, self.codes, dtype=jnp.float32)
        weights = soft + jax.lax.stop_gradient(hard - soft)
        return jnp.pad(weights, ((0, 0), (1, 0), (0, 0))), loss, metrics

    def loss(self, frames_BTHWC: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        """Weighted squared error of the frames predicted from the past and the code, plus the quantiser's own loss."""
        return self._loss(frames_BTHWC, self._quantise(frames_BTHWC, key))

    def predict(self, frames_BTHWC: Array) -> Array:
        """Frames 1..T-1 as painted from those before and the inferred codes, float32 in 0..1."""
        return self._paint(frames_BTHWC, self._quantise(frames_BTHWC))

    def _loss(self, frames_BTHWC, q: Quantised):
        error = jnp.square(self._paint(frames_BTHWC, q) - unit_range(frames_BTHWC[:, 1:]))
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)[:, 1:]
        metrics = {"psnr": -10 * jnp.log10(jnp.mean(error) + 1e-10), "quantiser": q.loss}
        metrics |= {f"code_{name}": value for name, value in usage(q.codes, self.codes).items()}
        return jnp.mean(error * weights) + q.loss, metrics

    def _quantise(self, frames_BTHWC, key=None) -> Quantised:
        x = self.patches(patchify(to_float(frames_BTHWC), self.config.patch))
        x = self.encoder(jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))))  # the extra slot has its own learned embedding
        return self.quantiser(self.to_code(x[:, 1:, -1]), key)

    def _codes(self, q: Quantised):
        return jnp.pad(q.codes, ((0, 0), (1, 0)), constant_values=START)

    def _paint(self, frames_BTHWC, q: Quantised):
        height, width, _ = self.config.frame
        past = self.past(patchify(to_float(frames_BTHWC[:, :-1]), self.config.patch))
        x = jnp.concatenate([past, self.action(q.vectors)[:, :, None].astype(past.dtype)], axis=2)
        x = self.decoder(x)[:, :, :-1]
        return jax.nn.sigmoid(unpatchify(self.pixels(x), height, width, self.config.patch))
