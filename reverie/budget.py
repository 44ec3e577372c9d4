"""The number of training steps that fit in a time budget, from a few timed steps or from earlier training."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from reverie.data.episode import Dataset
from reverie.errors import ReverieError
from reverie.training import checkpoint, sharding
from reverie.training.engine import Run, fit
from reverie.training.record import read_record

SHARES = {"tokenizer": 0.25, "lam": 0.25, "dynamics": 0.5, "agent": 0.05, "policy": 0.15}  # of the training time
FINETUNED = SHARES | {"tokenizer": 0.1}  # of a stage that starts with weights
TRIAL = 12  # steps that measure a stage's speed


def check_minutes(minutes: float | None) -> None:
    """Raise ReverieError unless ``minutes`` is above 0 and finite, or None."""
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ReverieError(f"--minutes must be a number above 0, not {minutes:g}.")


def seconds_for(name: str, minutes: float, runs: dict[str, Run]) -> float:
    """Return the seconds in which one of several stages trains; the rest is for compiling, reports, evaluation."""
    shares = {stage: (FINETUNED if run.start_from else SHARES)[stage] for stage, run in runs.items()}
    return shares[name] / sum(shares.values()) * minutes * 60 * 0.85


def begun(name: str, out: Path, place: Path, minutes: float, past: float | None) -> Run | None:
    """Return the run of a stage that was started in ``place``; None if there is none.

    If the world in ``out`` is complete after ``past`` minutes, its dynamics get steps in proportion to the time.
    """
    if not checkpoint.steps(place / name):
        return None
    run = read_record(place / name).run
    if name != "dynamics" or past is None or minutes <= past or not checkpoint.steps(out / name):
        return run
    whole = read_record(out / name).run
    return replace(run, steps=round(whole.steps * minutes / past)) if checkpoint.is_done(out / name, whole) else run


def in_time(
    run: Run, place: Path, name: str, dataset: Dataset, unseen: Dataset, minutes: float, runs: dict[str, Run]
) -> Run:
    """Return the run with as many steps as fit in its share of ``minutes``, by timing ``TRIAL`` of them.

    ``runs``: all stages that share the time.
    """
    trial = place / f".trial-{name}"

    def tidy() -> None:
        if (trial / "cache").exists():  # the run itself can use the cached tokens
            (place / name).mkdir(exist_ok=True)
            shutil.rmtree(place / name / "cache", ignore_errors=True)
            shutil.move(trial / "cache", place / name / "cache")

    with _gone(trial):
        rate = _rate(run, trial, dataset, unseen)
        sharding.by_first(tidy)
    steps = max(TRIAL, int(rate * seconds_for(name, minutes, runs)))
    clock = max(steps // 5, 1)
    return replace(_of_steps(run, steps), report_every=clock, save_every=clock)


def psnr_in(seconds: float, run: Run, place: Path, dataset: Dataset, unseen: Dataset) -> float:
    """Return the PSNR of a tokenizer's reconstructions of held-out frames after training for so long; none is kept."""
    trial = place / ".trial"
    with _gone(trial):
        steps = max(TRIAL, int(_rate(run, trial, dataset, unseen) * seconds))
        short = replace(_of_steps(run, steps), report_every=steps, save_every=0, loggers=())
        fit(short, trial, dataset=dataset, held_out=unseen, progress=False, fresh=True)
        sharding.wait_for_all("the trial")
        return next(line["report/psnr"] for line in _lines(trial / "metrics.jsonl") if "report/psnr" in line)


def _rate(run: Run, trial: Path, dataset: Dataset, unseen: Dataset) -> float:
    """Return the steps per second of a run, which trains for a few steps in the folder ``trial``."""
    short = replace(run, steps=TRIAL, log_every=2, report_every=0, save_every=0, loggers=())
    fit(short, trial, dataset=dataset, held_out=unseen, progress=False, fresh=True)
    sharding.wait_for_all("the trial")
    return max(line["steps_per_s"] for line in _lines(trial / "timing.jsonl") if "steps_per_s" in line)


def _of_steps(run: Run, steps: int) -> Run:
    """Return the run with so many steps, of which the learning rate rises for a tenth at most."""
    warmup = min(run.optimizer.warmup, max(steps // 10, 1))
    return replace(run, steps=steps, optimizer=replace(run.optimizer, warmup=warmup))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@contextlib.contextmanager
def _gone(trial: Path) -> Iterator[None]:
    """Remove the folder of a trial, however it ends."""
    try:
        yield
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(trial, ignore_errors=True)
