"""With ``exact``, a run has the same bits on any number of devices."""

import dataclasses

import pytest
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie.errors import ReverieError
from reverie.training import checkpoint, exact
from reverie.training.checkpoint import load
from reverie.training.engine import fit

DATA = toy_dataset()


def test_the_same_bits_on_one_device_and_on_four(tmp_path, devices, monkeypatch):
    """Two steps on one, then two on four, as four on four. (The pool of threads is the same throughout.)"""
    monkeypatch.setattr(exact, "_pool", lambda: exact.SHARDS)
    run = toy_run(2, ToyObjective(width=128), exact=True, report_every=2, batch=8)
    longer = dataclasses.replace(run, steps=4)
    devices(1)
    moved = fit(run, tmp_path / "moved", dataset=DATA)
    devices(4)
    fit(longer, moved, dataset=DATA)
    straight = fit(longer, tmp_path / "straight", dataset=DATA)
    a, b = ((folder / "metrics.jsonl").read_bytes() for folder in (straight, moved))
    assert a == b and a.count(b"\n") >= 4
    for (name, x), y in zip(
        checkpoint.named(load(straight)).items(), checkpoint.named(load(moved)).values(), strict=True
    ):
        assert x.tobytes() == y.tobytes(), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 12}, "make 12 a multiple of 8"),
        ({"mesh": "fsdp"}, "needs one process, 1, 2, 4 or 8 devices and the mesh 'data'"),
        ({}, r"needs 8 threads, and XLA has \d+: start with NPROC=8 set"),
    ],
)
def test_what_cannot_be_exact_is_refused_in_a_line(tmp_path, devices, change, said):
    devices(4)
    with pytest.raises(ReverieError, match=said):
        fit(toy_run(2, exact=True, **({"batch": 8} | change)), tmp_path / "run", dataset=DATA)
    assert not (tmp_path / "run").exists()
