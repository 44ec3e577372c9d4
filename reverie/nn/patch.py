"""Frames to patch tokens and back.

Shapes: B batch, T time, H W C image, N tokens per frame (H/P * W/P, row by row), P patch side.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from reverie.errors import ReverieError
from reverie.nn.batch import draw_rows, split_keys


def grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Return how many patches fit down and across; ReverieError unless they fit exactly."""
    if height % patch or width % patch:
        raise ReverieError(
            f"frames of {height}x{width} cannot be cut into {patch}x{patch} patches: "
            f"choose a patch that divides both sides, or resize the frames."
        )
    return height // patch, width // patch


def patchify(frames_BTHWC: Array, patch: int) -> Array:
    """(B, T, H, W, C) -> (B, T, N, P*P*C)."""
    return rearrange(frames_BTHWC, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: Array, height: int, width: int, patch: int) -> Array:
    """(B, T, N, P*P*C) -> (B, T, H, W, C)."""
    return rearrange(
        patches, "b t (h w) (p q c) -> b t (h p) (w q) c", h=height // patch, w=width // patch, p=patch, q=patch
    )


def neighbourhood(x_BTNM: Array, grid: tuple[int, int], reach: int) -> Array:
    """Return each token's neighbourhood up to ``reach`` positions away, (B, T, N, (2 reach + 1)^2 M), zero-padded."""
    height, width = grid
    x = rearrange(x_BTNM, "b t (h w) m -> b t h w m", h=height)
    x = jnp.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach), (0, 0)))
    steps = range(2 * reach + 1)
    around = [x[:, :, down : down + height, right : right + width] for down in steps for right in steps]
    return rearrange(jnp.concatenate(around, axis=-1), "b t h w m -> b t (h w) m")


def to_float(frames: Array) -> Array:
    """uint8 0..255 -> float32 -1..1. One affine map for all pixels: brightness and contrast survive."""
    return frames.astype(jnp.float32) * jnp.float32(2 / 255) - jnp.float32(1)


def to_uint8(frames: Array) -> Array:
    """float 0..1 -> uint8 0..255, rounded and clipped."""
    return jnp.round(jnp.clip(frames, 0.0, 1.0) * jnp.float32(255)).astype(jnp.uint8)


def unit_range(frames: Array) -> Array:
    """uint8 0..255 -> float32 0..1, the range of decoders' outputs."""
    return frames.astype(jnp.float32) * jnp.float32(1 / 255)


def motion_weights(frames_BTHWC: Array, extra: float, threshold: int = 8) -> Array:
    """Return weights (B, T, H, W, 1) that count moved pixels ``1 + extra`` times as much as still ones.

    A pixel has moved if a channel differs by more than ``threshold`` of 255 from the previous or the next frame: the
    decoder must reconstruct where an object went *and* what it uncovered.
    """
    x = frames_BTHWC.astype(jnp.int32)
    step = jnp.max(jnp.abs(x[:, 1:] - x[:, :-1]), axis=-1, keepdims=True) > threshold
    still = jnp.zeros_like(step[:, :1]) if step.shape[1] else jnp.zeros((*x.shape[:-1], 1), bool)
    moved = jnp.concatenate([still, step], axis=1) | jnp.concatenate([step, still], axis=1) if step.shape[1] else still
    return 1 + jnp.float32(extra) * moved.astype(jnp.float32)


def hide(x_BTNM: Array, mask_M: Array, share: tuple[float, float], keys_B: Array) -> Array:
    """Replace a random share of each frame's patches by ``mask_M``; the share is uniform between two bounds."""
    keys_share, keys_patch = split_keys(keys_B, 2)
    least, most = (jnp.float32(bound) for bound in share)
    drawn = least + draw_rows(jax.random.uniform, keys_share, (x_BTNM.shape[1], 1)) * (most - least)
    hidden = draw_rows(jax.random.uniform, keys_patch, x_BTNM.shape[1:3]) < drawn
    return jnp.where(hidden[..., None], mask_M.astype(x_BTNM.dtype)[None, None, None], x_BTNM)
