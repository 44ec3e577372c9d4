"""The health of a training: steps that are skipped, warnings, and what stops a run that cannot go on.

A step whose loss or gradient is not finite is skipped inside its program, so that no step waits for the host: weights,
statistics and moments keep the bits that they had. The host reads later which steps those were. After too many in a row
the program keeps its state, whatever comes, until the host stops the run.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding

from reverie.errors import ReverieError, did_you_mean
from reverie.training import sharding
from reverie.training.checkpoint import Writer
from reverie.training.log import Log
from reverie.training.watch import Watch

CHECK = 50  # steps, at most, until the host looks for skipped ones
FAULTS = {1: "loss", 2: "gradient"}  # what was not finite, as steps number it; 0: nothing
LOWEST = "min:"  # before the name of a number of which less is better
LINES = 5  # of the log, in a row, in which the cause of a warning must hold
WAITING = 0.5  # share of the time without a batch
COLLAPSED = 1.2  # perplexity of codes that are nearly all the same
ACCELERATORS = {"/dev/nvidia0": "an NVIDIA GPU", "/dev/kfd": "an AMD GPU", "/dev/accel0": "a TPU"}
ONE_OR_MORE = ("steps", "batch", "length", "accumulate", "log_every", "report_clips", "max_skipped")
NONE_OR_MORE = ("seed", "report_every", "save_every", "keep", "keep_every", "stall_minutes", "profile")
LEAST = dict.fromkeys(ONE_OR_MORE, 1) | dict.fromkeys(NONE_OR_MORE, 0)
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "libtpu")


class Guard(NamedTuple):
    """Whether a step has an effect (``fine``), what was not finite in it, and the counts after it."""

    fine: Array
    fault: Array
    step: Array
    skipped: Array

    def choose(self, new: Any, old: Any) -> Any:
        """Return the new arrays of a tree, or the old ones with all their bits if the step is skipped."""
        return jax.tree.map(lambda new, old: jnp.where(self.fine, new, old), new, old)


def guard(state: Any, loss: Array, norm: Array, patience: int) -> Guard:
    """Judge the next step of a ``TrainState`` by its loss and the norm of its gradient.

    The step number goes on either way. After ``patience`` skipped steps in a row nothing changes any more. New weights
    are not checked: until that was done, the old ones would need room beside them.
    """
    fault = jnp.where(jnp.isfinite(loss), jnp.where(jnp.isfinite(norm), 0, 2), 1).astype(jnp.int32)
    halted = state.skipped >= patience
    fine = (fault == 0) & ~halted
    step = jnp.where(halted, state.step, state.step + 1)
    skipped = jnp.where(fine, 0, jnp.where(halted, state.skipped, state.skipped + 1))
    return Guard(fine, fault, step, skipped)


def check(run: Any) -> None:
    """Raise ReverieError unless the counts and limits of a run make sense."""
    for name, least in LEAST.items():
        if (value := getattr(run, name)) < least:
            raise ReverieError(f"{name} must be at least {least}, not {value:g}.")
    if run.keep_best and not run.report_every:
        raise ReverieError(f"keep_best {run.keep_best} needs reports: set report_every.")


class Monitor:
    """Reads what steps have computed: logs it, warns, saves what is sound, and stops a run that cannot go on.

    ``state``: at the first step. ``items(state)``: what a checkpoint saves. ``place``: the sharding of replicated
    arrays.
    """

    def __init__(
        self,
        run: Any,
        state: Any,
        items: Callable[[Any], dict],
        place: Sharding,
        writer: Writer,
        log: Log,
        watch: Watch,
    ):
        self._run, self._items, self._place = run, items, place
        self._writer, self._log, self._watch = writer, log, watch
        self._start, self._row = int(state.step), int(state.skipped)
        self._faults: dict[int, Array] = {}
        self._finite = jax.jit(_all_finite, out_shardings=place)
        self._warnings = Warnings()
        self._scores = log.reported(run.keep_best.removeprefix(LOWEST)) if run.keep_best else {}
        writer.best = self._best

    def note(self, step: int, metrics: dict[str, Array]) -> dict[str, Array]:
        """Note whether a step was skipped, to be read later; return its other metrics."""
        self._faults[step] = metrics.pop("fault")
        return metrics

    def read(self, step: int, metrics: dict[str, Array], state: Any) -> None:
        """Wait for the steps so far; log which were skipped, and the metrics of the last one unless there are none.

        ReverieError after too many skipped steps in a row; then the state before them is in a checkpoint.
        """
        noted, self._faults = self._faults, {}
        skipped: dict[int, str] = {}
        for at, fault in zip(noted, jax.device_get(list(noted.values())), strict=True):
            self._row = self._row + 1 if fault else 0
            if fault:
                skipped[at] = f"skipped: its {FAULTS[int(fault)]} is not finite"
            if self._row == self._run.max_skipped:
                self._log.skipped(skipped)
                self._stop(at - self._row + 1, at, FAULTS[int(fault)], state)
        self._log.skipped(skipped)
        if metrics:
            numbers = self._log.metrics(step, jax.device_get(metrics), self._watch.shares())
            metrics.clear()
            for text in self._warnings.judge(numbers):
                self._log.warn(step, text)

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Log a report, and note whether its checkpoint is the best so far."""
        numbers = self._log.report(step, values)
        if numbers and (name := self._run.keep_best.removeprefix(LOWEST)):
            if name in numbers:
                self._scores[step] = numbers[name]
            else:
                self._log.warn(step, f"reports have no number '{name}' for keep_best.{did_you_mean(name, numbers)}")

    def _best(self, steps: list[int]) -> int | None:
        """Return which of some steps has the best report; None if none of them has one."""
        sign = 1 if self._run.keep_best.startswith(LOWEST) else -1
        return min(self._scores.keys() & {*steps}, key=lambda step: (sign * self._scores[step], step), default=None)

    def save(self, step: int, state: Any) -> bool:
        """Save the state after ``step`` unless an old checkpoint is later; ReverieError if a weight is not finite."""
        # No loss has shown the weights of the last update yet.
        if not jax.device_get(self._finite(state.params, state.rest, state.ema)):
            raise ReverieError(
                f"a weight is not finite after step {step}; {self._kept()}. Try a lower learning rate, more warm-up "
                f"or stronger clipping."
            )
        self._log.flush()  # so that a checkpoint is never ahead of the log beside it
        return self._writer.save(step, self._items(state))

    def _stop(self, first: int, last: int, what: str, state: Any) -> None:
        before = first - 1
        if before > self._start and before > max(self._writer.wait(), default=0):
            self.save(before, state._replace(skipped=sharding.put(np.int32(0), self._place)))
        raise ReverieError(
            f"the {what} was not finite in {self._row} steps in a row ({first} to {last}, seed {self._run.seed}), and "
            f"none of them changed a weight; {self._kept()}. Look at the data, or start over (--fresh) with a lower "
            f"learning rate, more warm-up or stronger clipping; max_skipped allows more such steps."
        )

    def _kept(self) -> str:
        good = self._writer.wait()
        again = "is good, and the same command goes on from it"
        return f"the checkpoint of step {good[-1]} {again}" if good else "there is no checkpoint yet"


def _all_finite(*weights: dict[str, Array]) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(weights) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.isfinite(leaf).all() for leaf in leaves])


class Warnings:
    """What looks wrong in the numbers that are logged. Each warning is given once, until its cause is gone."""

    def __init__(self) -> None:
        self._held, self._losses = Counter[str](), list[float]()
        self._first, self._best = float("nan"), float("inf")

    def judge(self, numbers: dict[str, float]) -> list[str]:
        """Return the new warnings after one more line of the log, {name: number}."""
        said = {"loss": self._divergence(numbers.get("loss")), "data": "", "codes": ""}
        if (share := numbers.get("data_wait", 0.0)) > WAITING:
            said["data"] = f"training waits for data {share:.0%} of the time; the disk or the decoder is too slow"
        if (count := numbers.get("code_perplexity", COLLAPSED)) < COLLAPSED:
            said["codes"] = f"nearly all codes are the same one (perplexity {count:.3g}); the codebook has collapsed"
        for name, text in said.items():
            self._held[name] = self._held[name] + 1 if text else 0
        return [text for name, text in said.items() if self._held[name] == LINES]

    def _divergence(self, loss: float | None) -> str:
        """Compare the medians of a few lines: the last ones, the first ones, and the lowest so far."""
        self._losses = [*self._losses, *([] if loss is None else [loss])][-LINES:]
        if len(self._losses) < LINES:
            return ""
        now = sorted(self._losses)[LINES // 2]
        self._first = now if self._best == float("inf") else self._first
        self._best = min(self._best, now)
        if now <= self._first or self._best > self._first - 0.1 * abs(self._first):
            return ""
        return f"the loss diverges: it is {now:.4g}, and was {self._first:.4g} at first and {self._best:.4g} at best"


def unused_accelerator() -> str:
    """Return a line if JAX runs on the CPU, though an accelerator or JAX's plugin for one is there; else ""."""
    if jax.default_backend() != "cpu" or (jax.config.values["jax_platforms"] or "").startswith("cpu"):
        return ""
    signs = [f"{name} ({device})" for device, name in ACCELERATORS.items() if os.path.exists(device)]
    signs += [f"the package {name}" for name in PLUGINS if _is_installed(name)]
    if not signs:
        return ""
    return (
        f"WARNING: JAX RUNS ON THE CPU, though this machine has {' and '.join(signs)}. Install the extra 'cuda' or "
        f"'tpu' and check the driver; or set JAX_PLATFORMS=cpu if this is what you want."
    )


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
