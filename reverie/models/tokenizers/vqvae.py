"""VQ-VAE video tokenizer: frames to a grid of codes and back (Genie, arXiv 2402.15391, section 2.1.1).

Where we differ from the paper and its open replicas: pixels are scaled by one affine map, never normalised per patch
(that would erase brightness). There is a norm before the quantiser's projection and before the pixel projection
(without it the codes collapse). The loss may have a higher weight where pixels move, since a character of 16 pixels is
1 % of the error.

Shapes: B batch, T time, H W C image, N tokens per frame, L code width, M model width.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.config import FROM_DATA
from reverie.nn.batch import Loss, decibels, mean
from reverie.nn.kv_cache import KVCache
from reverie.nn.linear import Linear
from reverie.nn.patch import grid, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.quantise import FSQConfig, VQConfig, usage
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """A tokenizer of ``frame`` (H, W, C) into H/patch * W/patch codes."""

    frame: tuple[int, int, int] = field(default=(64, 64, 3), metadata=FROM_DATA)
    patch: int = 4  # pixels of a patch's side; a patch is a token
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    quantiser: VQConfig | FSQConfig = field(default_factory=VQConfig)  # how a patch becomes a code
    motion_weight: float = 0.0  # extra weight of pixels that differ from a neighbouring frame

    def make(self, rngs: nnx.Rngs) -> "VQVAE":
        """Return the module."""
        return VQVAE(self, rngs=rngs)


class VQVAE(nnx.Module):
    """Encoder, quantiser, decoder; both networks are causal in time."""

    def __init__(self, config: VQVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        self.grid = grid(height, width, config.patch)
        self.tokens = self.grid[0] * self.grid[1]
        pixels = config.patch**2 * channels
        self.quantiser = config.quantiser.make(rngs)
        self.codes = self.quantiser.codes
        self.receptive_field = config.encoder.receptive_field
        self.patches = Linear(pixels, config.encoder.width, rngs=rngs)
        self.encoder = SpaceTimeTransformer(config.encoder, self.grid, rngs=rngs)
        self.to_code = Linear(config.encoder.width, self.quantiser.width, rngs=rngs)
        self.from_code = Linear(self.quantiser.width, config.decoder.width, rngs=rngs)
        self.decoder = SpaceTimeTransformer(config.decoder, self.grid, rngs=rngs)
        self.pixels = Linear(config.decoder.width, pixels, rngs=rngs)

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames (B, T, H, W, C) -> codes (B, T, N)."""
        return self.quantiser(self._features(frames_BTHWC)).codes

    def decode(self, latents_BTN: Array) -> Array:
        """Codes (B, T, N) -> frames (B, T, H, W, C), float32 in 0..1."""
        return self._to_frames(self.decoder(self.from_code(self.quantiser.lookup(latents_BTN))))

    def empty(self, batch: int) -> KVCache:
        """Return the empty KV cache with which ``decode_frame`` starts."""
        return self.decoder.empty(batch)

    def decode_frame(self, cache: KVCache, latents_BN: Array) -> tuple[KVCache, Array]:
        """Decode the next frame, (B, H, W, C) float32 in 0..1; frame by frame equals ``decode`` of the whole."""
        x, new_kv = self.decoder.step(self.from_code(self.quantiser.lookup(latents_BN)), cache)
        return cache.append(new_kv), self._to_frames(x[:, None])[:, 0]

    def loss(self, frames_BTHWC: Array, keys_B: Array) -> Loss:
        """Weighted squared error of the reconstruction, plus the commitment loss."""
        features = self._features(frames_BTHWC)
        q = self.quantiser(features)
        error = jnp.square(self._to_frames(self.decoder(self.from_code(q.vectors))) - unit_range(frames_BTHWC))
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)
        commitment = mean(q.misfit)
        metrics = {"psnr": mean(error, then=decibels), "quantiser": commitment}
        metrics |= {f"code_{name}": value for name, value in usage(q.codes, self.codes).items()}
        return Loss((mean(error, weights), commitment), metrics, {"quantiser": self.quantiser.note(features, q.codes)})

    def _features(self, frames_BTHWC: Array) -> Array:
        return self.to_code(self.encoder(self.patches(patchify(to_float(frames_BTHWC), self.config.patch))))

    def _to_frames(self, x_BTNM: Array) -> Array:
        height, width, _ = self.config.frame
        return jax.nn.sigmoid(unpatchify(self.pixels(x_BTNM), height, width, self.config.patch))
