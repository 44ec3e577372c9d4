"""The causal tokenizer of Dreamer 4 (arXiv 2509.24527, section 3.1): a frame in a few learned latent tokens.

Learned tokens beside a frame's patches read them, pass a bottleneck (a projection and tanh), and from them alone the
patches are painted again by learned queries, one for each place. In the encoder patches read patches and latents read
everything; in the decoder latents read latents and patches read everything: so all that is painted went through the
bottleneck. In training a share of each frame's patches is hidden from the encoder (MAE, arXiv 2111.06377).

What the paper leaves open: the error is that of whole frames, hidden or not, since in use nothing is hidden. Norms
stand before and behind the bottleneck's projection: without the first, half of a replica's latents began at the ends of
tanh; without the second, learning leaves ever more of them in its middle. Dynamics are given latents of about unit
variance, as their noise has. With AdamW at usual rates small models of this kind stay where only colours come through;
with Muon they leave within minutes (docs/log.md).

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

    frame: tuple[int, int, int] = (64, 64, 3)
    patch: int = 16
    latents: int = 32  # Q
    bottleneck: int = 16  # D
    packing: int = 2  # so many latent tokens are one token to dynamics
    encoder: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    mask_max: float = 0.9  # the share of hidden patches is drawn from U(0, mask_max), one draw per frame
    motion_weight: float = 0.0  # extra weight of pixels that differ from the frame before
    perceptual: str = ""  # a file of LPIPS weights, for which see nn/perceptual.py; "": squared error alone
    perceptual_weight: float = 0.2

    def __post_init__(self):
        if self.packing < 1 or self.latents % self.packing:
            raise ValueError(f"{self.latents} latents cannot be packed by {self.packing} evenly")

    def make(self, rngs: nnx.Rngs) -> "Dreamer4":
        """Return the module."""
        return Dreamer4(self, rngs=rngs)


def encoder_mask(patches: int, latents: int) -> np.ndarray:
    """Who reads whom in the encoder, bool (P + Q, P + Q): patches read patches, latents read everything."""
    latent = np.arange(patches + latents) >= patches
    return latent[:, None] | ~latent[None]


def decoder_mask(patches: int, latents: int) -> np.ndarray:
    """Who reads whom in the decoder, bool (P + Q, P + Q): latents read latents, patches read everything."""
    latent = np.arange(patches + latents) >= patches
    return ~latent[:, None] | latent[None]


class Dreamer4(nnx.Module):
    """Encoder, bottleneck, decoder; both networks are causal in time."""

    def __init__(self, config: Dreamer4Config, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.frame
        places = grid(height, width, config.patch)
        self.patches = places[0] * places[1]
        self.tokens = config.latents // config.packing
        self.grid = (1, self.tokens)  # latents have no place in the picture: they stand in a row
        self.codes, self.width, self.lookback = 0, config.bottleneck * config.packing, config.encoder.lookback
        pixels = config.patch**2 * channels
        see, paint = config.encoder.width, config.decoder.width
        self.embed = Linear(pixels, see, rngs=rngs)
        self.hidden = learned_tokens(rngs, see)
        self.latents = learned_tokens(rngs, config.latents, see)
        self.encoder = SpaceTimeTransformer(config.encoder, places, extra=config.latents, rngs=rngs)
        self.to_latent = Linear(see, config.bottleneck, use_bias=False, rngs=rngs)
        self.centre, self.moments = (RunningMoments(config.latents, config.bottleneck) for _ in range(2))
        self.from_latent = Linear(config.bottleneck, paint, rngs=rngs)
        self.queries = learned_tokens(rngs, self.patches, paint)
        self.decoder = SpaceTimeTransformer(config.decoder, places, extra=config.latents, rngs=rngs)
        self.pixels = Linear(paint, pixels, rngs=rngs)
        self.error_scale = RunningRMS()
        self.perceptual_scale = RunningRMS() if config.perceptual else None

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames (B, T, H, W, C) -> latents (B, T, N, L), float32, of about mean 0 and variance 1."""
        z = self.moments.normalise(self.bottleneck(self.embedded(frames_BTHWC)))
        return rearrange(z, "b t (n k) d -> b t n (k d)", k=self.config.packing)

    def decode(self, latents_BTNL: Array) -> Array:
        """Latents (B, T, N, L) -> frames (B, T, H, W, C), float32 in 0..1."""
        return self.painted(self._unpacked(latents_BTNL))

    def empty(self, batch: int) -> KVCache:
        """Return the empty KV cache with which ``decode_frame`` starts."""
        return self.decoder.empty(batch)

    def decode_frame(self, cache: KVCache, latents_BNL: Array) -> tuple[KVCache, Array]:
        """Decode the next frame, (B, H, W, C) float32 in 0..1; frame by frame equals ``decode`` of the whole."""
        x = self._asked(self._unpacked(latents_BNL[:, None]))[:, 0]
        x, new_kv = self.decoder.step(x, cache, self._told())
        return cache.append(new_kv), self._paint(x[:, None])[:, 0]

    def loss(self, frames_BTHWC: Array, keys_B: Array) -> Loss:
        """Weighted squared error of whole frames painted from patches not hidden, and LPIPS, each over its own RMS."""
        x = hide(self.embedded(frames_BTHWC), self.hidden[...], (0.0, self.config.mask_max), keys_B)
        h = self._projected(x)
        z = self._squashed(h)
        notes: dict[str, Any] = {"centre": self.centre.note(h), "moments": self.moments.note(z)}
        painted, truth = self.painted(z), unit_range(frames_BTHWC)
        error = jnp.square(painted - truth)
        weights = motion_weights(frames_BTHWC, self.config.motion_weight)
        metrics = {
            "psnr": mean(error, then=decibels),
            "spread": spread(z),
            "saturated": mean((jnp.abs(z) > 0.99).astype(jnp.float32)),
        }
        notes["error_scale"] = mean(error, weights)
        terms = (self.error_scale(notes["error_scale"]),)
        if self.perceptual_scale is not None:
            pictures = (rearrange(x, "b t h w c -> (b t) h w c") for x in (painted, truth))
            metrics["lpips"] = notes["perceptual_scale"] = mean(perceptual.read(self.config.perceptual)(*pictures))
            terms += (self.perceptual_scale(metrics["lpips"]).times(self.config.perceptual_weight),)
        return Loss(terms, metrics, notes)

    # -- the way of a frame, step by step ----------------------------------------------------------------------------

    def embedded(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> patches (B, T, P, M)."""
        return self.embed(patchify(to_float(frames_BTHWC), self.config.patch))

    def looked(self, x_BTPM: Array) -> Array:
        """Patches -> all tokens of the encoder (B, T, P + Q, M): patches, then latents."""
        x = jnp.concatenate([x_BTPM, _everywhere(self.latents, x_BTPM)], axis=2)
        return self.encoder(x, jnp.asarray(encoder_mask(self.patches, self.config.latents)))

    def bottleneck(self, x_BTPM: Array) -> Array:
        """Patches, some of them perhaps hidden -> (B, T, Q, D), float32 in (-1, 1)."""
        return self._squashed(self._projected(x_BTPM))

    def _projected(self, x_BTPM: Array) -> Array:
        return self.to_latent(self.looked(x_BTPM)[:, :, self.patches :]).astype(jnp.float32)

    def _squashed(self, h: Array) -> Array:
        # What is the same in every frame may not make room in the norm: one large constant would let the rest shrink.
        h = h - self.centre.mean[...][None, None]
        return jnp.tanh(h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-6))

    def recalled(self, z_BTQD: Array) -> Array:
        """What passed the bottleneck -> all tokens of the decoder (B, T, P + Q, M): patches, then latents."""
        return self.decoder(self._asked(z_BTQD), self._told())

    def painted(self, z_BTQD: Array) -> Array:
        """What passed the bottleneck -> frames (B, T, H, W, C), float32 in 0..1."""
        return self._paint(self.recalled(z_BTQD))

    def _told(self) -> Array:
        return jnp.asarray(decoder_mask(self.patches, self.config.latents))

    def _unpacked(self, latents_BTNL: Array) -> Array:
        z = rearrange(latents_BTNL, "b t n (k d) -> b t (n k) d", k=self.config.packing)
        return self.moments.restore(z)

    def _asked(self, z_BTQD: Array) -> Array:
        x = self.from_latent(z_BTQD)
        return jnp.concatenate([_everywhere(self.queries, x), x], axis=2)

    def _paint(self, x_BTSM: Array) -> Array:
        height, width, _ = self.config.frame
        patches = self.pixels(x_BTSM[:, :, : self.patches])
        return jax.nn.sigmoid(unpatchify(patches, height, width, self.config.patch))


def _everywhere(tokens: nnx.Param, like_BTNM: Array) -> Array:
    """The same learned tokens in every frame of every clip."""
    return jnp.broadcast_to(tokens[...].astype(like_BTNM.dtype)[None, None], (*like_BTNM.shape[:2], *tokens.shape))
