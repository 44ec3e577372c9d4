"""A run that was killed, stopped, extended or moved ends with the bits of one that was left alone."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from contracts.tiny import ACTIONS, FRAME, frames, tiny
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie.actions import START
from reverie.config import replace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.errors import ReverieError
from reverie.models.tokenizers.mae import MAEConfig
from reverie.training import checkpoint
from reverie.training.checkpoint import load
from reverie.training.engine import fit
from reverie.training.objectives import TokenizerObjective

DATA = toy_dataset()
ACTED, NONE = np.array([START, *[0] * 7], np.int32), np.zeros(8, np.float32)
PICTURES = ArrayDataset.from_episodes(
    Spec(FRAME, ACTIONS, 7.0, "noise"), [Episode(x, ACTED, NONE, NONE > 0) for x in frames(8)]
)
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(out):
    step, found = checkpoint.restore(out, lambda *_: HERE, ("weights", "ema", "optimizer"))
    return step, {f"{item}/{name}": np.asarray(leaf) for item, part in found.items() for name, leaf in part.items()}


def same(one, other):
    """Every bit of the last checkpoint and of the log is equal."""
    (step, a), (other_step, b) = state(one), state(other)
    assert step == other_step and a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


class Standby:
    """Processes that train when they get a folder; the next one imports while the one before it works."""

    def __init__(self, cache: Path, steps: int):
        self.env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "JAX_COMPILATION_CACHE_DIR": str(cache),  # the first process compiles for all
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.code = f"import toy_objective; toy_objective.train(input(), {steps})"
        self.waiting = self.spawn()

    def spawn(self) -> subprocess.Popen:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", self.code]
        return subprocess.Popen(command, env=self.env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def train(self, out: Path) -> subprocess.Popen:
        child, self.waiting = self.waiting, self.spawn()
        assert child.stdin
        child.stdin.write(f"{out}\n")
        child.stdin.flush()
        return child

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.waiting.kill()
        self.waiting.communicate()


def end(child: subprocess.Popen) -> None:
    try:
        said = child.communicate(timeout=600)[0]
    finally:
        child.kill()
    assert child.returncode == 0, said


def killed_run_equals_uninterrupted(folder: Path, kills: int, steps: int):
    rng = random.Random(0)
    killed, in_save = folder / "killed", 0
    log = killed / "metrics.jsonl"
    with Standby(folder / "cache", steps) as standby:
        end(standby.train(folder / "alone"))
        for _ in range(kills):
            before = log.stat().st_mtime_ns if log.exists() else 0
            child = standby.train(killed)
            # Wait until it makes progress, then for a random while: the instant falls anywhere in a step or a save.
            while child.poll() is None and (log.stat().st_mtime_ns if log.exists() else 0) == before:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.5 if kills > 3 else 0.2))
            assert child.poll() is None, f"it ended before it was killed: {child.communicate()[0]}"
            child.kill()
            child.communicate()
            in_save += any("tmp" in file.name for file in (killed / "checkpoints").glob("*"))
        end(standby.train(killed))
    print(f"{kills} kills, {in_save} of them while saving")
    same(folder / "alone", killed)


def test_a_run_says_from_where_it_continues(tmp_path, capsys):
    for said in ("\n== run: 4 steps\n", "\n== run: continues from step 3 of 4\n"):
        fit(toy_run(4, save_every=2, report_every=0), tmp_path / "run", dataset=DATA)
        assert said in capsys.readouterr().out
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")


def test_killed_at_random_instants_and_resumed_is_bit_equal(tmp_path):
    killed_run_equals_uninterrupted(tmp_path, kills=3, steps=45)


def test_a_run_can_be_extended_from_where_its_rate_began_to_fall(tmp_path):
    short, long = toy_run(8), toy_run(16)
    straight = fit(long, tmp_path / "straight", dataset=DATA)
    extended = fit(short, tmp_path / "extended", dataset=DATA)
    assert short.optimizer.fall(8) == 6 and checkpoint.steps(extended) == [6, 8]
    fit(long, extended, dataset=DATA)
    same(straight, extended)
    with pytest.raises(ReverieError, match="cannot go from 16 to 8 steps"):
        fit(short, extended, dataset=DATA)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    out = fit(toy_run(4), tmp_path / "run", dataset=DATA)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("checkpoints/**/*")}
    log = (out / "metrics.jsonl").read_bytes()
    fit(toy_run(4, log_every=3, keep=1), out, dataset=DATA)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("checkpoints/**/*")} == before
    assert (out / "metrics.jsonl").read_bytes() == log


def test_another_run_or_other_data_are_refused_and_fresh_starts_over(tmp_path):
    out = fit(toy_run(4), tmp_path / "run", dataset=DATA)
    for change, says in [
        ({"batch": 16}, r"another run \(batch 8 -> 16\)"),
        ({"seed": 4, "optimizer.rate": 0.5}, r"\(seed 3 -> 4, optimizer.rate 0.003 -> 0.5\)"),
        ({"objective.width": 8}, r"objective.width 16 -> 8\).*--fresh"),
    ]:
        with pytest.raises(ReverieError, match=says):
            fit(replace(toy_run(4), **change), out, dataset=DATA)
    with pytest.raises(ReverieError, match="trained on other data"):
        fit(toy_run(4), out, dataset=toy_dataset(seed=1))
    fit(toy_run(2, ToyObjective(width=8)), out, dataset=DATA, fresh=True)
    assert checkpoint.steps(out) == [2]
    assert load(out).out.kernel.shape[0] == 8


def test_a_cosine_run_cannot_be_extended(tmp_path):
    cosine = {"optimizer.schedule": "cosine"}
    out = fit(replace(toy_run(4), **cosine), tmp_path / "run", dataset=DATA)
    with pytest.raises(ReverieError, match="cannot go from 4 to 8 steps"):
        fit(replace(toy_run(8), **cosine), out, dataset=DATA)


def test_where_and_how_a_run_is_computed_may_change(tmp_path, devices, capsys):
    """The mesh, parts of a batch: on other devices with other settings, a line says so, and it goes on."""
    out = fit(toy_run(8, ToyObjective(width=128)), tmp_path / "run", dataset=DATA)
    devices(4)
    capsys.readouterr()
    fit(toy_run(16, ToyObjective(width=128), mesh="fsdp", accumulate=2), out, dataset=DATA)
    said = [line for line in capsys.readouterr().out.splitlines() if "another way" in line]
    assert len(said) == 1 and "mesh 'data' -> 'fsdp'" in said[0] and "accumulate 1 -> 2" in said[0]
    assert checkpoint.steps(out)[-1] == 16


def test_how_a_transformer_is_computed_may_change_and_its_sizes_may_not(tmp_path):
    """Names anywhere in a config: whatever is inside an objective."""
    objective: Any = TokenizerObjective(tokenizer=tiny(MAEConfig()))
    how = {"objective.tokenizer.encoder.remat": "dots", "objective.tokenizer.decoder.scan": True}
    old = toy_run(4, objective=objective, report_every=0)
    new = replace(old, **how, **{"objective.tokenizer.encoder.dtype": "float32"})
    out = tmp_path / "run"
    fit(replace(old, steps=2, length=2), out, dataset=PICTURES, progress=False)
    fit(replace(new, steps=4, length=2), out, dataset=PICTURES, progress=False)
    assert checkpoint.steps(out)[-1] == 4
    with pytest.raises(ReverieError, match="holds another run"):
        fit(replace(new, length=2, **{"objective.tokenizer.width": 16}), out, dataset=PICTURES, progress=False)
