"""A training step whose bits do not depend on the number of devices (``--exact``).

An ordinary step is one program for a mesh, and another number of devices is another program, which rounds differently.
Here a batch is always divided into ``SHARDS`` parts of rows. One program for one device computes the gradient of a
part, on whichever device. Gradients are added in pairs, in a fixed order, and every device makes the same update.

XLA's CPU backend also rounds differently with another number of threads, so that number is fixed too (``pin_threads``).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from reverie.errors import ReverieError
from reverie.nn.batch import Loss, combined, share_of
from reverie.nn.compiled import compiler_options
from reverie.training import sharding

SHARDS = 8  # a power of two; devices divide it
POOL = "tf_XLAEigen"  # how XLA names the threads of its pool


def pin_threads() -> None:
    """Fix the number of XLA's threads on CPUs; call it before anything touches JAX."""
    os.environ["NPROC"] = str(SHARDS)


def check(mesh: Mesh, batch: int) -> None:
    """Raise ReverieError unless a run can be exact on this mesh, in this process."""
    if jax.process_count() > 1 or mesh.size != mesh.shape["data"] or SHARDS % mesh.size:
        raise ReverieError(
            f"--exact needs one process, 1, 2, 4 or {SHARDS} devices and the mesh 'data' (here: "
            f"{jax.process_count()} processes, {mesh.size} devices)."
        )
    if batch % SHARDS:
        raise ReverieError(f"--exact computes a batch in {SHARDS} parts: make {batch} a multiple of {SHARDS}.")
    if jax.default_backend() == "cpu" and (threads := _pool()) not in (None, SHARDS):
        raise ReverieError(f"--exact needs {SHARDS} threads, and XLA has {threads}: start with NPROC={SHARDS} set.")


def _pool() -> int | None:
    """Return how many threads XLA's pool has; None where the system does not list them."""
    names = [task / "comm" for task in Path("/proc/self/task").glob("*")]
    return sum(name.read_text().strip() == POOL for name in names if name.exists()) if names else None


def alone(tree: Any, index: int = 0) -> Any:
    """Return arrays, or their parts, as one device of the mesh has them; nothing is copied."""

    def own(array: jax.Array) -> jax.Array:
        part = array.addressable_shards[index]
        return jax.device_put(part.data, part.device)  # on a mesh of one device it would know of the mesh

    return jax.tree.map(own, tree)


class Step:
    """A step like that of ``engine.train_step``, whose bits are those of any number of devices.

    loss_of: (state, frozen, pace) -> the loss of (parameters, rows). rows_of: (state, rows of a batch, index of the
    first) -> these with their keys. update: (state, frozen, pace, gradient, loss of the batch) -> (state, metrics).
    plain: the ordinary step, (state, frozen, batch, pace) -> (state, metrics), which is only traced.
    """

    def __init__(self, mesh: Mesh, loss_of: Callable, rows_of: Callable, update: Callable, plain: Callable):
        def weights(state: Any, frozen: Any, pace: Any, part: Any, first: Any) -> Any:
            loss = loss_of(state, frozen, pace)(state.params, rows_of(state, part, first))
            return [term.weight for term in loss.terms]

        def gradient(state: Any, frozen: Any, pace: Any, part: Any, first: Any, totals: Any) -> Any:
            share = share_of(loss_of(state, frozen, pace), rows_of(state, part, first), totals)
            return jax.grad(share, has_aux=True)(state.params)

        options: Any = {"compiler_options": compiler_options()}
        self._devices, self._everywhere = list(mesh.devices.flat), sharding.everywhere(mesh)
        self._weights, self._gradient = jax.jit(weights, **options), jax.jit(gradient, **options)
        self._update = jax.jit(update, donate_argnums=0, **options)
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
        self._total = jax.jit(lambda *parts: jax.tree.map(lambda *each: jnp.sum(jnp.stack(each)), *parts))
        self._combined: Callable[..., Loss] = jax.jit(lambda *parts: combined(parts))
        self._cut = jax.jit(
            lambda batch, at, rows: jax.tree.map(lambda x: x[at : at + rows], batch), static_argnums=(1, 2)
        )
        self.trace = jax.jit(plain).trace
        self._first: list[Any] = []

    def __call__(self, state: Any, frozen: Any, batch: Any, pace: Any) -> tuple[Any, Any]:
        """Return the state after an update, and metrics, which are on the first device."""
        given = [alone((state, frozen, pace), index) for index in range(len(self._devices))]
        each, rows = SHARDS // len(self._devices), len(next(iter(batch.values()))) // SHARDS
        if not self._first:
            self._first = [jax.device_put(np.int32(v * rows), self._devices[v // each]) for v in range(SHARDS)]
        parts = []
        for index in range(len(self._devices)):
            own = alone(batch, index)
            parts += [self._cut(own, i * rows, rows) for i in range(each)]
        calls = [(*given[v // each], parts[v], self._first[v]) for v in range(SHARDS)]
        totals = self._to_all(self._total(*self._to_first([self._weights(*call) for call in calls])))
        found = [self._gradient(*call, totals[v // each]) for v, call in enumerate(calls)]
        losses = self._to_all(self._combined(*self._to_first([loss for _, loss in found])))
        gradients = self._to_all(self._added([gradient for gradient, _ in found]))
        done = [self._update(*mine, *sums) for mine, *sums in zip(given, gradients, losses, strict=True)]
        states = [jax.tree.flatten(state) for state, _ in done]
        leaves = [self._joined(*each) for each in zip(*(leaves for leaves, _ in states), strict=True)]
        return jax.tree.unflatten(states[0][1], leaves), done[0][1]

    def _added(self, trees: list[Any]) -> Any:
        """Return the sum of trees of arrays, in pairs of neighbours, on the first device."""
        while len(trees) > 1:
            pairs = zip(trees[::2], trees[1::2], strict=True)
            trees = [self._add(a, jax.device_put(b, next(iter(jax.tree.leaves(a))).sharding)) for a, b in pairs]
        return trees[0]

    def _to_first(self, tree: Any) -> Any:
        return jax.device_put(tree, self._devices[0])

    def _to_all(self, tree: Any) -> list[Any]:
        return [jax.device_put(tree, device) for device in self._devices]

    def _joined(self, *copies: jax.Array) -> jax.Array:
        return jax.make_array_from_single_device_arrays(copies[0].shape, self._everywhere, list(copies))
