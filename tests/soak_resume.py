"""What takes an hour: kills at random instants of every stage, most of them while saving; `make soak`.

Two hundred times a training is stopped, its folder is copied, and it goes on: a copy is what SIGKILL would have left,
since that runs nothing and takes nothing back. Every copy is resumed. Twenty more processes are killed in earnest.
"""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from miniature import miniature
from test_presets import RECIPES, noise

from reverie.config import replace
from reverie.training import engine
from reverie.training.engine import Run, fit

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("REVERIE_KILLS", "200"))


def test_twenty_kills_leave_no_trace(tmp_path):
    from test_resume import killed_run_equals_uninterrupted

    killed_run_equals_uninterrupted(tmp_path, kills=20, steps=300)


def runs() -> dict[tuple[str, str], Run]:
    """The stages of two recipes, which have every kind of stage between them; each saves at every step."""
    often = {"steps": 36, "log_every": 1, "report_every": 0, "save_every": 1, "keep": 2}
    made = {}
    for name in ("toy-maskgit-latent", "square-agent"):
        stages = miniature(RECIPES[name], RECIPES[name].source.spec().frame)
        made |= {(name, stage): replace(run, **often) for stage, run in stages.items()}
    return made


def work(name: str, stage: str, folder: Path) -> None:
    """What a process does when it is stopped."""
    fit(runs()[name, stage], folder / stage, dataset=noise(RECIPES[name].source.spec()), progress=False)


def begin(*given) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soak_resume"])
    child = context.Process(target=work, args=given)
    child.start()
    return child


def copies(live: Path, name: str, stage: str, to: Path, count: int, rng: random.Random) -> None:
    """Fill ``to`` with folders as a process leaves them that is killed while it trains ``live / stage``."""
    log = live / stage / "metrics.jsonl"
    shutil.rmtree(to, ignore_errors=True)
    made = 0
    while made < count:
        child, lines, took = begin(name, stage, live), -1, 1.0
        while made < count and child.exitcode is None:
            began = time.monotonic()
            while child.exitcode is None and (now := written(log)) == lines:  # every step has its instant
                child.join(0.002)
            took, lines = (time.monotonic() - began if lines > 0 else took), now
            child.join(rng.uniform(0, took))
            if child.exitcode is None and log.parent.is_dir():
                os.kill(child.pid, signal.SIGSTOP)
                shutil.copytree(log.parent, to / f"{made:03}")
                os.kill(child.pid, signal.SIGCONT)
                made += 1
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL), "it failed"
        shutil.rmtree(log.parent)


def written(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def when(out: Path) -> str:
    """What a process was at when it left a folder."""
    names = [path.name for path in out.glob("checkpoints/*")]
    if any("tmp" in name or name.endswith((".new", ".old")) for name in names):
        return "saving"
    return "training" if names else "starting"


def compiled_once(monkeypatch) -> None:
    """Let all trainings of a run share one compiled step."""
    made, compile_step = {}, engine.compile_step

    def compiled(run: Run, *given):
        if run not in made:
            made[run] = compile_step(run, *given)
        return made[run]

    monkeypatch.setattr(engine, "compile_step", compiled)


def test_kills_of_every_stage_leave_no_trace(tmp_path, monkeypatch, capfd):
    from test_resume import same

    compiled_once(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    rng, kinds, seen = random.Random(0), runs(), Counter[str]()
    for number, ((name, stage), run) in enumerate(kinds.items()):
        alone, live, killed = (tmp_path / place / name for place in ("alone", "live", "killed"))
        data, seldom = noise(RECIPES[name].source.spec()), replace(run, save_every=0)
        fit(seldom, alone / stage, dataset=data, progress=False)
        live.mkdir(parents=True, exist_ok=True)
        count = KILLS * (number + 1) // len(kinds) - KILLS * number // len(kinds)
        copies(live, name, stage, tmp_path / "copies", count, rng)
        kills = sorted((tmp_path / "copies").iterdir())
        for copy in kills:
            seen[when(copy)] += 1
            shutil.rmtree(killed / stage, ignore_errors=True)
            shutil.copytree(copy, killed / stage)
            fit(seldom, killed / stage, dataset=data, progress=False)
            same(alone / stage, killed / stage)
        shutil.copytree(alone / stage, live / stage)
        with capfd.disabled():
            print(f"{name}, {stage}: {Counter(map(when, kills))}", flush=True)
    with capfd.disabled():
        print(f"{seen.total()} kills: {dict(seen)}")
    said = capfd.readouterr().err
    assert "damaged" not in said and "missing" not in said
    assert seen["saving"] >= KILLS // 4
