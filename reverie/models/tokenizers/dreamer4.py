"""The causal tokenizer of Dreamer 4 (arXiv 2509.24527, section 3.1): a frame in a few learned latent tokens.

WIP

Shapes: B batch, T time, H W C image, P patches per frame, Q latent tokens (the paper's N_b), D width of their bottleneck
(D_b), N tokens and L width as dynamics see them (N_z = Q / packing, D * packing), M model width.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from reverie.nn import perceptual
from reverie.nn.memory import Memory
from reverie.nn.patch import grid, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.running import RunningMoments, RunningRMS
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig


@dataclass(frozen=True)
class Dreamer4Config:
    """A tokenizer of ``frame`` (H, W, C) into ``latents / packing`` vectors of ``bottleneck * packing`` numbers."""

    frame: tuple[int, int, int] = (64, 64, 3)
    patch: int = 16
    latents: int = 32  # Q
    bottleneck: int = 16  # D
    packing: int = 2
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    mask_max: float = 0.9
    motion_weight: float = 0.0
    perceptual: str = ""
    perceptual_weight: float = 0.2
    std: float = 1.0
    qstd: float = 1.0

    def make(self, rngs: nnx.Rngs) -> "Dreamer4":
        """Return the module."""
        return Dreamer4(self, rngs=rngs)


def encoder_mask(patches: int, latents: int) -> np.ndarray:
    """Who reads whom in the encoder, (P + Q, P + Q): patches read patches, latents read everything."""
    is_latent = np.arange(patches + latents) >= patches
    return is_latent[:, None] | ~is_latent[None]


def decoder_mask(patches: int, latents: int) -> np.ndarray:
    """Who reads whom in the decoder, (P + Q, P + Q): latents read latents, patches read everything."""
    is_latent = np.arange(patches + latents) >= patches
    return ~is_latent[:, None] | is_latent[None]


class Dreamer4(nnx.Module):
    """Encoder, bottleneck, decoder; both networks are causal in time."""

    def __init__(self, config: Dreamer4Config, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        places = grid(height, width, config.patch)
        self.patches = places[0] * places[1]
        self.tokens = config.latents // config.packing
        self.grid = (1, self.tokens)
        self.codes, self.width, self.lookback = 0, config.bottleneck * config.packing, config.encoder.lookback
        pixels = config.patch**2 * channels
        see, paint = config.encoder.width, config.decoder.width
        self.embed = nnx.Linear(pixels, see, rngs=rngs)
        self.hidden = nnx.Param(jax.random.normal(rngs.params(), (see,)) * 0.5)
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (config.latents, see)) * config.std)
        self.encoder = SpaceTimeTransformer(config.encoder, places, extra=config.latents, rngs=rngs)
        self.to_latent = nnx.Linear(see, config.bottleneck, rngs=rngs)
        self.moments = RunningMoments(config.latents, config.bottleneck)
        self.from_latent = nnx.Linear(config.bottleneck, paint, rngs=rngs)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (self.patches, paint)) * config.qstd)
        self.decoder = SpaceTimeTransformer(config.decoder, places, extra=config.latents, rngs=rngs)
        self.pixels = nnx.Linear(paint, pixels, rngs=rngs)
        self.error_scale = RunningRMS()
        self.perceptual_scale = RunningRMS() if config.perceptual else None

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames (B, T, H, W, C) -> latents (B, T, N, L), float32, of about mean 0 and variance 1."""
        z = self.moments.normalise(self._bottleneck(self._seen(frames_BTHWC)))
        return rearrange(z, "b t (n k) d -> b t n (k d)", k=self.config.packing)

    def decode(self, latents_BTNL: Array) -> Array:
        """Latents (B, T, N, L) -> frames (B, T, H, W, C), float32 in 0..1."""
        x = self._asked(self._unpacked(latents_BTNL))
        return self._paint(self.decoder(x, self._decoder_mask))

    def empty(self, batch: int) -> Memory:
        """Return the memory with which ``decode_frame`` starts."""
        return self.decoder.empty(batch)

    def decode_frame(self, memory: Memory, latents_BNL: Array) -> tuple[Memory, Array]:
        """Decode the next frame, (B, H, W, C) float32 in 0..1; frame by frame equals ``decode`` of the whole."""
        x = self._asked(self._unpacked(latents_BNL[:, None]))[:, 0]
        x, memory = self.decoder.step(x, memory, self._decoder_mask)
        return memory.advance(), self._paint(x[:, None])[:, 0]

    def loss(self, frames_BTHWC: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        """Weighted squared error of whole frames painted from those of their patches that were not hidden."""
        key_share, key_patch = jax.random.split(key)
        x = self._seen(frames_BTHWC)
        share = jax.random.uniform(key_share, (*x.shape[:2], 1)) * jnp.float32(self.config.mask_max)
        hidden = jax.random.uniform(key_patch, x.shape[:3]) < share
        x = jnp.where(hidden[..., None], self.hidden[...][None, None, None], x)
        z = self._bottleneck(x)
        self.moments.learn(z)
        painted = self._paint(self.decoder(self._asked(z), self._decoder_mask))
        truth = unit_range(frames_BTHWC)
        error = jnp.square(painted - truth)
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)
        metrics = {
            "psnr": -10 * jnp.log10(jnp.mean(error) + 1e-10),
            "spread": jnp.std(z),
            "saturated": jnp.mean((jnp.abs(z) > 0.99).astype(jnp.float32)),
        }
        loss = self.error_scale(jnp.mean(error * weights))
        if self.perceptual_scale is not None:
            flat = [rearrange(x, "b t h w c -> (b t) h w c") for x in (painted, truth)]
            metrics["lpips"] = jnp.mean(perceptual.read(self.config.perceptual)(*flat))
            loss += jnp.float32(self.config.perceptual_weight) * self.perceptual_scale(metrics["lpips"])
        return loss, metrics

    @property
    def _decoder_mask(self) -> Array:
        return jnp.asarray(decoder_mask(self.patches, self.config.latents))

    def _seen(self, frames_BTHWC):
        return self.embed(patchify(to_float(frames_BTHWC), self.config.patch))

    def _bottleneck(self, x_BTPM):
        latents = jnp.broadcast_to(self.latents[...][None, None], (*x_BTPM.shape[:2], *self.latents.shape))
        x = jnp.concatenate([x_BTPM, latents.astype(x_BTPM.dtype)], axis=2)
        h = self.encoder(x, jnp.asarray(encoder_mask(self.patches, self.config.latents)))[:, :, self.patches :]
        return jnp.tanh(self.to_latent(h).astype(jnp.float32))

    def _unpacked(self, latents_BTNL):
        z = rearrange(latents_BTNL, "b t n (k d) -> b t (n k) d", k=self.config.packing)
        return self.moments.restore(z)

    def _asked(self, z_BTQD):
        x = self.from_latent(z_BTQD)
        queries = jnp.broadcast_to(self.queries[...][None, None], (*x.shape[:2], *self.queries.shape))
        return jnp.concatenate([queries.astype(x.dtype), x], axis=2)

    def _paint(self, x_BTNM):
        height, width, _ = self.config.frame
        patches = self.pixels(x_BTNM[:, :, : self.patches])
        return jax.nn.sigmoid(unpatchify(patches, height, width, self.config.patch))
