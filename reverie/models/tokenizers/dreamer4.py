"""The causal tokenizer of Dreamer 4 (arXiv 2509.24527, section 3.1): a frame becomes a few latent tokens.

Learned latent tokens read a frame's patches and pass a bottleneck (a projection and tanh). Learned queries, one for
each patch, reconstruct the patches from them alone. The attention masks ensure this. In the encoder patches read
patches and latents read everything; in the decoder latents read latents and patches read everything. In training a
share of each frame's patches is masked in the encoder (MAE, arXiv 2111.06377).

What the paper leaves open: the error is over whole frames, masked or not, since after training nothing is masked. There
are norms before and after the bottleneck's projection. Without the first, half of a replica's latents start at the ends
of tanh; without the second, training leaves ever more of them in its middle. Dynamics receive latents of about unit
variance, like their noise. With AdamW at usual rates small models of this kind reconstruct only colours for long; with
Muon they pass that stage within minutes (docs/log.md).

Shapes: B batch, T time, H W C image, P patches per frame, Q latent tokens (the paper's N_b), D width of the bottleneck
(D_b), N tokens and L width as dynamics see them (N_z = Q / packing, L = D * packing), M model width.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from reverie.config import FROM_DATA
from reverie.nn import perceptual
from reverie.nn.batch import Loss, decibels, mean, spread
from reverie.nn.kv_cache import KVCache
from reverie.nn.layers import learned_tokens
from reverie.nn.linear import Linear
from reverie.nn.patch import grid, hide, motion_weights, patchify, to_float, unit_range, unpatchify
from reverie.nn.running import RunningMoments, RunningRMS
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class Dreamer4Config:
    """A tokenizer of ``frame`` (H, W, C) into ``latents / packing`` vectors of ``bottleneck * packing`` numbers."""

    frame: tuple[int, int, int] = field(default=(64, 64, 3), metadata=FROM_DATA)
    patch: int = 16  # pixels of a patch's side
    latents: int = 32  # latent tokens per frame (Q)
    bottleneck: int = 16  # numbers per latent token (D)
    packing: int = 2  # latent tokens per token of the dynamics
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    mask_max: float = 0.9  # largest share of a frame's patches that training masks; each frame draws its own
    motion_weight: float = 0.0  # extra weight of pixels that differ from a neighbouring frame
    perceptual: str = ""  # file of LPIPS weights (see nn/perceptual.py); empty: squared error alone
    perceptual_weight: float = 0.2  # weight of LPIPS in the loss

    def __post_init__(self):
        if self.packing < 1 or self.latents % self.packing:
            raise ValueError(f"{self.latents} latents cannot be packed by {self.packing} evenly")

    def make(self, rngs: nnx.Rngs) -> "Dreamer4":
        """Return the module."""
        return Dreamer4(self, rngs=rngs)


def encoder_mask(patches: int, latents: int) -> np.ndarray:
    """The attention mask of the encoder, bool (P + Q, P + Q): patches read patches, latents read everything."""
    latent = np.arange(patches + latents) >= patches
    return latent[:, None] | ~latent[None]


def decoder_mask(patches: int, latents: int) -> np.ndarray:
    """The attention mask of the decoder, bool (P + Q, P + Q): latents read latents, patches read everything."""
    latent = np.arange(patches + latents) >= patches
    return ~latent[:, None] | latent[None]


class Dreamer4(nnx.Module):
    """Encoder, bottleneck, decoder; both networks are causal in time."""

    def __init__(self, config: Dreamer4Config, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        patches = grid(height, width, config.patch)
        self.patches = patches[0] * patches[1]
        self.tokens = config.latents // config.packing
        self.grid = (1, self.tokens)  # latents have no position in the image: one row
        self.codes, self.width = 0, config.bottleneck * config.packing
        self.receptive_field = config.encoder.receptive_field
        pixels = config.patch**2 * channels
        encoder, decoder = config.encoder.width, config.decoder.width
        self.embed = Linear(pixels, encoder, rngs=rngs)
        self.hidden = learned_tokens(rngs, encoder)
        self.latents = learned_tokens(rngs, config.latents, encoder)
        self.encoder = SpaceTimeTransformer(config.encoder, patches, extra=config.latents, rngs=rngs)
        self.to_latent = Linear(encoder, config.bottleneck, use_bias=False, rngs=rngs)
        self.centre, self.moments = (RunningMoments(config.latents, config.bottleneck) for _ in range(2))
        self.from_latent = Linear(config.bottleneck, decoder, rngs=rngs)
        self.queries = learned_tokens(rngs, self.patches, decoder)
        self.decoder = SpaceTimeTransformer(config.decoder, patches, extra=config.latents, rngs=rngs)
        self.pixels = Linear(decoder, pixels, rngs=rngs)
        self.error_scale = RunningRMS()
        self.perceptual_scale = RunningRMS() if config.perceptual else None

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames (B, T, H, W, C) -> latents (B, T, N, L), float32, of about mean 0 and variance 1."""
        z = self.moments.normalise(self.bottleneck(self.embedded(frames_BTHWC)))
        return rearrange(z, "b t (n k) d -> b t n (k d)", k=self.config.packing)

    def decode(self, latents_BTNL: Array) -> Array:
        """Latents (B, T, N, L) -> frames (B, T, H, W, C), float32 in 0..1."""
        return self.decode_latents(self._unpacked(latents_BTNL))

    def empty(self, batch: int) -> KVCache:
        """Return the empty KV cache with which ``decode_frame`` starts."""
        return self.decoder.empty(batch)

    def decode_frame(self, cache: KVCache, latents_BNL: Array) -> tuple[KVCache, Array]:
        """Decode the next frame, (B, H, W, C) float32 in 0..1; frame by frame equals ``decode`` of the whole."""
        x = self._with_queries(self._unpacked(latents_BNL[:, None]))[:, 0]
        x, new_kv = self.decoder.step(x, cache, self._decoder_mask())
        return cache.append(new_kv), self._to_frames(x[:, None])[:, 0]

    def loss(self, frames_BTHWC: Array, keys_B: Array) -> Loss:
        """Weighted squared error of whole frames, reconstructed from visible patches, and LPIPS, each over its RMS."""
        x = hide(self.embedded(frames_BTHWC), self.hidden[...], (0.0, self.config.mask_max), keys_B)
        h = self._projected(x)
        z = self._squashed(h)
        notes: dict[str, Any] = {"centre": self.centre.note(h), "moments": self.moments.note(z)}
        reconstruction, truth = self.decode_latents(z), unit_range(frames_BTHWC)
        error = jnp.square(reconstruction - truth)
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)
        metrics = {
            "psnr": mean(error, then=decibels),
            "spread": spread(z),
            "saturated": mean((jnp.abs(z) > 0.99).astype(jnp.float32)),
        }
        notes["error_scale"] = mean(error, weights)
        terms = (self.error_scale(notes["error_scale"]),)
        if self.perceptual_scale is not None:
            pictures = (rearrange(x, "b t h w c -> (b t) h w c") for x in (reconstruction, truth))
            metrics["lpips"] = notes["perceptual_scale"] = mean(perceptual.read(self.config.perceptual)(*pictures))
            terms += (self.perceptual_scale(metrics["lpips"]).times(self.config.perceptual_weight),)
        return Loss(terms, metrics, notes)

    # -- the steps of encode and decode ------------------------------------------------------------------------------

    def embedded(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> patches (B, T, P, M)."""
        return self.embed(patchify(to_float(frames_BTHWC), self.config.patch))

    def encoder_tokens(self, x_BTPM: Array) -> Array:
        """Patches -> all tokens of the encoder (B, T, P + Q, M): patches, then latents."""
        x = jnp.concatenate([x_BTPM, _in_every_frame(self.latents, x_BTPM)], axis=2)
        return self.encoder(x, jnp.asarray(encoder_mask(self.patches, self.config.latents)))

    def bottleneck(self, x_BTPM: Array) -> Array:
        """Patches, some perhaps masked -> (B, T, Q, D), float32 in (-1, 1)."""
        return self._squashed(self._projected(x_BTPM))

    def _projected(self, x_BTPM: Array) -> Array:
        return self.to_latent(self.encoder_tokens(x_BTPM)[:, :, self.patches :]).astype(jnp.float32)

    def _squashed(self, h: Array) -> Array:
        # Without the mean: one large constant in the norm would shrink everything else.
        h = h - self.centre.mean[...][None, None]
        return jnp.tanh(h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-6))

    def decoder_tokens(self, z_BTQD: Array) -> Array:
        """Output of the bottleneck -> all tokens of the decoder (B, T, P + Q, M): patches, then latents."""
        return self.decoder(self._with_queries(z_BTQD), self._decoder_mask())

    def decode_latents(self, z_BTQD: Array) -> Array:
        """Output of the bottleneck -> frames (B, T, H, W, C), float32 in 0..1."""
        return self._to_frames(self.decoder_tokens(z_BTQD))

    def _decoder_mask(self) -> Array:
        return jnp.asarray(decoder_mask(self.patches, self.config.latents))

    def _unpacked(self, latents_BTNL: Array) -> Array:
        z = rearrange(latents_BTNL, "b t n (k d) -> b t (n k) d", k=self.config.packing)
        return self.moments.restore(z)

    def _with_queries(self, z_BTQD: Array) -> Array:
        x = self.from_latent(z_BTQD)
        return jnp.concatenate([_in_every_frame(self.queries, x), x], axis=2)

    def _to_frames(self, x_BTSM: Array) -> Array:
        height, width, _ = self.config.frame
        patches = self.pixels(x_BTSM[:, :, : self.patches])
        return jax.nn.sigmoid(unpatchify(patches, height, width, self.config.patch))


def _in_every_frame(tokens: nnx.Param, like_BTNM: Array) -> Array:
    """Repeat learned tokens for every frame of every clip."""
    return jnp.broadcast_to(tokens[...].astype(like_BTNM.dtype)[None, None], (*like_BTNM.shape[:2], *tokens.shape))
