"""Latent action model: what happened between two frames, as one of a few codes (Genie, arXiv 2402.15391, section 2.1).

The encoder reads frames up to t+1 and says which code leads from t to t+1; the decoder sees frames up to t and that
code, and must paint frame t+1. So the code has to carry what the past does not tell: the action.

Where we differ: the decoder begins as a copy of the last frame and the error counts what moved (``motion_weight``),
since otherwise painting the scenery is worth more than knowing the action; the encoder is shown changes, not frames;
the code of a step is, in training, the one that explains it best (``assign``); idle codes are restarted.

Shapes: B batch, T time, H W C image, N patches per frame, M model width, V codes.
"""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.actions import START
from reverie.nn.patch import grid, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.quantise import VQConfig, usage
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig

SHARPNESS = 10.0  # of the softmax over cosine similarities


@dataclass(frozen=True)
class LAMConfig:
    """A latent action model over frames (H, W, C)."""

    frame: tuple[int, int, int] = (64, 64, 3)
    patch: int = 16
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    quantiser: VQConfig = field(default_factory=lambda: VQConfig(codes=6, width=32))
    motion_weight: float = 10.0
    assign: Literal["best", "nearest"] = "best"  # training's code of a step: which explains it best, or Genie's nearest

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
        self.decoder = SpaceTimeTransformer(config.decoder, self.grid, rngs=rngs)
        self.pixels = nnx.Linear(config.decoder.width, pixels, rngs=rngs)
        self.moved = nnx.Linear(config.decoder.width, pixels, bias_init=nnx.initializers.constant(-3.0), rngs=rngs)

    def infer(self, frames_BTHWC: Array) -> Array:
        """Frames (B, T, H, W, C) -> codes (B, T): the action that led to each frame, START for the first."""
        codes = self.quantiser(self._happened(frames_BTHWC)).codes
        return jnp.pad(codes, ((0, 0), (1, 0)), constant_values=START)

    def relaxed(self, frames_BTHWC: Array, key: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Return one-hot codes (B, T, V) through which gradients reach encoder, the model's own loss, and metrics.

        For training together with the dynamics: forward the codes are hard, backward they are a softmax over cosine
        similarities; the model's own loss keeps training decoder and codebook.
        """
        similarity = self.quantiser(self._happened(frames_BTHWC)).similarity
        soft = jax.nn.softmax(similarity * SHARPNESS, axis=-1)
        hard = jax.nn.one_hot(jnp.argmax(similarity, axis=-1), self.codes, dtype=jnp.float32)
        weights = soft + jax.lax.stop_gradient(hard - soft)
        loss, metrics = self.loss(frames_BTHWC, key)
        return jnp.pad(weights, ((0, 0), (1, 0), (0, 0))), loss, metrics

    def loss(self, frames_BTHWC: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        """Weighted squared error of the frames predicted from the past and the code, plus the quantiser's own loss.

        With ``assign="best"`` the code of a step is the one that explains it best: all are tried, the decoder learns
        to explain with the best and the encoder to name it. Left to themselves (``"nearest"``), encoder and decoder
        ignore each other for thousands of steps: codes name the scene, since the decoder has no use for them yet.
        """
        x = self._happened(frames_BTHWC)
        if self.config.assign == "best":
            codes = balanced_best(jax.lax.stop_gradient(self._errors(frames_BTHWC)))
            q = self.quantiser(x, key, codes)
            named = jax.nn.log_softmax(q.similarity * SHARPNESS)
            own = -jnp.mean(jnp.take_along_axis(named, codes[..., None], axis=-1)) * jnp.float32(0.1)
            vectors = self.quantiser.lookup(codes)
        else:
            q = self.quantiser(x, key)
            codes, own, vectors = q.codes, q.loss, q.vectors
        error = jnp.square(self._paint(frames_BTHWC, vectors) - unit_range(frames_BTHWC[:, 1:]))
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)[:, 1:]
        named_right = jnp.mean((jnp.argmax(q.similarity, axis=-1) == codes).astype(jnp.float32))
        metrics = {"psnr": -10 * jnp.log10(jnp.mean(error) + 1e-10), "quantiser": own, "named": named_right}
        metrics |= {f"code_{name}": value for name, value in usage(codes, self.codes).items()}
        return jnp.mean(error * weights) + own, metrics

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

    def _errors(self, frames_BTHWC):
        """How badly each code explains each step, (B, T-1, V)."""
        truth, weights = unit_range(frames_BTHWC[:, 1:]), motion_weights(frames_BTHWC, self.config.motion_weight)[:, 1:]

        def error(code):
            vectors = jnp.broadcast_to(self.quantiser.lookup(code), (*truth.shape[:2], self.quantiser.width))
            return jnp.mean(jnp.square(self._paint(frames_BTHWC, vectors) - truth) * weights, axis=(-3, -2, -1))

        return jnp.moveaxis(jax.lax.map(error, jnp.arange(self.codes)), 0, -1)

    def _paint(self, frames_BTHWC, vectors_BTL):
        """Frames 1..T-1, float32 in 0..1, from those before and a code's vector for each step."""
        height, width, _ = self.config.frame
        past = patchify(to_float(frames_BTHWC[:, :-1]), self.config.patch)
        x = self.decoder(self.past(past) + self.action(vectors_BTL)[:, :, None])
        # It begins as a copy of the frame before, so that all there is to learn is what moves, and whither.
        past = past * 0.5 + 0.5
        painted = past + jax.nn.sigmoid(self.moved(x)) * (jax.nn.sigmoid(self.pixels(x)) - past)
        return unpatchify(painted, height, width, self.config.patch)


def balanced_best(errors: Array, rounds: int = 4, damping: float = 0.7) -> Array:
    """Return for each step the code with the least error (..., V) -> (...), int32, prices making crowded codes dearer.

    Prices are those of optimal transport (Sinkhorn's rounds, as in SwAV, arXiv 2006.09882), damped, so that no code
    starves and none is forced on steps it does not explain.
    """
    flat = errors.reshape(-1, errors.shape[-1])
    best = flat.min(axis=-1, keepdims=True)
    scores = -(flat - best) / (jnp.mean(flat - best) + 1e-8)  # in units of what the choice matters
    price = jnp.zeros((1, flat.shape[-1]))
    for _ in range(rounds):
        share = jnp.mean(jax.nn.softmax((scores - price) * 4, axis=-1), axis=0, keepdims=True)
        price = price + jnp.float32(damping) * jnp.log(share * flat.shape[-1] + 1e-6) / 4
    return jnp.argmax(scores - price, axis=-1).astype(jnp.int32).reshape(errors.shape[:-1])
