"""How far two sets of clips lie apart as wholes: the Frechet distance of what a network sees in them.

PSNR asks for the one true future; a dream that makes up another, as good, loses. This asks whether dreams as a set look
and move as real clips do. With the features of a trained I3D network that is FVD (arXiv 1812.01717); we ship no such
weights, so there are two kinds: of a network whose weights are random and fixed (it tells noise, blur, stillness and
wrong order, and means nothing beside numbers of other papers), and of a user's own function.

The one side is always real clips of one half, the other dreams of the other half, so no dream is compared with its own
truth, and real clips of that other half, measured the same way, are what a perfect dream would get.

Legend: B clips, T time, H W C image, W windows of a clip, F features.
"""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from reverie.errors import ReverieError, did_you_mean
from reverie.evaluation.control import crosswise, jackknife
from reverie.nn.image import shrunk

Features = Callable[[np.ndarray], np.ndarray]  # uint8 clips (B, T, H, W, C) -> (B, F) floats

WINDOW = 4  # frames that the random network sees at once: a step, and whether it goes on
LOOK, MOVE = (8, 8, 8), (8, 16, 16)  # widths of its layers: few, as F x F covariances come from some hundred windows
TOGETHER = 64  # windows at once
# Dreams along random actions are what a player meets who presses what was never pressed: things vanish, or double.
SUFFIXES = {"dream": "", "truth": "_floor", "copy_last": "_copy_last", "random": "_actions"}


def frechet(a_BF: np.ndarray, b_BF: np.ndarray) -> float:
    """Return the squared Frechet distance of two sets, taken for Gaussian: as in FID (arXiv 1706.08500, eq. 6).

    float64. The trace of the root of the product of both covariances is the sum of the singular values of the product
    of both centred sets: nothing is inverted and no root of a rounding error is taken, so few samples will do, though
    few make the distance larger. Raises ReverieError for sets of fewer than 2, or of other widths.
    """
    a, b = (np.asarray(x, np.float64) for x in (a_BF, b_BF))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ReverieError(f"a Frechet distance is of two sets (2 or more, features), not {a.shape} and {b.shape}.")
    between = a.mean(0) - b.mean(0)
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    few_a, few_b = (np.asarray(np.linalg.qr(x, mode="r")) for x in (a, b))  # F rows instead of B, and the same products
    common = np.linalg.svd(few_a @ few_b.T, compute_uv=False).sum()
    return max(float(between @ between + np.square(a).sum() + np.square(b).sum() - 2 * common), 0.0)


def apart(real_BWF: np.ndarray, other_BWF: np.ndarray, rows: np.ndarray) -> float:
    """Return the distance of ``other`` clips from ``real`` ones of other rows; ``rows``: those which count.

    Even rows against odd ones and odd ones against even ones, the mean of both.
    """
    pairs = [(real_BWF[one], other_BWF[two]) for one, two in crosswise(rows)]
    return float(np.mean([frechet(*(rearrange(x, "b w f -> (b w) f") for x in pair)) for pair in pairs]))


def distances(name: str, features: dict[str, np.ndarray], episodes_B: np.ndarray) -> dict[str, Any]:
    """Return ``name``, its interval over clips, and the same for what else was seen, each by a suffix (``SUFFIXES``).

    ``features``: (B, W, F) each of "truth", "dream", "copy_last" and, where there are actions, "random". Nothing for
    fewer than four clips. ``episodes``: from which episode each clip is.
    """
    real = features["truth"]
    if len(real) < 4:
        return {}
    every = np.arange(len(real))
    numbers: dict[str, Any] = {name + SUFFIXES[view]: apart(real, seen, every) for view, seen in features.items()}
    interval = jackknife(lambda rows: apart(real, features["dream"], rows), episodes_B)
    return numbers | ({f"{name}_ci": interval} if interval else {})


def at_random(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return random features (B, W, F) of every window of several sets of clips, in units of their spread in "truth".

    Clips shorter than two frames show no motion, and give no features.
    """
    length = min(WINDOW, views["truth"].shape[1])
    if length < 2:
        return {}
    made = {}
    for view, clips in views.items():
        whole = clips[:, : clips.shape[1] // length * length]
        windows = rearrange(whole, "b (w t) h w2 c -> (b w) t h w2 c", t=length)
        made[view] = rearrange(random_features(windows), "(b w) f -> b w f", b=len(clips)).astype(np.float64)
    centre, spread = made["truth"].mean((0, 1)), made["truth"].std((0, 1))
    spread = np.maximum(spread, 1e-3 * spread.max() + 1e-9)  # a feature that real clips never excite is not everything
    return {view: (features - centre) / spread for view, features in made.items()}


def by_function(function: Features, views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a user's features (B, 1, F) of several sets of clips; ReverieError unless they are finite (B, F)."""
    made = {}
    for view, clips in views.items():
        parts = []
        for at in range(0, len(clips), TOGETHER):
            part = np.ascontiguousarray(clips[at : at + TOGETHER])
            try:
                found = np.asarray(function(part), np.float64)
            except Exception as error:  # whatever a user's function does
                raise ReverieError(f"your features fail on clips uint8 {part.shape}: {_line(error)}.") from error
            if found.ndim != 2 or len(found) != len(part) or not np.isfinite(found).all():
                raise ReverieError(f"your features are finite numbers ({len(part)}, F), not so {found.shape}.")
            parts.append(found)
        made[view] = np.concatenate(parts)[:, None]
    return made


def user_features(name: str) -> Features:
    """Return the function that "MODULE:FUNCTION" names, also of a module in the working folder. Raises ReverieError."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ReverieError(f"features are named MODULE:FUNCTION, not '{name}'.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever a user's module does when it is read
        raise ReverieError(f"the module '{module}' with features cannot be imported: {_line(error)}.") from error
    finally:
        sys.path.remove(here)
    if not callable(getattr(found, function, None)):
        raise ReverieError(f"'{module}' has no function '{function}'.{did_you_mean(function, vars(found))}")
    return getattr(found, function)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def random_features(clips_BTHWC: np.ndarray) -> np.ndarray:
    """Return what convolutional networks with fixed random weights see in clips, (B, F) float32.

    One looks at single frames, one at the differences between them: in one network for both, what stands still drowns
    what moves (a frozen clip is then 3 times as far as a real one, so 40 times). Three layers of stride 2 with ReLU; a
    feature is the mean of a channel over picture and frames, and its root, since what moves is little or nothing.
    """
    clips_BTHWC, rng = shrunk(clips_BTHWC), np.random.default_rng(0)
    _, length, _, _, channels = clips_BTHWC.shape
    look, move = _drawn(rng, channels, LOOK), _drawn(rng, (length - 1) * channels, MOVE)
    return np.concatenate(
        [_see(look, move, clips_BTHWC[at : at + TOGETHER]) for at in range(0, len(clips_BTHWC), TOGETHER)]
    )


def _drawn(rng: np.random.Generator, inputs: int, widths: tuple[int, ...]) -> list[np.ndarray]:
    weights = []
    for size, width in zip((5, 3, 3), widths, strict=True):
        scale = math.sqrt(2 / (size * size * inputs))
        weights.append(np.float32(rng.normal(size=(size, size, inputs, width)) * scale))
        inputs = width
    return weights


@jax.jit
def _see(look, move, clips_BTHWC):
    frames = clips_BTHWC.astype(jnp.float32) / 255
    moves = rearrange(frames[:, 1:] - frames[:, :-1], "b t h w c -> b h w (t c)")
    seen = _layers(look, rearrange(frames - 0.5, "b t h w c -> (b t) h w c"))
    seen = rearrange(seen, "(b t) f -> b t f", b=len(frames)).mean(1)
    return jnp.sqrt(jnp.concatenate([seen, _layers(move, moves)], axis=1))


def _layers(weights, x_BHWC):
    means = []
    for weight in weights:
        x_BHWC = jax.lax.conv_general_dilated(
            x_BHWC, weight, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x_BHWC = jax.nn.relu(x_BHWC)
        means.append(x_BHWC.mean((1, 2)))
    return jnp.concatenate(means, axis=1)
