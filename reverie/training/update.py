"""One update of the training state: the gradient of a batch, the optimiser, and statistics.

Everything here is pure and traced. The state is ``engine.TrainState``, the run ``engine.Run``.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array

from reverie.nn import placement
from reverie.nn.batch import Loss, gradient, row_keys, settle
from reverie.nn.step import made_with
from reverie.training import health
from reverie.training.blueprint import Blueprint, Weights
from reverie.training.optim import average

Scalars = dict[str, Array]


def train_step(
    run: Any,
    blueprint: Blueprint,
    tx: optax.GradientTransformation,
    state: Any,
    frozen: Weights,
    batch: dict,
    pace: Any,
) -> tuple[Any, Scalars]:
    """Return the state after one update, and metrics; pure. The program does not depend on the number of steps."""
    rows, loss = rows_of(run, state, batch), loss_of(run, blueprint, state, frozen, pace)
    return update(run, blueprint, tx, state, frozen, pace, *gradient(loss, state.params, rows, run.accumulate))


def step_key_of(run: Any, state: Any) -> Array:
    """Return the random key of the next step."""
    return jax.random.fold_in(jax.random.key(run.seed), state.step)


def rows_of(run: Any, state: Any, batch: dict, first: int | Array = 0) -> tuple[dict, Array]:
    """Return rows of a batch, from number ``first`` on, and their keys."""
    key = jax.random.split(step_key_of(run, state))[0]
    return batch, row_keys(key, len(next(iter(batch.values()))), first)


def loss_of(
    run: Any, blueprint: Blueprint, state: Any, frozen: Weights, pace: Any
) -> Callable[[Weights, tuple[dict, Array]], Loss]:
    """Return the loss of (parameters, rows) in the next step."""

    def loss(params: Weights, rows: tuple[dict, Array]) -> Loss:
        model = blueprint.merge(*map(placement.gathered_but_stacks, (frozen, params, state.rest)))
        part, keys_B = placement.by_rows(rows)
        return run.objective.loss(model, part, keys_B, pace.progress)

    return made_with(step_key_of(run, state), loss)


def update(
    run: Any,
    blueprint: Blueprint,
    tx: optax.GradientTransformation,
    state: Any,
    frozen: Weights,
    pace: Any,
    grads: Weights,
    found: Loss,
) -> tuple[Any, Scalars]:
    """Return the state after an update with the gradient and the loss of a batch, and metrics."""
    metrics = {name: each.value for name, each in found.metrics.items()} | {"loss": found.value}
    model = blueprint.merge(frozen, state.params, state.rest)
    settle(model, found.notes, jax.random.split(step_key_of(run, state))[1], pace.progress)
    norm = optax.tree.norm(grads)
    guard = health.guard(state, metrics["loss"], norm, run.max_skipped)
    rest = guard.choose(blueprint.split(model, "rest"), state.rest)
    updates, opt = tx.update(grads, state.opt, state.params)
    # Chosen before averages read them: chosen afterwards, old and new weights would need room beside each other.
    params = guard.choose(optax.apply_updates(state.params, optax.tree.scale(pace.rate, updates)), state.params)
    ema = guard.choose(average(state.ema, params, run.optimizer.ema, state.step + 1), state.ema)
    opt = guard.choose(opt, state.opt)
    state = state._replace(step=guard.step, params=params, rest=rest, ema=ema, opt=opt, skipped=guard.skipped)
    return state, metrics | {"grad_norm": norm, "learning_rate": pace.rate, "fault": guard.fault}
