"""Sharding of activations and weights inside a program that is traced for a mesh of devices.

A rule over shapes shards the arrays of the training state (``training.sharding``). Intermediate results need
constraints as well. With sharded weights and no constraint on activations, XLA makes every device compute the whole
batch, and no number shows it. So activations are always sharded by rows, and weights are gathered where they are used.
Stacked layers are gathered one group at a time, inside the loop over groups, so that no device ever holds all of them.

The engine traces its programs ``traced_on`` a mesh. Elsewhere, as in play, these functions return their argument.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

STACKED = "groups"  # weights of a module of this name are stacked: its transformer gathers them group by group


ROWS = ("data", "fsdp")  # the axes of the mesh over which rows are divided


class Place(NamedTuple):
    """A mesh of devices, and the sharding of a weight in the training state by its dotted name and its shape."""

    mesh: Mesh
    weight: Callable[[str, tuple[int, ...]], NamedSharding]


_here: ContextVar[Place | None] = ContextVar("place", default=None)


def traced_on(place: Place, fn: Callable, *first: Any) -> Callable:
    """Return ``fn`` with its ``first`` arguments bound, to be traced for a mesh; one device changes nothing."""

    def placed(*args: Any) -> Any:
        token = _here.set(place if place.mesh.size > 1 else None)
        try:
            return fn(*first, *args)
        finally:
            _here.reset(token)

    return placed


def row_axes(mesh: Mesh, rows: int) -> tuple[str, ...]:
    """Return the axes of a mesh over which so many rows can be divided evenly: ``ROWS``, one of them, or none."""
    options = (ROWS, *((name,) for name in reversed(ROWS)))
    return next((axes for axes in options if rows % math.prod(mesh.shape[name] for name in axes) == 0), ())


def by_rows(tree: Any) -> Any:
    """Shard activations by rows (the first axis), over as many devices as divide these evenly."""
    if (here := _here.get()) is None:
        return tree

    def spread(array: Array) -> Array:
        if not array.ndim or not (axes := row_axes(here.mesh, array.shape[0])):
            return array
        return jax.lax.with_sharding_constraint(array, NamedSharding(here.mesh, PartitionSpec(axes)))

    return jax.tree.map(spread, tree)


def gathered(weights: Any, stack: int = 0, dtype: Any = None) -> Any:
    """Return weights replicated on every device; their gradients are reduce-scattered to each device's shard.

    ``stack``: the number of groups, if these are one group's weights. ``dtype``: matrices are cast to it first, so that
    they and their gradients are communicated in that type (decision 007).
    """
    if (here := _here.get()) is None:
        return weights
    lead = (stack,) if stack else ()
    everywhere = NamedSharding(here.mesh, PartitionSpec())

    def whole(path: Any, weight: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        stored = here.weight(name, (*lead, *weight.shape))
        if stored.is_fully_replicated:
            return weight
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            return jax.lax.with_sharding_constraint(weight, everywhere)
        part = NamedSharding(stored.mesh, PartitionSpec(*stored.spec[len(lead) :]))
        travels = weight.dtype if dtype is None or weight.ndim < 2 else dtype
        return _gather(part, everywhere, travels, weight)

    return jax.tree_util.tree_map_with_path(whole, weights)


def gathered_but_stacks(weights: dict[str, Array]) -> dict[str, Array]:
    """``gathered`` for all weights, by dotted name, except those that a loop over groups gathers."""
    return weights | gathered({name: leaf for name, leaf in weights.items() if STACKED not in name.split(".")})


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gather(part: NamedSharding, everywhere: NamedSharding, travels: Any, weight: Array) -> Array:
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(weight.astype(travels), part), everywhere)


def _gather_forward(part, everywhere, travels, weight):
    return _gather(part, everywhere, travels, weight), jnp.zeros((), weight.dtype)


def _gather_back(part, everywhere, travels, like, gradient):
    return (jax.lax.with_sharding_constraint(gradient, part).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_back)
