"""Constants in fewer bits, where that loses nothing: a model of rounded weights is as small as their bits."""

from typing import Any

import numpy as np

STEPS = 127  # of 8 bits on each side of 0
SHORT = ~np.uint32(0xFFF)  # keeps 11 bits of a mantissa: STEPS times such a number is exact in float32


def narrow(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (few-bit numbers, scale) whose product is exactly this float32 matrix; None if there are none."""
    if not is_matrix(array):
        return None
    for rounding in (eighths, halves):
        few, scale = rounding(array)
        if np.array_equal(few.astype(np.float32) * scale, array):
            return few, scale
    return None


def is_matrix(array: Any) -> bool:
    """Whether an array is one that is stored in fewer bits: vectors are few."""
    return array.ndim > 1 and array.dtype == np.float32


def halves(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix as float16, and the scale 1."""
    most = np.finfo(np.float16).max
    return np.clip(array, -most, most).astype(np.float16), np.ones((), np.float32)


def eighths(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return matrices (..., rows, columns) as int8 and a scale for each column, which is itself short."""
    exact = np.abs(array).max(-2, keepdims=True) / np.float32(STEPS)
    short = (exact.view(np.uint32) & SHORT).view(np.float32)
    scale = np.where(short < exact, ((exact.view(np.uint32) & SHORT) + ~SHORT + np.uint32(1)).view(np.float32), short)
    few = np.rint(array / np.where(scale > 0, scale, np.float32(1)))
    return few.astype(np.int8), scale
