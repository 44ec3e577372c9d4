"""What a recipe will take, before it is followed: sizes, FLOPs, memory and time of each stage, as a table."""

import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from reverie import config
from reverie.budget import seconds_for
from reverie.data.episode import Spec
from reverie.nn.precision import compute_dtype
from reverie.presets.recipe import Recipe, stages
from reverie.training import checkpoint
from reverie.training.cost import Cost, cost
from reverie.training.log import si

SECONDS = 0.3  # for how long matmuls are timed
HEAD = ("", "steps", "clips", "parameters", "FLOP/step", "FLOP", "memory", "time")
UNITS = ((365 * 86400.0, "years"), (86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def costs(recipe: Recipe, spec: Spec) -> dict[str, Cost]:
    """Return the cost of each stage of a recipe on data like ``spec``, by its name; nothing is read or trained."""
    found, out = {}, Path(os.path.abspath("forecast"))
    with checkpoint.untrained_models() as models:
        for name, run in stages(recipe).items():
            found[name] = cost(run, spec, out / name)
            models[out / name] = checkpoint.structure(run, spec, out / name)
    return found


def forecast(name: str, recipe: Recipe, spec: Spec, minutes: float | None = None) -> str:
    """Return what a recipe will take: a table of its stages, and how its numbers came about.

    ``minutes``: the time for which it is trained, in which case steps are as many as could fit.
    """
    found, rate, limit = costs(recipe, spec), matmul_rate(), ""
    if minutes is not None:
        limit = f"steps: at most, in {minutes:g} minutes; training times a few steps and chooses."
        runs = stages(recipe)
        fit = {stage: int(seconds_for(stage, minutes, runs) * rate / of.flops) for stage, of in found.items()}
        recipe = config.replace(recipe, **{f"{stage}.steps": steps for stage, steps in fit.items()})
    rows: list[tuple[str, ...]] = [HEAD]
    together = 0.0
    for stage, run in stages(recipe).items():
        of, total = found[stage], found[stage].flops * run.steps
        sizes = (si(of.parameters), si(of.flops), si(total), f"{si(of.memory)}B", duration(total / rate))
        rows.append((stage, f"{run.steps}", f"{run.batch} x {run.length}", *(size.strip() for size in sizes)))
        together += total
    steps = sum(run.steps for run in stages(recipe).values())
    size, memory = sum(of.parameters for of in found.values()), max(of.memory for of in found.values())
    sizes = (si(size), "", si(together), f"{si(memory)}B", duration(together / rate))
    rows.append(("all", f"{steps}", "", *(size.strip() for size in sizes)))
    height, width, channels = spec.frame
    about = [
        f"{name}: {recipe.about}",
        f"its authors' time: {recipe.takes}",
        f"data: {spec.source}, frames of {height} x {width} x {channels}, {spec.actions.kind} actions",
    ]
    notes = [
        "clips: clips per step x frames per clip. FLOP: of matmuls and convolutions, the optimiser's included.",
        "memory: an estimate for one device, of weights, optimiser, gradients and what the backward pass reads.",
        f"time: an estimate, at least FLOP / {si(rate)}FLOP/s: the rate of large matmuls, measured here and now.",
        "Small models are slower. Recording, compiling, reports and evaluation are not in it.",
    ]
    return "\n".join([*about, "", *aligned(rows), "", *([limit] if limit else []), *notes])


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows of a table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([f"{row[0]:{widths[0]}}", *cells[1:]]))
    return lines


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which it has one or more: 5400 -> "1.5 hours"."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    return f"{seconds / size:.3g} {unit}" if seconds < 1000 * UNITS[0][0] else "> 1000 years"


def matmul_rate() -> float:
    """Return the FLOP/s of large matmuls on the first device, measured now, in the type in which models compute."""
    side = 1024 if jax.default_backend() == "cpu" else 8192
    x: Any = jnp.ones((side, side), compute_dtype("auto"))
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()  # compiles
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < SECONDS:
        multiply(x, x).block_until_ready()
        count += 1
    return count * 2.0 * side**3 / taken
