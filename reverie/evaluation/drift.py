"""Where a long dream ends up: do its late frames still look like frames of this world?

A dream feeds on itself. Over many frames worlds fade, burn out, lose their colours or dissolve, while the loss and the
first frames stay good. No truth is needed to see it: brightness, contrast and sharpness of late frames are held against
those of real frames, as distributions, in units of how much real frames differ among themselves.

Legend: B clips, T time, H W C image.
"""

from typing import Any

import numpy as np

from reverie.evaluation.control import crosswise, jackknife

LATE = 0.25  # share of a dream that counts as its end
LEVELS = (np.arange(200) + 0.5) / 200  # quantiles at which two distributions are compared
GREY = 1 / 255  # the least that counts as a difference among real frames: one grey level


def looks(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Return brightness, contrast and sharpness of uint8 frames (..., H, W, C), (..., C) each, by channel, 0 to 1.

    Mean; standard deviation over the picture; mean absolute difference of neighbours.
    """
    frames = frames.astype(np.float32) / 255
    down, right = (np.abs(np.diff(frames, axis=axis)).mean((-3, -2)) for axis in (-3, -2))
    return {"brightness": frames.mean((-3, -2)), "contrast": frames.std((-3, -2)), "sharpness": (down + right) / 2}


def drift(late: dict[str, np.ndarray], real: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, float]:
    """Return how far the looks of late frames lie from those of real frames of other clips, 0 for not at all.

    Both are ``looks`` of clips, (B, T, C). Each part is the earth mover's distance in standard deviations of real
    frames, mean over channels, and over even rows against odd ones and odd ones against even; ``rows``: those which
    count. A mean that moved by one such deviation gives 1; so does half of the clips going up and half going down by
    one. "drift" is the largest part.
    """
    parts = {
        name: float(np.mean([_apart(late[name][one], real[name][two]) for one, two in crosswise(rows)]))
        for name in late
    }
    return {"drift": max(parts.values())} | {f"drift_{name}": value for name, value in parts.items()}


def measured(
    dreamed_BTHWC: np.ndarray, real_BTHWC: np.ndarray, last_BHWC: np.ndarray, episodes_B: np.ndarray
) -> dict[str, Any]:
    """Return all that ``reverie eval`` says of drift, told by the last quarter of dreams.

    ``real``: real clips, a row for each dream. ``last``: the last real frame before each, which copying would repeat.
    ``episodes``: from which episode each row is.
    """
    count = len(dreamed_BTHWC)
    if count < 4:
        return {}
    real, late, every = looks(real_BTHWC), looks(_end(dreamed_BTHWC)), np.arange(count)
    interval = jackknife(lambda rows: drift(late, real, rows)["drift"], episodes_B)
    return {
        **drift(late, real, every),
        **({"drift_ci": interval} if interval else {}),
        "drift_floor": drift(looks(_end(real_BTHWC)), real, every)["drift"],
        "drift_copy_last": drift(looks(last_BHWC[:, None]), real, every)["drift"],
        "drift_frames": dreamed_BTHWC.shape[1],
    }


def _end(frames_BTHWC: np.ndarray) -> np.ndarray:
    return frames_BTHWC[:, -max(1, round(LATE * frames_BTHWC.shape[1])) :]


def _apart(late_BTC: np.ndarray, real_BTC: np.ndarray) -> float:
    late, real = (np.quantile(x.astype(np.float64), LEVELS, axis=(0, 1)) for x in (late_BTC, real_BTC))
    spread = np.maximum(real_BTC.std((0, 1), dtype=np.float64), GREY)
    return float((np.abs(late - real).mean(0) / spread).mean())
