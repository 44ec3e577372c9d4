"""Every stage of every kind: written on four devices under fsdp, continued on two under data and on one. Minutes."""

import json
import shutil

import numpy as np
import pytest
from miniature import miniature
from test_presets import RECIPES, noise

from reverie.config import replace
from reverie.training import checkpoint
from reverie.training.engine import fit

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("name", ["toy-maskgit-latent", "square-agent"])
def test_a_stage_goes_on_under_other_layouts_on_other_devices(name, tmp_path, devices):
    data = noise(RECIPES[name].source.spec())
    for stage, run in miniature(RECIPES[name], data.spec.frame).items():
        run = replace(run, batch=4, save_every=1, keep=4)
        losses = {}
        for place, moves in (("alone", [(1, "data", 0)]), ("moved", [(4, "fsdp", 0), (2, "data", 2), (1, "fsdp", 3)])):
            folder = tmp_path / place / stage
            for count, mesh, start in moves:
                devices(count)
                for step in range(start + 1, 5) if start else ():
                    shutil.rmtree(folder / "checkpoints" / str(step))
                fit(replace(run, mesh=mesh), folder, dataset=data, progress=False)
                assert checkpoint.steps(folder)[-1] == 4
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
            losses[place] = [line["loss"] for line in lines if "loss" in line]
        np.testing.assert_allclose(losses["moved"], losses["alone"], rtol=1e-4, err_msg=f"{name}: {stage}")
        # Later stages read codes, and rounding moves a code now and then: both go on from the same stage.
        shutil.rmtree(tmp_path / "moved" / stage)
        shutil.copytree(tmp_path / "alone" / stage, tmp_path / "moved" / stage)
