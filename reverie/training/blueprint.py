"""The structure of a model before its weights exist: names, shapes, and the part of training of each weight."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Sharding

from reverie.actions import ActionSpace
from reverie.errors import ReverieError
from reverie.nn.embed import ActionEmbedding
from reverie.training.sharding import put

Weights = dict[str, Array]  # by dotted name
Place = Callable[[str, tuple[int, ...]], Sharding]  # the sharding for an array, by its dotted name and its shape


class Blueprint:
    """The structure of the model that ``objective.init`` returns, and the shape of every weight by name.

    ``init`` is only traced. Weights that it loads from other runs are arrays already. ``build`` computes the others
    under jit with their shardings, so that a large model never lies whole on one device.
    """

    def __init__(self, objective: Any, spec: Any, seed: int, folder: Path):
        self.ready: Weights = {}
        self.spaces: dict[str, ActionSpace] = {}  # of each table of action embeddings, by its name
        self.names: list[str] = []
        self.parts: dict[str, list[str]] = {"params": [], "rest": [], "frozen": []}
        self._graph: Any = None
        self._tree: Any = None

        def trace() -> Weights:
            # Steps fold in 0, 1, ... (engine.py); initialisation folds in the last number.
            key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(2**32 - 1))
            model = objective.init(nnx.Rngs(key), spec, folder)
            for path, module in nnx.iter_modules(model):
                if isinstance(module, ActionEmbedding):
                    self.spaces[".".join(map(str, (*path, "table")))] = module.space
            self._graph, state = nnx.split(model)
            leaves, self._tree = jax.tree.flatten(state)
            self._read_structure(state, objective.frozen, model)
            weights = dict(zip(self.names, leaves, strict=True))
            self.ready = {name: leaf for name, leaf in weights.items() if not isinstance(leaf, Tracer)}
            return {name: leaf for name, leaf in weights.items() if name not in self.ready}

        self._program, computed = jax.make_jaxpr(trace, return_shape=True)()
        self._computed = sorted(computed)
        ready = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in self.ready.items()}
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {name: (computed | ready)[name] for name in self.names}

    def _read_structure(self, state: nnx.State, frozen: Sequence[str], model: nnx.Module) -> None:
        for name in frozen:
            if not hasattr(model, name):
                raise ReverieError(f"'{name}' cannot be frozen: {type(model).__name__} has no such part.")
        for key, value in self._graph.attributes:
            if isinstance(getattr(value, "value", None), Tracer):
                raise TypeError(f"'{key}' is an array among a module's plain attributes: wrap it in an nnx.Variable")
        for path, variable in nnx.to_flat_state(state):
            name = ".".join(map(str, path))
            if isinstance(variable, nnx.RngState):
                raise TypeError(f"'{name}' is random state: modules are given keys, they keep none")
            trained = "params" if isinstance(variable, nnx.Param) else "rest"
            self.parts["frozen" if path[0] in frozen else trained].append(name)
            self.names.append(name)

    @property
    def saved(self) -> list[str]:
        """Names of the weights that are in this run's checkpoints."""
        return self.parts["params"] + self.parts["rest"]

    def fingerprint(self) -> str:
        """Return a hash of the frozen weights from other runs, which changes if one of those is trained again."""
        digest = hashlib.sha256()
        for name in self.parts["frozen"]:
            if name in self.ready:
                digest.update(name.encode() + np.asarray(self.ready[name]).tobytes())
        return digest.hexdigest()[:12]

    def build(self, place: Place, have: Weights | None = None) -> Weights:
        """Return all weights, each with its sharding; those in ``have`` are not computed."""
        have = have or {}
        wanted = {n: place(n, self.shapes[n].shape) for n in self._computed if n not in have}

        def make() -> Weights:
            made = zip(self._computed, jaxpr_as_fun(self._program)(), strict=True)
            return {name: leaf for name, leaf in made if name in wanted}

        weights = jax.jit(make, out_shardings=wanted)() if wanted else {}
        moved = {n: put(a, place(n, a.shape)) for n, a in self.ready.items() if n not in have}
        return weights | moved | have

    def merge(self, *weights: Weights) -> nnx.Module:
        """Return the module with these weights, which must be all of them."""
        every = {name: leaf for part in weights for name, leaf in part.items()}
        return nnx.merge(self._graph, jax.tree.unflatten(self._tree, [every[name] for name in self.names]))

    def split(self, model: nnx.Module, part: str) -> Weights:
        """Return one part of a module's weights; TypeError if the module's structure has changed."""
        leaves, tree = jax.tree.flatten(nnx.split(model)[1])
        if tree != self._tree:
            raise TypeError("a loss may change values of a module, not add or remove them")
        weights = dict(zip(self.names, leaves, strict=True))
        return {name: weights[name] for name in self.parts[part]}

    def check(self, folder: Path, weights: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
        """Raise ReverieError unless saved ``weights`` are those this code expects: those ``names``."""
        expected = {name: self.shapes[name].shape for name in (self.saved if names is None else names)}
        found = {name: leaf.shape for name, leaf in weights.items()}
        if wrong := sorted(n for n in expected | found if expected.get(n) != found.get(n)):
            name = wrong[0]
            raise ReverieError(
                f"'{folder}' does not fit this version of the code: {len(wrong)} weights differ, "
                f"'{name}' is {found.get(name, 'missing')} there and {expected.get(name, 'missing')} here."
            )
