"""Where activations and weights lie on a mesh of devices while a program is traced.

A rule over shapes places the arrays of the training state (``training.sharding``). What is computed from them needs a
place as well: with weights that are spread over the devices and no word on activations, XLA has every device compute
the whole batch, and no number shows it. So activations are spread by rows, always, and weights are gathered where they
are used: those of a stack of layers one group at a time, inside the loop over groups, so that no device ever holds all.

The engine traces its programs ``traced_on`` a mesh. Elsewhere, as in play, all of this returns what it was given.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

STACKED = "groups"  # weights of a module of this name are stacked: whoever runs its layers gathers them one by one


class Place(NamedTuple):
    """Shardings of activations, whose rows are spread, of what every device has, and of a weight by its shape."""

    rows: NamedSharding
    everywhere: NamedSharding
    weight: Callable[[tuple[int, ...]], NamedSharding]


_here: ContextVar[Place | None] = ContextVar("place", default=None)


def traced_on(place: Place, fn: Callable, *first: Any) -> Callable:
    """Return ``fn``, its ``first`` arguments given, to be traced for a mesh; one of one device changes nothing."""

    def placed(*args: Any) -> Any:
        before = _here.set(place if place.rows.mesh.size > 1 else None)
        try:
            return fn(*first, *args)
        finally:
            _here.reset(before)

    return placed


def by_rows(tree: Any) -> Any:
    """Spread the rows (the first axis) of activations over the devices, where their number divides them."""
    if (here := _here.get()) is None:
        return tree

    def spread(array: Array) -> Array:
        fits = array.ndim > 0 and array.shape[0] % here.rows.mesh.size == 0
        return jax.lax.with_sharding_constraint(array, here.rows) if fits else array

    return jax.tree.map(spread, tree)


def gathered(weights: Any, stack: int = 0, dtype: Any = None) -> Any:
    """Return weights whole on every device; their gradients are summed straight into the part that a device keeps.

    ``stack``: these are one group's of so many. ``dtype``: what matrices are cast to first, so that they, and the sums
    of their gradients, travel in that type (decision 007).
    """
    if (here := _here.get()) is None:
        return weights
    lead = (stack,) if stack else ()

    def whole(weight: Array) -> Array:
        kept = here.weight((*lead, *weight.shape))
        if kept.is_fully_replicated:
            return weight
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            return jax.lax.with_sharding_constraint(weight, here.everywhere)
        part = NamedSharding(kept.mesh, PartitionSpec(*kept.spec[len(lead) :]))
        travels = weight.dtype if dtype is None or weight.ndim < 2 else dtype
        return _gather(part, here.everywhere, travels, weight)

    return jax.tree.map(whole, weights)


def gathered_but_stacks(weights: dict[str, Array]) -> dict[str, Array]:
    """``gathered`` for all weights, by dotted name, that no loop over groups gathers."""
    return {name: leaf if STACKED in name.split(".") else gathered(leaf) for name, leaf in weights.items()}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gather(part: NamedSharding, everywhere: NamedSharding, travels: Any, weight: Array) -> Array:
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(weight.astype(travels), part), everywhere)


def _gather_forward(part, everywhere, travels, weight):
    return _gather(part, everywhere, travels, weight), jnp.zeros((), weight.dtype)


def _gather_back(part, everywhere, travels, like, gradient):
    return (jax.lax.with_sharding_constraint(gradient, part).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_back)
