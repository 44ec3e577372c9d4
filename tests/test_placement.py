"""Where the work of a training step lies on a mesh, read off the compiled program: no number of a run shows it."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from contracts.tiny import ACTIONS, FRAME, eyes, tiny, tokenizer
from flax import nnx

from reverie.data.episode import Spec
from reverie.models import dynamics, lams, tokenizers
from reverie.nn.transformer import TransformerConfig
from reverie.training import engine, flops, hlo, sharding
from reverie.training.blueprint import Blueprint
from reverie.training.cost import state_of
from reverie.training.engine import Run
from reverie.training.hlo import held_bytes
from reverie.training.optim import OptimConfig
from reverie.training.plan import placed

LENGTH = 6
NET = TransformerConfig(width=32, depth=2, heads=2, hidden=128, window=3, scan=True)
FOLDERS = {"dynamics": dynamics, "lams": lams, "tokenizers": tokenizers}
FAMILIES = [(kind, name) for kind, folder in FOLDERS.items() for name in sorted(folder.families())]
SUMS = ("all-gather", "all-reduce", "reduce-scatter")  # what moves weights and sums their gradients
FEW = 400  # numbers: norms, means, and at most one for each token
ADAM = OptimConfig(ema=0.9)


@dataclass(frozen=True)
class Alone:
    """The objective of one model, which is given what frozen models would say."""

    kind: str
    config: Any
    frozen: tuple[str, ...] = ()

    def init(self, rngs, spec, folder):
        return self.config.make(rngs)

    def loss(self, model, batch, key, progress):
        args = (key, progress) if self.kind == "lams" else (key,)
        return model.loss(*batch.values(), *args)


def family(kind: str, name: str, **changes: Any) -> Alone:
    config = dataclasses.replace(tiny(FOLDERS[kind].families()[name](), NET), **changes)
    if kind == "dynamics":
        config = config.fitted(eyes(config), ACTIONS)
    return Alone(kind, config.fitted(FRAME, tokenizer()) if kind == "lams" else config)


def batch_of(objective: Alone, rows: int) -> dict[str, Any]:
    """Shapes of what the loss reads, in the order of its arguments."""
    frames = jax.ShapeDtypeStruct((rows, LENGTH, *FRAME), jnp.uint8)
    if objective.kind == "dynamics":
        actions = jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32)
        return {"latents": jax.eval_shape(eyes(objective.config).encode, frames), "z": actions}
    see = objective.config.make(nnx.Rngs(0)).see if objective.kind == "lams" else lambda frames: frames
    return {"frames": jax.eval_shape(see, frames)}


@cache
def step_of(kind: str, name: str, layout: str) -> "Step":
    """The step of a family on four devices, compiled once. (``count_all`` must hold.)"""
    return Step(family(kind, name), 4, layout)


class Step:
    """The step that ``fit`` would make, compiled for some devices; nothing is computed."""

    def __init__(self, objective: Any, devices: int, layout: str, rows: int = 2, **changes: Any):
        mesh = sharding.make_mesh(layout, jax.devices()[:devices])
        run = Run(
            objective=objective, batch=rows * devices, length=LENGTH, mesh=layout, **{"optimizer": ADAM, **changes}
        )
        blueprint = Blueprint(objective, Spec(FRAME, ACTIONS, 7.0, "noise"), 0, Path())
        whole, batch = state_of(run, blueprint), batch_of(objective, run.batch)
        state = placed(whole, sharding.shardings(mesh, whole))
        batch = placed(batch, dict.fromkeys(batch, sharding.rows(mesh)))
        pace = engine.Pace(*[jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.everywhere(mesh))] * 2)
        traced = engine.compile_step(run, blueprint, mesh, state).trace(state, {}, batch, pace)
        compiled = traced.lower().compile()
        self.flops = flops.count(traced.jaxpr, costliest=True)
        self.devices, self.memory = devices, compiled.memory_analysis()
        self.params, self.arguments = whole.params, held_bytes((state, batch))
        self.weights = {no_ones(shape) for a in leaves(state) for shape in (a.shape, a.shape[1:])}
        self.program = hlo.read(compiled.as_text())

    def sent(self) -> list[str]:
        """What devices send each other, beyond weights, their gradients, and numbers too few to matter."""
        arrays = [(each.kind, shape) for each in self.program.collectives for shape in each.shapes]
        of_weights = {(kind, shape) for kind, shape in arrays if no_ones(shape) in self.weights and kind in SUMS}
        return [
            f"{kind} {shape}" for kind, shape in arrays if math.prod(shape) > FEW and (kind, shape) not in of_weights
        ]


def leaves(*trees: Any) -> list[Any]:
    return jax.tree.leaves(trees)


def no_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n > 1))


def count_all(patch: pytest.MonkeyPatch) -> None:
    """Spread what would be large in real models."""
    patch.setattr(sharding, "SPREAD_FROM", 256)
    patch.setattr("reverie.models.lams.tokens.RECENT", 16)  # every device groups them: its work is not divided


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    count_all(monkeypatch)


def check(step: Step) -> None:
    """No device computes more than its share, sends activations, or keeps more than its part of what can be divided."""
    assert step.program.flops == pytest.approx(step.flops / step.devices, rel=0.01)
    assert not step.sent()
    assert step.memory.argument_size_in_bytes == pytest.approx(step.arguments, rel=0.01)


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_every_device_computes_its_rows_and_is_sent_nothing_but_weights(kind, name):
    """Two rows a device: too few for a share of rows to be taught in another way than the rest."""
    check(step_of(kind, name, "fsdp"))


def test_spreading_weights_costs_no_memory():
    """Temporaries as under "data", where every device has all weights; the state is a quarter, but for small arrays."""
    step, plain = (step_of("dynamics", "maskgit", layout) for layout in ("fsdp", "data"))
    check(plain)
    assert step.memory.temp_size_in_bytes < 1.1 * plain.memory.temp_size_in_bytes
    copied = sum(math.prod(a.shape) * 4 for a in leaves(step.params) if math.prod(a.shape) < 256)
    total = sum(math.prod(a.shape) * 4 for a in leaves(step.params))
    state = 4 * ((total - copied) / 4 + copied)  # weights, their average, two moments
    assert step.memory.argument_size_in_bytes == pytest.approx(state, rel=0.05)
