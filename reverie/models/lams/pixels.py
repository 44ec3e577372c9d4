"""Latent actions over pixels: the transition between two frames as one of a few codes (Genie, arXiv 2402.15391, 2.1).

The encoder reads frames up to t+1 and infers the code that leads from t to t+1. The decoder reads frames up to t and
that code, and predicts frame t+1. So the code has to encode what the past does not determine: the action.

Where we differ: the decoder starts as a copy of the last frame, and the error has a higher weight where pixels moved
(``motion_weight``); otherwise the scenery matters more than the action. The encoder's input is the change between
frames, not frames. Idle codes are restarted. In minutes on a CPU this model finds no actions; ``tokens`` does.

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
from reverie.config import FROM_DATA
from reverie.nn.batch import Loss, decibels, mean
from reverie.nn.linear import Linear
from reverie.nn.patch import grid, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.quantise import VQConfig, usage
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig

SHARPNESS = 10.0  # of the softmax over cosine similarities


@dataclass(frozen=True, kw_only=True)
class PixelLAMConfig:
    """A latent action model over frames (H, W, C)."""

    frame: tuple[int, int, int] = field(default=(64, 64, 3), metadata=FROM_DATA)
    patch: int = 16  # pixels of a patch's side
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    quantiser: VQConfig = field(default_factory=lambda: VQConfig(codes=6, width=32))
    motion_weight: float = 10.0  # extra weight of pixels that differ from the previous frame

    def fitted(self, frame: tuple[int, int, int], tokenizer: Any) -> "PixelLAMConfig":
        """Return this config for frames (H, W, C)."""
        return dataclasses.replace(self, frame=frame)

    def make(self, rngs: nnx.Rngs) -> "PixelLAM":
        """Return the module."""
        return PixelLAM(self, rngs=rngs)


class PixelLAM(nnx.Module):
    """Encoder and decoder with a codebook of actions between them; after training only the encoder is used."""

    def __init__(self, config: PixelLAMConfig, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        pixels = config.patch**2 * channels
        self.grid = grid(height, width, config.patch)
        self.codes, self.receptive_field = config.quantiser.codes, 1 + config.encoder.receptive_field
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
        """The frames themselves."""
        return frames_BTHWC

    def infer(self, frames_BTHWC: Array) -> Array:
        """Frames (B, T, H, W, C) -> codes (B, T): the action that led to each frame, START for the first."""
        codes = self.quantiser(self._transitions(frames_BTHWC)).codes
        return jnp.pad(codes, ((0, 0), (1, 0)), constant_values=START)

    def relaxed(self, frames_BTHWC: Array, keys_B: Array) -> tuple[Array, Loss]:
        """Return one-hot codes (B, T, V) with a gradient to the encoder, and the model's own loss.

        For training together with the dynamics (straight-through): codes are one-hot in the forward pass and a softmax
        over cosine similarities in the backward pass. The model's own loss keeps training decoder and codebook.
        """
        scores = self.quantiser(self._transitions(frames_BTHWC)).scores
        soft = jax.nn.softmax(scores * SHARPNESS, axis=-1)
        hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), self.codes, dtype=jnp.float32)
        weights = soft + jax.lax.stop_gradient(hard - soft)
        return jnp.pad(weights, ((0, 0), (1, 0), (0, 0))), self.loss(frames_BTHWC, keys_B)

    def loss(self, frames_BTHWC: Array, keys_B: Array, progress: Array | float = 0.0) -> Loss:
        """Weighted squared error of the frames predicted from the past and the code, plus the quantiser's own loss."""
        transitions = self._transitions(frames_BTHWC)
        q = self.quantiser(transitions)
        error = jnp.square(self._predict(frames_BTHWC, q.vectors) - unit_range(frames_BTHWC[:, 1:]))
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)[:, 1:]
        own = mean(q.misfit)
        metrics = {"psnr": mean(error, then=decibels), "quantiser": own}
        metrics |= {f"code_{name}": value for name, value in usage(q.codes, self.codes).items()}
        return Loss((mean(error, weights), own), metrics, {"quantiser": self.quantiser.note(transitions, q.codes)})

    def predict(self, frames_BTHWC: Array) -> Array:
        """Frames 1..T-1 as predicted from those before and the inferred codes, float32 in 0..1."""
        return self._predict(frames_BTHWC, self.quantiser(self._transitions(frames_BTHWC)).vectors)

    def _transitions(self, frames_BTHWC):
        """The encoder's vector for each transition, (B, T-1, L)."""
        # The encoder's input is the change alone. With the frames themselves, its few codes encode the scene (measured:
        # one code per colour theme, none for actions), which the decoder knows from the past anyway.
        frames = to_float(frames_BTHWC)
        change = jnp.pad(frames[:, 1:] - frames[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
        x = self.patches(patchify(change, self.config.patch))
        x = self.encoder(jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))))  # the extra token has its own position embedding
        return self.to_code(x[:, 1:, -1])

    def _predict(self, frames_BTHWC, vectors_BTL):
        """Frames 1..T-1, float32 in 0..1, from those before and a code's vector for each step."""
        height, width, _ = self.config.frame
        past = patchify(to_float(frames_BTHWC[:, :-1]), self.config.patch)
        x = self.decoder(self.past(past) + self.action(vectors_BTL)[:, :, None])
        # It starts as a copy of the previous frame, so that it learns only what moves, and where to.
        past = past * 0.5 + 0.5
        predicted = past + jax.nn.sigmoid(self.moved(x)) * (jax.nn.sigmoid(self.pixels(x)) - past)
        return unpatchify(predicted, height, width, self.config.patch)
