"""How many steps fit into the minutes there are: by a few timed steps, or by what a world took before."""

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

SHARES = {"tokenizer": 0.25, "lam": 0.25, "dynamics": 0.5}  # of the time for training
TRIAL = 12  # steps by which a stage's speed is measured


def check_minutes(minutes: float | None) -> None:
    """Raise ReverieError unless ``minutes`` is a time in which something can be trained, or None."""
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ReverieError(f"a world cannot be learned in {minutes:g} minutes: give a number above 0.")


def begun(name: str, out: Path, place: Path, minutes: float, past: float | None) -> Run | None:
    """Return the run of a stage as it was begun in ``place``, None if it was not.

    The dynamics of a world that is complete in ``out`` after ``past`` minutes become as much longer as the time is.
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
    """Return a run of as many steps as its share of ``minutes`` has room for, measured by a few steps of it."""
    trial = place / f".trial-{name}"

    def tidy() -> None:
        if (trial / "cache").exists():  # tokens are as good for the run itself
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
    share = SHARES[name] / sum(SHARES[stage] for stage in stages)
    steps = max(TRIAL, int(rate * share * minutes * 60 * 0.85))  # the rest: compiling, reports, evaluation
    clock = max(steps // 5, 1)
    warmup = min(run.optimizer.warmup, max(steps // 10, 1))
    return replace(
        run, steps=steps, report_every=clock, save_every=clock, optimizer=replace(run.optimizer, warmup=warmup)
    )
