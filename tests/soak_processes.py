"""Trainings by a job of two processes compute what one process does. Minutes: `make soak`."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import all_done, job
from test_processes import REHEARSAL
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie.training.engine import fit

pytestmark = pytest.mark.soak


def same_log(one: Path, two: Path) -> None:
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, two)]
    for a, b in zip(*(map(json.loads, each) for each in lines), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], str):
                assert a[name] == b[name]
            else:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("layout", ["data", "fsdp", "fsdp=2,tensor=2", "tensor=4"])
def test_two_processes_compute_what_one_does_and_go_on_where_they_stopped(tmp_path, layout, devices):
    devices(4)  # as many as both processes have
    alone = fit(toy_run(8, ToyObjective(width=128), mesh=layout), tmp_path / "alone", dataset=toy_dataset())
    for steps in (4, 8):
        code = (
            "from reverie.training.sharding import connect; assert connect(); from toy_objective import *; "
            f"fit(toy_run({steps}, ToyObjective(width=128), mesh={layout!r}), {str(tmp_path / 'job')!r}, "
            "dataset=toy_dataset())"
        )
        all_done(job("-c", code, devices=2))
    same_log(alone, tmp_path / "job")


@pytest.mark.parametrize("more", [(), ("--minutes", "0.001")], ids=["steps", "minutes"])
def test_a_world_is_made_by_two_processes_as_by_one(tmp_path, more):
    train = (REHEARSAL, "train", "toy-maskgit-latent", *more)
    all_done(job(*train, "--out", str(tmp_path / "job")))
    if not more:  # how many steps fit in a time is another number each time
        all_done(job(*train, "--out", str(tmp_path / "alone"), processes=1, devices=2))
        for stage in ("tokenizer", "lam", "dynamics"):
            same_log(tmp_path / "alone" / stage, tmp_path / "job" / stage)
    assert np.isfinite(json.loads((tmp_path / "job" / "eval.json").read_text())["psnr"]).all()
    again = job(*train, "--out", str(tmp_path / "job"))
    all_done(again)
    assert again[0][1].count("already trained") == 3 and not again[1][1].count("==")
