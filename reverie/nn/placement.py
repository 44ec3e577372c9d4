"""Sharding of activations and weights inside a program that is traced for a mesh of devices.

A rule over shapes shards the arrays of the training state (``training.sharding``). Intermediate results need
constraints as well. With sharded weights and no constraint on activations, XLA makes every device compute the whole
batch, and no number shows it. So activations are always sharded by rows, and weights are gathered where they are used.
Stacked layers are gathered one group at a time, inside the loop over groups, so that no device ever holds all of them.

The axes "tensor" and "sequence" split the work of a group of layers further (``nn.split``).

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
    """A mesh, and the shardings of a weight by its name and shape: in the training state, and where it is used."""

    mesh: Mesh
    stored: Callable[[str, tuple[int, ...]], NamedSharding]
    used: Callable[[str, tuple[int, ...]], NamedSharding]


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


def spread(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """Return how activations (B, T, ...) are sharded: rows over ``ROWS``, or over one of these, as far as they divide.

    Frames are over "sequence", if they divide too.
    """
    options = (ROWS, *((name,) for name in reversed(ROWS)), ())
    rows = next(axes for axes in options if shape[0] % math.prod(mesh.shape[name] for name in axes) == 0)
    frames = mesh.shape["sequence"] > 1 and len(shape) > 1 and shape[1] % mesh.shape["sequence"] == 0
    return PartitionSpec(rows or None, "sequence") if frames else PartitionSpec(rows or None)


def by_rows(tree: Any) -> Any:
    """Shard activations by rows (the first axis) and frames (the second), over as many devices as divide these."""
    if (here := _here.get()) is None:
        return tree

    def constrain(array: Array) -> Array:
        if not array.ndim or not any(axes := spread(here.mesh, array.shape)):
            return array
        return jax.lax.with_sharding_constraint(array, NamedSharding(here.mesh, axes))

    return jax.tree.map(constrain, tree)


def gathered(weights: Any, stack: int = 0, dtype: Any = None, cut: bool = True) -> Any:
    """Return weights as they are used: whole, or still cut along "tensor" if ``cut``.

    Their gradients are reduce-scattered to each device's shard.
    ``stack``: the number of groups, if these are one group's weights. ``dtype``: matrices are cast to it first, so that
    they and their gradients are communicated in that type (decision 007).
    """
    if (here := _here.get()) is None:
        return weights
    lead = (stack,) if stack else ()

    def whole(path: Any, weight: Array) -> Array:
        name, shape = jax.tree_util.keystr(path, simple=True, separator="."), (*lead, *weight.shape)
        stored, used = (
            NamedSharding(each.mesh, PartitionSpec(*each.spec[len(lead) :]))
            for each in (here.stored(name, shape), here.used(name if cut else "", shape))
        )
        if stored.is_equivalent_to(used, weight.ndim):
            return weight
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            return jax.lax.with_sharding_constraint(weight, used)
        travels = weight.dtype if dtype is None or weight.ndim < 2 else dtype
        return _gather(stored, used, travels, not stack, weight)

    return jax.tree_util.tree_map_with_path(whole, weights)


def gathered_but_stacks(weights: dict[str, Array]) -> dict[str, Array]:
    """``gathered`` for all weights, by dotted name, except those that a loop over groups gathers."""
    return weights | gathered({name: leaf for name, leaf in weights.items() if STACKED not in name.split(".")})


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _gather(stored: NamedSharding, used: NamedSharding, travels: Any, alone: bool, weight: Array) -> Array:
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(weight.astype(travels), stored), used)


def _gather_forward(stored, used, travels, alone, weight):
    return _gather(stored, used, travels, alone, weight), jnp.zeros((), weight.dtype)


def _gather_back(stored, used, travels, alone, like, gradient):
    if alone:  # of an embedding: else XLA divides the activations that are added up in it like the embedding itself
        gradient = jax.lax.with_sharding_constraint(gradient, used)
    return (jax.lax.with_sharding_constraint(gradient, stored).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_back)


# -- inside ``nn.split`` ---------------------------------------------------------------------------------------------


def size(axis: str) -> int:
    """Return the size of an axis of the mesh for which a program is traced; 1 without a mesh."""
    here = _here.get()
    return 1 if here is None else here.mesh.shape[axis]


def mesh_here() -> Mesh | None:
    """Return the mesh for which a program is traced."""
    here = _here.get()
    return None if here is None else here.mesh


def constrained(x: Array, *axes: Any) -> Array:
    """Constrain the sharding of ``x`` to axes of the mesh for which a program is traced."""
    here = _here.get()
    return x if here is None else jax.lax.with_sharding_constraint(x, NamedSharding(here.mesh, PartitionSpec(*axes)))


def split_over(axis: str) -> bool:
    """Whether the program that is traced is one device's part of a group of layers, which is split over this axis."""
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def all_frames(x: Array) -> Array:
    """Return all frames (axis 1) of a clip of which each device of "sequence" has some."""
    here = split_over("sequence") and size("sequence") > 1
    return jax.lax.all_gather(x, "sequence", axis=1, tiled=True) if here else x
