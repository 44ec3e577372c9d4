"""What a run will cost, before it is trained: parameters, FLOPs of a step, bytes. Programs are traced, not run."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from reverie.data.episode import Spec
from reverie.data.loader import RELEVANT
from reverie.data.tasked import TASK
from reverie.nn.batch import row_keys
from reverie.training import flops
from reverie.training.blueprint import Blueprint
from reverie.training.engine import Run, TrainState, pace_of, train_step


class Cost(NamedTuple):
    """Of one run on one device. parameters: trained weights. flops: of a step, optimiser included.

    Bytes: ``weights`` of all parts of the model, ``optimiser`` its state and running mean, ``gradients``, and
    ``activations``, what the backward pass reads of the forward pass, of one part of a batch.
    """

    parameters: int
    flops: float
    weights: int
    optimiser: int
    gradients: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes in all: 8 % more to 22 % less than XLA reports for the five stages of two toys on a CPU."""
        return self.weights + self.optimiser + self.gradients + self.activations


def cost(run: Run, spec: Spec, folder: Path) -> Cost:
    """Return what a run costs on data like ``spec``.

    ``folder``: where it would be trained. The runs on which it depends are read from there, or are those of
    ``checkpoint.untrained``.
    """
    blueprint = Blueprint(run.objective, spec, run.seed, folder)
    params, rest, frozen = ({n: blueprint.shapes[n] for n in blueprint.parts[part]} for part in blueprint.parts)
    state, batch = state_of(run, blueprint), batch_of(run, spec, blueprint)
    return Cost(
        parameters=sum(math.prod(leaf.shape) for leaf in params.values()),
        flops=flops_of(run, spec, blueprint),
        weights=size_of((params, rest, frozen)),
        optimiser=size_of((state.opt, state.ema)),
        gradients=size_of(params),
        activations=sum(activations(run, blueprint, params, rest, frozen, batch)),
    )


def flops_of(run: Run, spec: Spec, blueprint: Blueprint) -> float:
    """Return the FLOPs of one training step, counted from its program."""

    def step(state: TrainState, frozen: dict, batch: dict) -> Any:
        return train_step(run, blueprint, run.optimizer.make(), state, frozen, batch, pace_of(run, 0))

    frozen = {name: blueprint.shapes[name] for name in blueprint.parts["frozen"]}
    return flops.count(jax.jit(step).trace(state_of(run, blueprint), frozen, batch_of(run, spec, blueprint)).jaxpr)


def batch_of(run: Run, spec: Spec, blueprint: Blueprint) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what a step reads: clips of the data, and what the objective's encoder makes of them."""
    rows = (run.batch, run.length)
    batch = {
        "frames": jax.ShapeDtypeStruct((*rows, *spec.frame), np.uint8),
        "actions": jax.ShapeDtypeStruct((*rows, *spec.actions.shape), spec.actions.dtype),
        "rewards": jax.ShapeDtypeStruct(rows, np.float32),
        "ends": jax.ShapeDtypeStruct(rows, np.bool_),
    }
    if encode := run.objective.encoder:
        batch |= jax.eval_shape(lambda weights, batch: encode(blueprint.merge(weights), batch), blueprint.shapes, batch)
    if spec.tasks:
        batch[TASK] = jax.ShapeDtypeStruct(rows, np.int32)
    if run.relevant:
        batch[RELEVANT] = jax.ShapeDtypeStruct(rows[:1], np.bool_)
    return {name: batch[name] for name in run.objective.reads if name in batch}  # some are read where there are any


def size_of(tree: Any) -> int:
    """Return the bytes of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state_of(run: Run, blueprint: Blueprint) -> TrainState:
    """Return the shapes of the state that a step changes."""
    shapes: Any = blueprint.shapes
    params, rest = ({name: shapes[name] for name in blueprint.parts[part]} for part in ("params", "rest"))
    number: Any = jax.ShapeDtypeStruct((), np.int32)
    opt = jax.eval_shape(run.optimizer.make().init, params)
    return TrainState(number, params, rest, params if run.optimizer.ema else {}, opt, number)


def activations(run: Run, blueprint: Blueprint, params: dict, rest: dict, frozen: dict, batch: dict) -> tuple[int, int]:
    """Return the bytes that the backward pass reads and the forward pass computes, for one part of a batch.

    The first are kept by devices, the second by their hosts (``remat offload``).
    """
    rows = run.batch // run.accumulate
    part = {name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype) for name, leaf in batch.items()}

    def forward(params: dict, rest: dict, frozen: dict, part: dict) -> Any:
        def loss(params: dict) -> Any:
            model, keys_B = blueprint.merge(frozen, params, rest), row_keys(jax.random.key(0), rows)
            return run.objective.loss(model, part, keys_B, jnp.float32(0)).value

        return jax.vjp(loss, params)[1]

    program = jax.make_jaxpr(forward)(params, rest, frozen, part).jaxpr
    given = {*program.invars, *program.constvars}
    kept: Any = {var for var in program.outvars if isinstance(var, Var) and var not in given}
    offloaded = {var for var in kept if var.aval.memory_space == jax.memory.Space.Host}
    return size_of([var.aval for var in kept - offloaded]), size_of([var.aval for var in offloaded])
