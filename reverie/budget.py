"""The number of training steps that fit in a time budget, from a few timed steps or from earlier training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax

from reverie.data.episode import Dataset
from reverie.errors import ReverieError
from reverie.training import checkpoint, sharding
from reverie.training.engine import Run, fit
from reverie.training.record import read_record

SHARES = {"tokenizer": 0.25, "lam": 0.25, "dynamics": 0.5, "agent": 0.05, "policy": 0.15}  # of the training time
TRIAL = 12  # steps that measure a stage's speed


def check_minutes(minutes: float | None) -> None:
    """Raise ReverieError unless ``minutes`` is above 0 and finite, or None."""
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ReverieError(f"--minutes must be a number above 0, not {minutes:g}.")


def seconds_for(name: str, minutes: float, stages: list[str]) -> float:
    """Return the seconds in which one of several stages trains; the rest is for compiling, reports, evaluation."""
    return SHARES[name] / sum(SHARES[stage] for stage in stages) * minutes * 60 * 0.85


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
    run: Run, place: Path, name: str, dataset: Dataset, unseen: Dataset, minutes: float, stages: list[str]
) -> Run:
    """Return the run with as many steps as fit in its share of ``minutes``, by timing ``TRIAL`` of them."""
    trial = place / f".trial-{name}"

    def tidy() -> None:
        if (trial / "cache").exists():  # the run itself can use the cached tokens
            (place / name).mkdir(exist_ok=True)
            shutil.rmtree(place / name / "cache", ignore_errors=True)
            shutil.move(trial / "cache", place / name / "cache")

    try:
        short = replace(run, steps=TRIAL, log_every=2, report_every=0, save_every=0, loggers=())
        fit(short, trial, dataset=dataset, held_out=unseen, progress=False, fresh=True)
        sharding.wait_for_all("the trial")
        lines = [json.loads(line) for line in (trial / "timing.jsonl").read_text("utf-8").splitlines()]
        sharding.by_first(tidy)
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(trial, ignore_errors=True)
    rate = max(line["steps_per_s"] for line in lines if "steps_per_s" in line)
    steps = max(TRIAL, int(rate * seconds_for(name, minutes, stages)))
    clock = max(steps // 5, 1)
    warmup = min(run.optimizer.warmup, max(steps // 10, 1))
    return replace(
        run, steps=steps, report_every=clock, save_every=clock, optimizer=replace(run.optimizer, warmup=warmup)
    )
