"""What takes minutes: twenty kills at random instants, also while saving; and a job of two processes.

Left out unless asked for: `make soak`.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_resume import end, killed_run_equals_uninterrupted
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie.training.engine import fit

pytestmark = pytest.mark.soak


def test_twenty_kills_leave_no_trace(tmp_path):
    killed_run_equals_uninterrupted(tmp_path, kills=20, steps=300)


@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_two_processes_compute_what_one_does_and_go_on_where_they_stopped(tmp_path, layout):
    alone = fit(toy_run(8, ToyObjective(width=128), mesh=layout), tmp_path / "alone", dataset=toy_dataset())
    for steps in (4, 8):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = [member(i, port, tmp_path / "job", steps, layout) for i in range(2)]
        for child in job:
            end(child)
    one, two = ((out / "metrics.jsonl").read_text().splitlines() for out in (alone, tmp_path / "job"))
    for a, b in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, err_msg=name)


def member(index: int, port: int, out: Path, steps: int, layout: str) -> subprocess.Popen:
    """One of two processes with two devices each."""
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
    here = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = (
        "from reverie.training.sharding import connect; assert connect(); from toy_objective import *; "
        f"fit(toy_run({steps}, ToyObjective(width=128), mesh={layout!r}), {str(out)!r}, dataset=toy_dataset())"
    )
    env = os.environ | job | here
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
