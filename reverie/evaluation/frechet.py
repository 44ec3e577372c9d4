"""Frechet distance between sets of clips, in the features of a network.

PSNR penalises a plausible future that is not the true one. This distance asks whether rollouts, as a set, look and move
like real clips. With the features of a trained I3D network it is FVD (arXiv 1812.01717). We ship no such weights. Our
features are those of a network with fixed random weights, which detect noise, blur, stillness and wrong order and
cannot be compared with numbers of papers, and those of a user's own function.

Rollouts of one half of the clips are compared with real clips of the other half, so that no rollout is compared with
its own truth. Real clips compared in the same way give the distance of a perfect rollout.

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

WINDOW = 4  # frames that the random network sees at once: enough to see steps, and whether they continue
LOOK, MOVE = (
    (8, 8, 8),
    (8, 16, 16),
)  # widths of its layers; small, since F x F covariances come from a few hundred windows
TOGETHER = 64  # windows in a batch
# Random actions: what a player meets who presses keys that were never pressed in such a state.
SUFFIXES = {"rollout": "", "truth": "_floor", "copy_last": "_copy_last", "random": "_actions"}


def frechet(a_BF: np.ndarray, b_BF: np.ndarray) -> float:
    """Return the squared Frechet distance of two sets, assumed Gaussian, as in FID (arXiv 1706.08500, eq. 6).

    Computed in float64. The trace of the root of the product of both covariances is the sum of the singular values of
    the product of both centred sets. This inverts nothing and takes no root of a rounding error, so few samples are
    enough, though few samples make the distance larger. Raises ReverieError for sets of fewer than 2, or of different
    widths.
    """
    a, b = (np.asarray(x, np.float64) for x in (a_BF, b_BF))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ReverieError(f"a Frechet distance is of two sets (2 or more, features), not {a.shape} and {b.shape}.")
    between = a.mean(0) - b.mean(0)
    a, b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    few_a, few_b = (np.asarray(np.linalg.qr(x, mode="r")) for x in (a, b))  # F rows instead of B, and the same products
    common = np.linalg.svd(few_a @ few_b.T, compute_uv=False).sum()
    return max(float(between @ between + np.square(a).sum() + np.square(b).sum() - 2 * common), 0.0)


def distance(real_BWF: np.ndarray, other_BWF: np.ndarray, rows: np.ndarray) -> float:
    """Return the distance of ``other`` clips from ``real`` ones of other rows, averaged over ``crosswise`` pairs."""
    pairs = [(real_BWF[one], other_BWF[two]) for one, two in crosswise(rows)]
    return float(np.mean([frechet(*(rearrange(x, "b w f -> (b w) f") for x in pair)) for pair in pairs]))


def distances(name: str, features: dict[str, np.ndarray], episodes_B: np.ndarray) -> dict[str, Any]:
    """Return the distance ``name`` of rollouts, its interval, and that of each other view by its suffix (``SUFFIXES``).

    ``features``: (B, W, F) each of "truth", "rollout", "copy_last" and, if there are actions, "random". {} for fewer
    than four clips. ``episodes``: the episode of each clip.
    """
    real = features["truth"]
    if len(real) < 4:
        return {}
    every = np.arange(len(real))
    numbers: dict[str, Any] = {name + SUFFIXES[view]: distance(real, seen, every) for view, seen in features.items()}
    interval = jackknife(lambda rows: distance(real, features["rollout"], rows), episodes_B)
    return numbers | ({f"{name}_ci": interval} if interval else {})


def at_random(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return random features (B, W, F) of each window of several sets of clips, normalised by those of "truth".

    Clips of fewer than two frames show no motion, so they give {}.
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
    spread = np.maximum(
        spread, 1e-3 * spread.max() + 1e-9
    )  # a feature that is constant in real clips must not dominate
    return {view: (features - centre) / spread for view, features in made.items()}


def by_function(function: Features, views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a user's features (B, 1, F) of several sets of clips; ReverieError unless they are finite and (B, F)."""
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
    """Return the function "MODULE:FUNCTION", of a module that may lie in the working folder. Raises ReverieError."""
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
    """Return features of convolutional networks with fixed random weights, (B, F) float32.

    One network reads single frames, one their differences. A single network for both hardly sees motion: a frozen clip
    is then 3 times as far away as a real one, with two networks 40 times. Each has three layers of stride 2 with ReLU.
    A feature is the square root of a channel's mean over picture and frames, since motion is sparse.
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
