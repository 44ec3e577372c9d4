"""Latent actions over pixels: what happened between two frames, as one of a few codes (Genie, arXiv 2402.15391, 2.1).

The encoder reads frames up to t+1 and says which code leads from t to t+1; the decoder sees frames up to t and that
code, and must paint frame t+1. So the code has to carry what the past does not tell: the action.

Where we differ: the decoder begins as a copy of the last frame and the error counts what moved (``motion_weight``),
since otherwise painting the scenery is worth more than knowing the action; the encoder is shown changes, not frames;
idle codes are restarted. In minutes on a CPU it finds no actions; ``tokens`` does.

Shapes: B batch, T time, H W C image, N patches per frame, M model width, V codes.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.actions import START
from reverie.nn.batch import Loss, decibels, mean
from reverie.nn.linear import Linear
from reverie.nn.patch import grid, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.quantise import VQConfig, usage
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig

SHARPNESS = 10.0  # of the softmax over cosine similarities


@dataclass(frozen=True, kw_only=True)
class PixelLAMConfig:
    """A latent action model over frames (H, W, C)."""

    frame: tuple[int, int, int] = (64, 64, 3)
    patch: int = 16
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    quantiser: VQConfig = field(default_factory=lambda: VQConfig(codes=6, width=32))
    motion_weight: float = 10.0

    def fitted(self, frame: tuple[int, int, int], tokenizer: Any) -> "PixelLAMConfig":
        """Return this config for frames (H, W, C)."""
        return dataclasses.replace(self, frame=frame)

    def make(self, rngs: nnx.Rngs) -> "PixelLAM":
        """Return the module."""
        return PixelLAM(self, rngs=rngs)


class PixelLAM(nnx.Module):
    """Encoder and decoder around a codebook of actions; after training only the encoder is used."""

    def __init__(self, config: PixelLAMConfig, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        pixels = config.patch**2 * channels
        self.grid = grid(height, width, config.patch)
        self.codes, self.lookback = config.quantiser.codes, 1 + config.encoder.lookback
        self.patches = Linear(pixels, config.encoder.width, rngs=rngs)
        self.encoder = SpaceTimeTransformer(config.encoder, self.grid, extra=1, rngs=rngs)
        self.to_code = Linear(config.encoder.width, config.quantiser.width, rngs=rngs)
        self.quantiser = config.quantiser.make(rngs)
        self.past = Linear(pixels, config.decoder.width, rngs=rngs)
        self.action = Linear(config.quantiser.width, config.decoder.width, rngs=rngs)
        self.decoder = SpaceTimeTransformer(config.decoder, self.grid, rngs=rngs)
        self.pixels = Linear(config.decoder.width, pixels, rngs=rngs)
        self.moved = Linear(config.decoder.width, pixels, bias_init=nnx.initializers.constant(-3.0), rngs=rngs)

    def see(self, frames_BTHWC: Array) -> Array:
        """The loss reads frames as they are."""
        return frames_BTHWC

    def infer(self, frames_BTHWC: Array) -> Array:
        """Frames (B, T, H, W, C) -> codes (B, T): the action that led to each frame, START for the first."""
        codes = self.quantiser(self._happened(frames_BTHWC)).codes
        return jnp.pad(codes, ((0, 0), (1, 0)), constant_values=START)

    def relaxed(self, frames_BTHWC: Array, keys_B: Array) -> tuple[Array, Loss]:
        """Return one-hot codes (B, T, V) through which gradients reach encoder, and the model's own loss.

        For training together with the dynamics: forward the codes are hard, backward they are a softmax over cosine
        similarities; the model's own loss keeps training decoder and codebook.
        """
        scores = self.quantiser(self._happened(frames_BTHWC)).scores
        soft = jax.nn.softmax(scores * SHARPNESS, axis=-1)
        hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), self.codes, dtype=jnp.float32)
        weights = soft + jax.lax.stop_gradient(hard - soft)
        return jnp.pad(weights, ((0, 0), (1, 0), (0, 0))), self.loss(frames_BTHWC, keys_B)

    def loss(self, frames_BTHWC: Array, keys_B: Array, progress: Array | float = 0.0) -> Loss:
        """Weighted squared error of the frames predicted from the past and the code, plus the quantiser's own loss."""
        happened = self._happened(frames_BTHWC)
        q = self.quantiser(happened)
        error = jnp.square(self._paint(frames_BTHWC, q.vectors) - unit_range(frames_BTHWC[:, 1:]))
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)[:, 1:]
        own = mean(q.misfit)
        metrics = {"psnr": mean(error, then=decibels), "quantiser": own}
        metrics |= {f"code_{name}": value for name, value in usage(q.codes, self.codes).items()}
        return Loss((mean(error, weights), own), metrics, {"quantiser": self.quantiser.note(happened, q.codes)})

    def predict(self, frames_BTHWC: Array) -> Array:
        """Frames 1..T-1 as painted from those before and the inferred codes, float32 in 0..1."""
        return self._paint(frames_BTHWC, self.quantiser(self._happened(frames_BTHWC)).vectors)

    def _happened(self, frames_BTHWC):
        """What the encoder makes of each step, (B, T-1, L)."""
        # The encoder sees what changed and nothing else. Shown the frames themselves, its few codes name the scene
        # (measured: one code per colour theme, none for actions), which the decoder knows from the past anyway.
        frames = to_float(frames_BTHWC)
        change = jnp.pad(frames[:, 1:] - frames[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
        x = self.patches(patchify(change, self.config.patch))
        x = self.encoder(jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))))  # the extra slot has its own learned embedding
        return self.to_code(x[:, 1:, -1])

    def _paint(self, frames_BTHWC, vectors_BTL):
        """Frames 1..T-1, float32 in 0..1, from those before and a code's vector for each step."""
        height, width, _ = self.config.frame
        past = patchify(to_float(frames_BTHWC[:, :-1]), self.config.patch)
        x = self.decoder(self.past(past) + self.action(vectors_BTL)[:, :, None])
        # It begins as a copy of the frame before, so that all there is to learn is what moves, and whither.
        past = past * 0.5 + 0.5
        painted = past + jax.nn.sigmoid(self.moved(x)) * (jax.nn.sigmoid(self.pixels(x)) - past)
        return unpatchify(painted, height, width, self.config.patch)
