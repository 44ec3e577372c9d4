"""Every axis of the mesh computes what one device computes, and divides what the table of rules says it divides."""

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import ACTIONS, FRAME
from test_placement import ADAM, LENGTH, batch_of, family

from reverie.data.episode import Spec
from reverie.errors import ReverieError
from reverie.training import engine, hlo, sharding
from reverie.training.blueprint import Blueprint
from reverie.training.engine import Run

ROWS = 32  # so many that activations are larger than the largest weight


class Trained(NamedTuple):
    logged: list[dict[str, float]]
    state: Any
    sent: dict[str, int]  # the largest array of each kind of communication, in numbers


def rows_of(objective: Any, rows: int) -> dict[str, np.ndarray]:
    """Random numbers of the types and shapes that a loss reads."""
    rng = np.random.default_rng(0)

    def some(like: Any) -> np.ndarray:
        if jnp.issubdtype(like.dtype, jnp.integer):
            return rng.integers(0, 255 if like.dtype == np.uint8 else 3, like.shape).astype(like.dtype)
        return rng.uniform(-1, 1, like.shape).astype(like.dtype)

    return jax.tree.map(some, batch_of(objective, rows))


@cache
def trained(kind: str, name: str, layout: str, devices: int) -> Trained:
    """Train two steps as the engine does, on a mesh."""
    objective: Any = family(kind, name)
    mesh = sharding.make_mesh(layout, jax.devices()[:devices])
    run = Run(objective=objective, batch=ROWS, length=LENGTH, mesh=layout, optimizer=ADAM)
    blueprint = Blueprint(objective, Spec(FRAME, ACTIONS, 7.0, "noise"), 0, Path())
    state, frozen, *_ = engine._state(run, Path(), blueprint, mesh, None)
    batch = sharding.put_batch(mesh, rows_of(objective, run.batch))
    paces = [sharding.put(engine.pace_of(run, n), sharding.everywhere(mesh)) for n in range(2)]
    step = engine.compile_step(run, blueprint, mesh, state).lower(state, frozen, batch, paces[0]).compile()
    sent: dict[str, int] = {}
    for each in hlo.read(step.as_text()).collectives:
        sent[each.kind] = max(sent.get(each.kind, 0), *map(math.prod, each.shapes))
    logged = []
    for pace in paces:
        state, metrics = step(state, frozen, batch, pace)
        logged.append({key: float(value) for key, value in metrics.items()})
    return Trained(logged, state, sent)


def check(kind: str, name: str, layout: str, devices: int) -> None:
    """Compare a layout with one device, each array's sharding with the table, and what is sent with weights."""
    one, many = trained(kind, name, "data", 1), trained(kind, name, layout, devices)
    for a, b in zip(one.logged, many.logged, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5, abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    sizes = sharding.make_mesh(layout, jax.devices()[:devices]).shape
    for array in jax.tree.leaves((many.state.params, many.state.ema, many.state.opt)):
        held = len({str(shard.index) for shard in array.addressable_shards})
        large = array.size >= sharding.SPREAD_FROM
        if not large or all(size % devices == 0 for size in array.shape[-2:]):
            assert held == (sizes["fsdp"] * sizes["tensor"] if large else 1), array.shape
    largest = max(array.size for array in jax.tree.leaves(many.state.params))
    activations = {how for how, size in many.sent.items() if size > largest}
    sums = {"all-reduce"} if sizes["tensor"] > 1 else set()
    assert activations <= sums | ({"all-gather"} if sizes["sequence"] > 1 else set()), many.sent


@pytest.mark.parametrize("layout", ["fsdp=2,tensor=2", "sequence=2,tensor=2"])
def test_a_mesh_computes_what_one_device_computes(monkeypatch, layout):
    monkeypatch.setattr(sharding, "SPREAD_FROM", 256)
    check("dynamics", "maskgit", layout, 4)


@pytest.mark.parametrize(
    ("layout", "devices", "sizes"),
    [
        ("data", 4, (4, 1)),
        ("fsdp", 4, (1, 4)),
        ("fsdp=2", 4, (2, 2)),
        ("data=2,fsdp", 4, (2, 2)),
        ("fsdp=2, data=1", 2, (1, 2)),
    ],
)
def test_a_mesh_is_laid_over_all_devices(one_device, layout, devices, sizes):
    assert tuple(sharding.make_mesh(layout, one_device()[:devices]).shape.values()) == (*sizes, 1, 1)


@dataclass(frozen=True)
class Chip:
    """What JAX knows of a TPU when it lays out a mesh."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0


def test_slices_of_tpus_lie_along_data_alone():
    """Two slices of 2 x 2, given in any order: every axis but "data" stays within a slice."""
    chips = [Chip(i, i % 2, (i // 2 % 2, i // 4, 0)) for i in range(8)]
    for layout, sizes in (("data", (8, 1)), ("data=2,fsdp", (2, 4)), ("data=4,fsdp=2", (4, 2))):
        mesh = sharding.make_mesh(layout, chips)
        assert tuple(mesh.shape.values()) == (*sizes, 1, 1)
        first, second = np.split(mesh.devices, 2)
        assert {chip.slice_index for chip in first.flat} == {0} and {chip.slice_index for chip in second.flat} == {1}
    with pytest.raises(ReverieError, match="has data 1, which 2 slices do not divide: .* as in 'data=2,fsdp'"):
        sharding.make_mesh("fsdp", chips)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("fdsp", "Did you mean 'fsdp'"),
        ("data=2,data=2", "'data=2' names an axis again."),
        ("data=0", "'data=0' has no size: a whole number above 0."),
        ("", "'' is not an axis"),
        ("data,fsdp", "only one axis can take all devices"),
        ("fsdp=3", "cannot be laid over 4 devices (data 1 x fsdp 3)"),
        ("data=2,fsdp=4", "cannot be laid over 4 devices (data 2 x fsdp 4)"),
    ],
)
def test_a_mesh_that_fits_no_devices_is_refused_in_a_line(one_device, layout, said):
    with pytest.raises(ReverieError, match=re.escape(said)):
        sharding.make_mesh(layout, one_device())
