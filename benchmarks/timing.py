"""Interleaved timing of two or more functions, so that a slow phase of the machine affects all of them."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PEAK = 2048  # side of the square matmul a device's peak is measured with
Times = dict[str, np.ndarray]  # by side, the seconds of each round


@dataclass(frozen=True)
class Figure:
    """One measurement. ``ratio_of``: what was divided by what, where the value is a ratio."""

    name: str
    value: float
    unit: str
    ratio_of: tuple[str, str] | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """Return it as plain values, the number rounded to four digits."""
        return vars(self) | {"value": float(f"{self.value:.4g}")}


def tell(figures: Iterable[Figure], out: str | None = None) -> None:
    """Print every figure as soon as it is known, a JSON line each; append it to the file ``out`` as well."""
    for figure in figures:
        line = json.dumps(figure.line())
        print(line, flush=True)
        if out:
            with open(out, "a", encoding="utf-8") as file:
                file.write(line + "\n")


def interleaved(sides: dict[str, Callable[[], Any]], *, seconds: float = 10.0, least: int = 5) -> Times:
    """Run A B A B ... for ``seconds`` and at least ``least`` rounds, after one round that compiles and warms up.

    A side returns what it computed; its time ends when that is ready.
    """
    for call in sides.values():
        jax.block_until_ready(call())
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < least or time.perf_counter() < end:
        rounds.append([_seconds(call) for call in sides.values()])
    return dict(zip(sides, np.array(rounds).T, strict=True))


def matmul(side: int = PEAK) -> Callable[[], Array]:
    """Return a square matmul of the type the models multiply in on this machine (float32 on CPU)."""
    x, product = jnp.ones((side, side)), jax.jit(jnp.matmul)
    return lambda: product(x, x)


def ratio(slow: np.ndarray, fast: np.ndarray) -> float:
    """Return how many times as long one side took: the median over rounds, each compared within itself."""
    return float(np.median(slow / fast))


def milliseconds(times: np.ndarray) -> float:
    """Return the median in ms."""
    return float(np.median(times)) * 1e3


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
