"""Drift of long rollouts: do their late frames still look like real frames?

A rollout is conditioned on its own output. Over many frames it may fade, saturate, lose its colours or dissolve, while
the loss and the first frames stay good. No ground truth is needed to measure that. Brightness, contrast and sharpness
of late frames are compared with those of real frames, as distributions, in standard deviations of real frames.

Legend: B clips, T time, H W C image.
"""

from typing import Any

import numpy as np

from reverie.evaluation.control import crosswise, jackknife

LATE = 0.25  # share of a rollout that counts as its end
LEVELS = (np.arange(200) + 0.5) / 200  # quantiles at which two distributions are compared
GREY = 1 / 255  # the least that counts as a difference among real frames: one grey level


def looks(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Return brightness, contrast and sharpness of uint8 frames (..., H, W, C): (..., C) each, from 0 to 1.

    They are the mean, the standard deviation over the picture, and the mean absolute difference of neighbours.
    """
    frames = frames.astype(np.float32) / 255
    down, right = (np.abs(np.diff(frames, axis=axis)).mean((-3, -2)) for axis in (-3, -2))
    return {"brightness": frames.mean((-3, -2)), "contrast": frames.std((-3, -2)), "sharpness": (down + right) / 2}


def drift(late: dict[str, np.ndarray], real: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, float]:
    """Return the distance of late frames from real frames of other clips, 0 for equal distributions.

    Both are ``looks`` of clips, (B, T, C). Each part is the earth mover's distance in standard deviations of real
    frames, averaged over channels and over both pairs of halves (``crosswise``) of ``rows``. It is 1 if the mean moved
    by one standard deviation, or if half of the clips moved up by one and half down. "drift" is the largest part.
    """
    parts = {
        name: float(np.mean([_distance(late[name][one], real[name][two]) for one, two in crosswise(rows)]))
        for name in late
    }
    return {"drift": max(parts.values())} | {f"drift_{name}": value for name, value in parts.items()}


def measured(
    generated_BTHWC: np.ndarray, real_BTHWC: np.ndarray, last_BHWC: np.ndarray, episodes_B: np.ndarray
) -> dict[str, Any]:
    """Return all numbers of ``reverie eval`` about drift, measured on the last quarter of each rollout.

    ``real``: real clips, a row for each rollout. ``last``: the last context frame of each, for the baseline that
    repeats it. ``episodes``: the episode of each row.
    """
    count = len(generated_BTHWC)
    if count < 4:
        return {}
    real, late, every = looks(real_BTHWC), looks(_end(generated_BTHWC)), np.arange(count)
    interval = jackknife(lambda rows: drift(late, real, rows)["drift"], episodes_B)
    return {
        **drift(late, real, every),
        **({"drift_ci": interval} if interval else {}),
        "drift_floor": drift(looks(_end(real_BTHWC)), real, every)["drift"],
        "drift_copy_last": drift(looks(last_BHWC[:, None]), real, every)["drift"],
        "drift_frames": generated_BTHWC.shape[1],
    }


def _end(frames_BTHWC: np.ndarray) -> np.ndarray:
    return frames_BTHWC[:, -max(1, round(LATE * frames_BTHWC.shape[1])) :]


def _distance(late_BTC: np.ndarray, real_BTC: np.ndarray) -> float:
    late, real = (np.quantile(x.astype(np.float64), LEVELS, axis=(0, 1)) for x in (late_BTC, real_BTC))
    spread = np.maximum(real_BTC.std((0, 1), dtype=np.float64), GREY)
    return float((np.abs(late - real).mean(0) / spread).mean())
