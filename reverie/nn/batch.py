"""Losses and statistics of a batch that is processed in parts, on any number of devices, with the same result.

Rows of a batch are independent except for means and statistics over all of them. So each row has a random key of its
own. A loss is made of ``Mean``s, which add up over parts. The inputs of statistics (``notes``) are gathered over all
parts, and ``settle`` updates the statistics with them once a step. Within a step a module reads its statistics as they
were before it.

Shapes: B rows of a batch or of a part of it; ... any axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval


def _itself(x: Array) -> Array:
    return x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A mean over the rows of a batch: to combine parts of a batch, totals and weights are added.

    ``weight`` depends on data and randomness, never on parameters, and has no gradient. ``then``: a function of the
    mean that gives the number to log.
    """

    total: Array
    weight: Array
    then: Callable[[Array], Array] = field(default=_itself, metadata={"static": True})

    @property
    def value(self) -> Array:
        """The mean of the rows so far; 0 if the weight is 0."""
        return self.then(self.total / jnp.maximum(self.weight, 1e-12))

    def times(self, factor: Array | float) -> "Mean":
        """Return the mean multiplied by a number that is the same for all rows."""
        return replace(self, total=self.total * jnp.asarray(factor, jnp.float32))


def mean(x: Array, weights: Array | None = None, then: Callable[[Array], Array] = _itself) -> Mean:
    """Return the mean of all of ``x``, weighted if ``weights``, which broadcast against it, are given."""
    if weights is None:
        return Mean(jnp.mean(x), jnp.ones(()), then)
    weights = jax.lax.stop_gradient(weights)
    return Mean(jnp.mean(x * weights), jnp.mean(weights), then)


def decibels(error: Array) -> Array:
    """Return the PSNR of a mean squared error of numbers in 0..1."""
    return -10 * jnp.log10(error + 1e-10)


def spread(x: Array) -> Mean:
    """Return the standard deviation of all of ``x``."""
    return Mean(jnp.stack([jnp.mean(x), jnp.mean(jnp.square(x))]), jnp.ones(()), _deviation)


def _deviation(moments: Array) -> Array:
    return jnp.sqrt(jnp.maximum(moments[1] - jnp.square(moments[0]), 0.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """An array with one or more rows for each row of a batch: parts are concatenated in order, not added."""

    array: Array


class Loss(NamedTuple):
    """The loss of a batch, or of a part of one.

    terms: means whose sum is minimised. metrics: cheap numbers to log. notes: inputs of the module's statistics for
    ``settle``, by attribute name (nested for submodules); None if there are none. Over parts of a batch, arrays in
    notes are added and ``Rows`` are concatenated.
    """

    terms: tuple[Mean, ...]
    metrics: dict[str, Mean]
    notes: Any = None

    @property
    def value(self) -> Array:
        """The scalar to minimise."""
        return sum((term.value for term in self.terms), jnp.zeros(()))


def settle(module: Any, notes: Any, key: Array, progress: Array) -> None:
    """Update a module's statistics from the notes of a whole batch: ``submodule.settle(note, key, progress)``."""
    if isinstance(notes, dict):
        for index, name in enumerate(sorted(notes)):
            settle(getattr(module, name), notes[name], jax.random.fold_in(key, index), progress)
    elif notes is not None:
        module.settle(notes, key, progress)


def gradient(loss: Callable[[Any, Any], Loss], params: Any, batch: Any, parts: int) -> tuple[Any, Loss]:
    """Return the gradient of ``loss(params, batch)`` in params, and the loss of the whole batch, computed in ``parts``.

    Part i takes every ``parts``-th row, so that on a mesh each device works on rows that it holds already.
    """
    if parts == 1:

        def whole(params: Any):
            found = loss(params, batch)
            return found.value, found

        return jax.grad(whole, has_aux=True)(params)

    def weights(part: Any):
        return [term.weight for term in loss(params, part).terms]

    cut = jax.tree.map(lambda rows: jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1), batch)
    totals = [jnp.sum(each) for each in jax.lax.map(_pruned(weights), cut)]

    def part(sums: Any, rows: Any):
        grads, found = jax.grad(share_of(loss, rows, totals), has_aux=True)(params)
        return jax.tree.map(jnp.add, sums, grads), found

    grads, found = jax.lax.scan(part, jax.tree.map(jnp.zeros_like, params), cut)
    return grads, jax.tree.map(_gathered, found, is_leaf=lambda leaf: isinstance(leaf, Rows))


def share_of(loss: Callable[[Any, Any], Loss], rows: Any, totals: Sequence[Array]) -> Callable:
    """Return the function of params whose sum over all parts of a batch is its loss, with the ``Loss`` of this part.

    ``totals``: the weight of each term over the whole batch.
    """

    def share(params: Any):
        found = loss(params, rows)
        shares = (Mean(term.total, total).value for term, total in zip(found.terms, totals, strict=True))
        return sum(shares, jnp.zeros(())), found

    return share


def weighted_rows(loss: Callable[[Any], Loss], rows: Any, weights_B: Array) -> Loss:
    """Return ``loss(rows)`` with a weight for each row: one of weight 0 takes no part in any mean.

    Rows are computed one by one (under ``vmap``), so ``loss`` needs to know nothing of the weights.
    """
    found = jax.vmap(lambda row: loss(jax.tree.map(lambda leaf: leaf[None], row)))(rows)
    weights_B = jax.lax.stop_gradient(weights_B)

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, Rows):
            return Rows(leaf.array.reshape(-1, *leaf.array.shape[2:]))
        if isinstance(leaf, Mean):
            each = weights_B.reshape(-1, *(1,) * (leaf.total.ndim - 1))
            return replace(leaf, total=jnp.mean(leaf.total * each, axis=0), weight=jnp.mean(leaf.weight * weights_B))
        return jnp.sum(leaf, axis=0)

    return jax.tree.map(whole, found, is_leaf=lambda leaf: isinstance(leaf, Rows | Mean))


def combined(parts: Sequence[Loss]) -> Loss:
    """Return the loss of a batch from those of its parts, each of which is rows that follow each other."""

    def whole(*leaves: Any) -> Any:
        if isinstance(leaves[0], Rows):
            return Rows(jnp.concatenate([leaf.array for leaf in leaves]))
        return jnp.sum(jnp.stack(leaves), axis=0)

    return jax.tree.map(whole, *parts, is_leaf=lambda leaf: isinstance(leaf, Rows))


def _pruned(fn: Callable) -> Callable:
    """Return ``fn`` without dead code. (Weights of means need data and randomness, but no model.)"""

    def run(x: Any) -> Any:
        leaves, tree = jax.tree.flatten(x)
        closed, shapes = jax.make_jaxpr(lambda *leaves: fn(jax.tree.unflatten(tree, leaves)), return_shape=True)(
            *leaves
        )
        jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))
        needed = [leaf for leaf, use in zip(leaves, used, strict=True) if use]
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*needed))

    return run


def _gathered(leaf: Any) -> Any:
    """Combine results of all parts (leading axis) to the result of the whole batch."""
    if isinstance(leaf, Rows):
        return Rows(jnp.swapaxes(leaf.array, 0, 1).reshape(-1, *leaf.array.shape[2:]))
    return jnp.sum(leaf, axis=0)


# -- a key for each row ----------------------------------------------------------------------------------------------


def row_keys(key: Array, rows: int, first: int | Array = 0) -> Array:
    """Return a key for each row of a batch, (B,), from row ``first`` on."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))


def split_keys(keys_B: Array, number: int) -> tuple[Array, ...]:
    """Return ``number`` keys for each row, one array (B,) each."""
    keys = jax.vmap(lambda key: jax.random.split(key, number), out_axes=1)(keys_B)
    return tuple(keys[i] for i in range(number))


def fold_keys(keys_B: Array, data: int) -> Array:
    """Return a new key for each row, (B,), by folding in ``data``."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys_B)


def draw_rows(draw: Callable[..., Array], keys_B: Array, *args: Any) -> Array:
    """Return ``draw(key, *args)`` for each row, (B, ...), so that a row's values do not depend on other rows."""
    return jax.vmap(lambda key: draw(key, *args))(keys_B)
