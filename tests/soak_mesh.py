"""Eight devices, every family and every axis of the mesh; a checkpoint of eight devices goes on on two and on one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from processes import all_done, job
from test_placement import FAMILIES
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie.training.checkpoint import load, named
from reverie.training.engine import fit

pytestmark = pytest.mark.soak

LAYOUTS = [
    "data",
    "fsdp",
    "data=2,fsdp=4",
    "data=4,tensor=2",
    "fsdp=4,tensor=2",
    "data=4,sequence=2",
    "sequence=4,tensor",
]

ASK = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from reverie.training import sharding
from test_mesh import check, trained

sharding.SPREAD_FROM = 256
kind, name, *layouts = sys.argv[1:]
for layout in layouts:
    check(kind, name, layout, 8)
    one, many = (trained(kind, name, *how).logged[-1]["loss"] for how in (("data", 1), (layout, 8)))
    print(f"{kind}/{name} {layout}: loss {many:.7f}, on one device {one:.7f}", flush=True)
"""


def ask(kind: str, name: str, *layouts: str) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", ASK, kind, name, *layouts]
    said = subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(said)
    return said


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_eight_devices_compute_what_one_does(kind, name):
    ask(kind, name, *LAYOUTS)


def test_heads_that_cannot_be_divided_are_computed_by_all():
    """Two heads on tensor=8: the log says so; hidden units are divided all the same."""
    said = ask("tokenizers", "mae", "tensor=8")
    assert "all heads and key/value heads (2, 2), since these cannot be divided by tensor=8" in said


def test_a_checkpoint_of_eight_devices_goes_on_on_two_and_on_one(tmp_path):
    for steps, devices, layout in ((2, 8, "data=2,fsdp=2,tensor=2"), (4, 2, "tensor=2"), (6, 1, "fsdp")):
        code = (
            f"from toy_objective import *; fit(toy_run({steps}, ToyObjective(width=128), mesh={layout!r}), "
            f"{str(tmp_path / 'moved')!r}, dataset=toy_dataset())"
        )
        all_done(job("-c", code, processes=1, devices=devices))
    straight = fit(toy_run(6, ToyObjective(width=128)), tmp_path / "straight", dataset=toy_dataset())
    a, b = (named(load(folder)) for folder in (straight, tmp_path / "moved"))
    for name, array in a.items():
        np.testing.assert_allclose(np.asarray(array), np.asarray(b[name]), atol=2e-4, err_msg=name)
