"""Masked-autoencoder tokenizer: every patch of a frame becomes a vector in (-1, 1) (as in Jasmine, arXiv 2510.27002).

In training a random share of each frame's patches is masked in the encoder (MAE, arXiv 2111.06377), and all patches are
reconstructed. Afterwards nothing is masked. There is a norm before the bottleneck's projection, as in the VQ-VAE:
without it tanh saturates and the latents carry no information.

Shapes: B batch, T time, H W C image, N tokens per frame, L latent width, M model width.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie.config import FROM_DATA
from reverie.nn.batch import Loss, decibels, mean, spread
from reverie.nn.kv_cache import KVCache
from reverie.nn.layers import learned_tokens
from reverie.nn.linear import Linear
from reverie.nn.patch import grid, hide, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """A tokenizer of ``frame`` (H, W, C) into H/patch * W/patch vectors."""

    frame: tuple[int, int, int] = field(default=(64, 64, 3), metadata=FROM_DATA)
    patch: int = 16  # pixels of a patch's side; a patch is a token
    width: int = 32  # numbers per token (L)
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    mask_max: float = 0.9  # largest share of a frame's patches that training masks; each frame draws its own
    motion_weight: float = 0.0  # extra weight of pixels that differ from a neighbouring frame

    def make(self, rngs: nnx.Rngs) -> "MAE":
        """Return the module."""
        return MAE(self, rngs=rngs)


class MAE(nnx.Module):
    """Encoder, bottleneck, decoder; both networks are causal in time."""

    def __init__(self, config: MAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        self.grid = grid(height, width, config.patch)
        self.tokens = self.grid[0] * self.grid[1]
        self.codes, self.width, self.receptive_field = 0, config.width, config.encoder.receptive_field
        pixels = config.patch**2 * channels
        self.patches = Linear(pixels, config.encoder.width, rngs=rngs)
        self.hidden = learned_tokens(rngs, config.encoder.width)
        self.encoder = SpaceTimeTransformer(config.encoder, self.grid, rngs=rngs)
        self.to_latent = Linear(config.encoder.width, config.width, rngs=rngs)
        self.from_latent = Linear(config.width, config.decoder.width, rngs=rngs)
        self.decoder = SpaceTimeTransformer(config.decoder, self.grid, rngs=rngs)
        self.pixels = Linear(config.decoder.width, pixels, rngs=rngs)

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames (B, T, H, W, C) -> latents (B, T, N, L), float32 in (-1, 1)."""
        return self.bottleneck(self.embedded(frames_BTHWC))

    def decode(self, latents_BTNL: Array) -> Array:
        """Latents (B, T, N, L) -> frames (B, T, H, W, C), float32 in 0..1."""
        return self.decode_latents(latents_BTNL)

    def empty(self, batch: int) -> KVCache:
        """Return the empty KV cache with which ``decode_frame`` starts."""
        return self.decoder.empty(batch)

    def decode_frame(self, cache: KVCache, latents_BNL: Array) -> tuple[KVCache, Array]:
        """Decode the next frame, (B, H, W, C) float32 in 0..1; frame by frame equals ``decode`` of the whole."""
        x, new_kv = self.decoder.step(self.from_latent(latents_BNL), cache)
        return cache.append(new_kv), self._to_frames(x[:, None])[:, 0]

    def loss(self, frames_BTHWC: Array, keys_B: Array) -> Loss:
        """Weighted squared error of whole frames, reconstructed from their visible patches."""
        x = hide(self.embedded(frames_BTHWC), self.hidden[...], (0.0, self.config.mask_max), keys_B)
        latents = self.bottleneck(x)
        error = jnp.square(self.decode_latents(latents) - unit_range(frames_BTHWC))
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)
        metrics = {"psnr": mean(error, then=decibels), "spread": spread(latents)}
        return Loss((mean(error, weights),), metrics)

    # -- the steps of encode and decode ------------------------------------------------------------------------------

    def embedded(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> patches (B, T, N, M)."""
        return self.patches(patchify(to_float(frames_BTHWC), self.config.patch))

    def bottleneck(self, x_BTNM: Array) -> Array:
        """Patches, some perhaps masked -> latents (B, T, N, L), float32 in (-1, 1)."""
        return jnp.tanh(self.to_latent(self.encoder(x_BTNM)).astype(jnp.float32))

    def decode_latents(self, z_BTNL: Array) -> Array:
        """Latents -> frames (B, T, H, W, C), float32 in 0..1."""
        return self._to_frames(self.decoder(self.from_latent(z_BTNL)))

    def _to_frames(self, x_BTNM):
        height, width, _ = self.config.frame
        return jax.nn.sigmoid(unpatchify(self.pixels(x_BTNM), height, width, self.config.patch))
