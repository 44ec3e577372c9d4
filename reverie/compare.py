"""Compute-matched comparison of dynamics: the same data, equal training FLOPs, several seeds, one table.

A comparison is a folder, and the same command resumes it::

    OUT/data/  OUT/comparison.json  OUT/table.{json,md,png}
    OUT/seed-0/codes/  vectors/  lam/  maskgit-true/  maskgit-latent/  causal-true/  …

Rows of one seed share data, tokenizers and the latent action model. The number of steps of a row follows from the FLOPs
of one step, optimiser included, counted from its program.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from reverie import config
from reverie.bounded import read_json
from reverie.checksums import read_signed
from reverie.data.loader import clips
from reverie.data.store import open_dataset
from reverie.data.writing import write_source
from reverie.errors import ReverieError
from reverie.evaluation.measure import Numbers, evaluate, speed_of
from reverie.evaluation.pool import pool
from reverie.evaluation.report import write_report
from reverie.evaluation.rows import curves, markdown
from reverie.evaluation.video import write_png
from reverie.nn.compiled import cache_compilations
from reverie.presets.comparison import Comparison
from reverie.training import checkpoint
from reverie.training.blueprint import Blueprint
from reverie.training.cost import flops_of
from reverie.training.engine import Run, fit

MADE = "comparison.json"
ACTIONS = ("true", "latent")


def compare(made: Comparison, out: Path, seeds: int = 3, jobs: int = 2) -> Path:
    """Train and measure every row of a comparison, ``jobs`` at a time, and write its table; return the folder.

    Raises ReverieError when the folder holds another comparison.
    """
    if seeds < 1 or jobs < 1:
        raise ReverieError("a comparison needs at least one seed and one job.")
    out, began = Path(out).absolute(), time.perf_counter()
    rows = [f"{family}-{actions}" for family in made.dynamics for actions in ACTIONS]
    groups = list(made.tokenizers), ["lam"], rows  # each needs the ones before it
    named = [[f"seed-{seed}/{stage}" for seed in range(seeds) for stage in stages] for stages in groups]
    todo = [[name for name in names if not _is_done(made, out / name)] for names in named]
    _begin(made, out, sum(map(len, todo)))
    for names in filter(None, todo):
        with workers(jobs) as processes:
            working = {processes.submit(work, out, name): name for name in names}
            for future in as_completed(working):
                minutes = (time.perf_counter() - began) / 60
                print(f"{working[future]}: {future.result()} steps ({minutes:.1f} minutes)", flush=True)
    found = [_row(made, out, row, seeds) for row in rows]
    table = {"comparison": config.to_json(made), "rows": found}
    (out / "table.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(made.about, found), encoding="utf-8")
    write_png(out / "table.png", curves(found))
    return out


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for ``jobs`` rows at a time, since one small network does not use two cores or a GPU fully.

    Each may use an equal share of a GPU's memory. Without that, JAX in the first process reserves 75 % of it, and too
    little is left for a second one. Settings of that memory in the environment are respected.

    None outlives this process. If the block ends with an error or Ctrl-C, rows are saved and stop at once.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    begin = {"initializer": _begin_worker, "initargs": (jobs, theirs)}
    with theirs, ours, ProcessPoolExecutor(jobs, context, **begin) as processes:
        try:
            yield processes
        except BaseException:
            ours.close()
            processes.shutdown(wait=True, cancel_futures=True)
            raise


def _begin_worker(jobs: int, parent: Connection) -> None:
    # JAX reads these when the process first uses a device.
    said = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE")
    if jobs > 1 and not any(name in os.environ for name in said):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = f"{0.9 / jobs:.3f}"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    parent.poll(None)  # until its other end is closed, by the parent or by its death
    os.kill(os.getpid(), signal.SIGTERM)  # what nohup does not hold up
    started_by = multiprocessing.parent_process()
    assert started_by
    started_by.join()  # it waits for the row to be saved, unless it is dead
    os._exit(1)


def work(out: Path, name: str) -> int:
    """Train one row, or a model that rows share; also evaluate a row. Returns its steps."""
    cache_compilations()
    made = config.from_json(read_json(out / MADE))
    folder, dataset, held_out = out / name, open_dataset(out / "data", "train"), open_dataset(out / "data", "val")
    run = run_of(made, name)
    if folder.name in shared_runs(made):
        fit(run, folder, dataset=dataset, held_out=held_out, progress=False)
        return run.steps
    flop = flops_of(run, dataset.spec, Blueprint(run.objective, dataset.spec, run.seed, folder))
    run = replace(run, steps=max(1, round(made.flops / flop)))
    fit(run, folder, dataset=dataset, held_out=held_out, progress=False)
    world = checkpoint.load(folder)
    how: Any = {"speed": False, "sessions": 0, "trained": run.length, "practice": dataset}
    numbers, pictures = evaluate(world, held_out, clips=made.clips, horizon=made.horizon, **how)
    numbers |= {"steps": run.steps, "training_flop": run.steps * flop}
    shutil.rmtree(folder / "cache", ignore_errors=True)
    write_report(numbers, pictures, folder)
    return run.steps


def shared_runs(made: Comparison) -> dict[str, Run]:
    """The runs that rows share, by the name of their folder."""
    return {**made.tokenizers, "lam": made.lam}


def run_of(made: Comparison, name: str) -> Run:
    """Return the run of one folder of a comparison, such as "seed-0/codes" or "seed-2/causal-latent"."""
    seed, _, stage = name.partition("/")
    family, _, actions = stage.partition("-")
    run = (shared_runs(made) | made.dynamics)[family]
    if actions == "latent":
        run = replace(run, objective=config.replace(run.objective, lam="../lam"))
    return replace(run, data="../data", seed=int(seed.removeprefix("seed-")))


def _begin(made: Comparison, out: Path, left: int) -> None:
    """Write what the rows share, unless it is there; say before that what the ``left`` trainings are."""
    text = json.dumps(config.to_json(made), indent=1) + "\n"
    words = {"about": made.about, "takes": made.takes}  # texts may have changed since
    if (out / MADE).exists() and config.to_json(config.from_json(read_json(out / MADE))) | words != json.loads(text):
        raise ReverieError(f"'{out}' holds another comparison, or one of an older version: choose another --out.")
    if left:
        print(f"{made.about}: {left} models to train in '{out}'. All of it takes {made.takes}.", flush=True)
    if not (out / "data").exists():
        write_source(out / "data", made.source)
    (out / MADE).write_text(text, encoding="utf-8")


def _is_done(made: Comparison, folder: Path) -> bool:
    if folder.name in shared_runs(made):
        return checkpoint.is_done(folder, run_of(made, f"{folder.parent.name}/{folder.name}"))
    return (folder / "eval.json").exists()


def _row(made: Comparison, out: Path, row: str, seeds: int) -> Numbers:
    """Return one row of the table: means over seeds, and the first seed's speed, measured while nothing else runs."""
    folders = [out / f"seed-{seed}" / row for seed in range(seeds)]
    pooled = pool([read_signed(folder / "eval.json") for folder in folders])
    timed = folders[0] / "speed.json"
    if not timed.exists():
        world: Any = checkpoint.load(folders[0])
        context = world.config.context
        clip = clips(open_dataset(out / "data", "val"), length=context, count=1, seed=0)
        speed = speed_of(world, clip["frames"][0], clip["actions"][0])
        timed.write_text(json.dumps(speed) + "\n", encoding="utf-8")
    family, _, actions = row.partition("-")
    return {"family": family, "actions": actions, **pooled, **read_json(timed)}
