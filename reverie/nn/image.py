"""Image similarity: PSNR and SSIM, one number per frame, in float32, inside or outside ``jax.jit``.

Frames are uint8 or floats in [0, 1], (..., H, W, C), each of the two independently. Other integers, and floats in
another range, are a ReverieError, since their scale is unknown.

One convention everywhere: PSNR is taken of each frame, with the ceiling below, and then averaged ("mean of decibels").

Legend: H W C image, I J height and width of the windows' centres.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jax import Array
from jax.core import Tracer

from reverie.errors import ReverieError
from reverie.nn.patch import unit_range

WINDOW, SIGMA = 11, 1.5  # pixels: the Gaussian window of SSIM
_C1, _C2 = 0.01**2, 0.03**2  # keep SSIM's ratios finite; for values in [0, 1]

# Frames are stored as multiples of 1/255, so an error below that of rounding means nothing. The mean squared error is
# at least that of rounding, and PSNR at most 58.9 dB; else one still scene would make a mean infinite.
LEAST_ERROR = 1 / 12 / 255**2
BEYOND = 0.5  # generated frames may leave [0, 1] by so much, and are clipped; beyond it their scale is wrong


def psnr(truth: Array | np.ndarray, other: Array | np.ndarray) -> Array:
    """Return the peak signal-to-noise ratio of each frame, (...), in dB; 58.9 dB (``LEAST_ERROR``) for equal frames."""
    error = jnp.square(_unit(truth) - _unit(other)).mean((-3, -2, -1))
    return -10 * jnp.log10(jnp.maximum(error, LEAST_ERROR))


def ssim(truth: Array | np.ndarray, other: Array | np.ndarray) -> Array:
    """Return the structural similarity of each frame, (...), 1 for equal frames.

    Wang et al. 2004: Gaussian windows of 11 x 11 pixels (sigma 1.5) that lie wholly inside, moments weighted by the
    window, mean over windows and channels. Frames smaller than a window raise ValueError.
    """
    a, b = _unit(truth), _unit(other)
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a = _windowed(a * a) - mean_a**2
    variance_b = _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (light * structure).mean((-3, -2, -1))


def shrunk(frames: np.ndarray, most: int = 64) -> np.ndarray:
    """Return uint8 frames (..., H, W, C) with no side above ``most`` pixels, by means over whole blocks of pixels.

    Incomplete blocks at the right and at the bottom are cut off.
    """
    block = -(-max(frames.shape[-3:-1]) // most)
    if block == 1:
        return frames
    height, width = (side // block * block for side in frames.shape[-3:-1])
    cut = frames[..., :height, :width, :]
    return reduce(cut, "... (h y) (w x) c -> ... h w c", _rounded_mean, y=block, x=block)


def _rounded_mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.rint(values.mean(axes, dtype=np.float32)).astype(np.uint8)


def _unit(frames: Array | np.ndarray) -> Array:
    kind = np.dtype(frames.dtype)
    if kind == np.uint8:
        return unit_range(jnp.asarray(frames))
    if not jnp.issubdtype(kind, jnp.floating):
        raise ReverieError(f"pictures are compared as uint8, or as floats in [0, 1], not as {kind}.")
    if not isinstance(frames, Tracer) and frames.size:  # under jit there are no values to check
        low, high = float(frames.min()), float(frames.max())
        if low < -BEYOND or high > 1 + BEYOND:
            raise ReverieError(f"pictures of floats are compared in [0, 1], not in [{low:g}, {high:g}]: scale them.")
    return jnp.clip(jnp.asarray(frames).astype(jnp.float32), 0.0, 1.0)


def _windowed(picture: Array) -> Array:
    """Return weighted means over every window, (..., I, J, C), by two banded matrices, since windows are separable."""
    rows, columns = _bands(picture.shape[-3]), _bands(picture.shape[-2])
    # E[x^2] - E[x]^2 cancels digits, so the default matmul precision of accelerators is too low
    return jnp.einsum("ih,...hwc,jw->...ijc", rows, picture, columns, precision=jax.lax.Precision.HIGHEST)


def _bands(size: int) -> np.ndarray:
    if size < WINDOW:
        raise ValueError(f"SSIM looks through windows of {WINDOW} pixels: frames of {size} are too small")
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    bands = np.zeros((size - WINDOW + 1, size), np.float32)
    for start, row in enumerate(bands):
        row[start : start + WINDOW] = weights / weights.sum()
    return bands
