"""Sharding of activations and weights inside a program that is traced for a mesh of devices.

A rule over shapes shards the arrays of the training state (``training.sharding``). Intermediate results need
constraints as well. With sharded weights and no constraint on activations, XLA makes every device compute the whole
batch, and no number shows it. So activations are always sharded by rows, and weights are gathered where they are used.
Stacked layers are gathered one group at a time, inside the loop over groups, so that no device ever holds all of them.

The engine traces its programs ``traced_on`` a mesh. Elsewhere, as in play, these functions return their argument.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

STACKED = "groups"  # weights of a module of this name are stacked: its transformer gathers them group by group


class Place(NamedTuple):
    """Shardings: of activations (by rows), of arrays replicated on every device, and of a weight by its shape."""

    rows: NamedSharding
    everywhere: NamedSharding
    weight: Callable[[tuple[int, ...]], NamedSharding]


_here: ContextVar[Place | None] = ContextVar("place", default=None)


def traced_on(place: Place, fn: Callable, *first: Any) -> Callable:
    """Return ``fn`` with its ``first`` arguments bound, to be traced for a mesh; one device changes nothing."""

    def placed(*args: Any) -> Any:
        token = _here.set(place if place.rows.mesh.size > 1 else None)
        try:
            return fn(*first, *args)
        finally:
            _here.reset(token)

    return placed


def by_rows(tree: Any) -> Any:
    """Shard activations by rows (the first axis), if the number of devices divides these."""
    if (here := _here.get()) is None:
        return tree

    def spread(array: Array) -> Array:
        fits = array.ndim > 0 and array.shape[0] % here.rows.mesh.size == 0
        return jax.lax.with_sharding_constraint(array, here.rows) if fits else array

    return jax.tree.map(spread, tree)


def gathered(weights: Any, stack: int = 0, dtype: Any = None) -> Any:
    """Return weights replicated on every device; their gradients are reduce-scattered to each device's shard.

    ``stack``: the number of groups, if these are one group's weights. ``dtype``: matrices are cast to it first, so that
    they and their gradients are communicated in that type (decision 007).
    """
    if (here := _here.get()) is None:
        return weights
    lead = (stack,) if stack else ()

    def whole(weight: Array) -> Array:
        stored = here.weight((*lead, *weight.shape))
        if stored.is_fully_replicated:
            return weight
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            return jax.lax.with_sharding_constraint(weight, here.everywhere)
        part = NamedSharding(stored.mesh, PartitionSpec(*stored.spec[len(lead) :]))
        travels = weight.dtype if dtype is None or weight.ndim < 2 else dtype
        return _gather(part, here.everywhere, travels, weight)

    return jax.tree.map(whole, weights)


def gathered_but_stacks(weights: dict[str, Array]) -> dict[str, Array]:
    """``gathered`` for all weights, by dotted name, except those that a loop over groups gathers."""
    return {name: leaf if STACKED in name.split(".") else gathered(leaf) for name, leaf in weights.items()}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gather(part: NamedSharding, everywhere: NamedSharding, travels: Any, weight: Array) -> Array:
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(weight.astype(travels), part), everywhere)


def _gather_forward(part, everywhere, travels, weight):
    return _gather(part, everywhere, travels, weight), jnp.zeros((), weight.dtype)


def _gather_back(part, everywhere, travels, like, gradient):
    return (jax.lax.with_sharding_constraint(gradient, part).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_back)
