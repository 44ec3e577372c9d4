"""Calling a model without paying for its Python structure on every call."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from reverie.nn.transformer import apart


class compiled:
    """``compiled(model, fn)(*args)`` is ``fn(model, *args)`` under ``jax.jit``, the weights passed as flat leaves.

    The model is split once, here: later changes to it are not seen, and what ``fn`` changes in it is dropped. ``args``
    are plain pytrees; ``donate`` are the positions among them whose buffers may be reused (a memory, a state). Why not
    ``nnx.jit``: it walks the module in Python on every call (docs/speed.md has the numbers); a played frame feels it.
    ``few_rows``: the program works on one small frame at a time.
    """

    def __init__(self, model: nnx.Module, fn: Callable, donate: Sequence[int] = (), few_rows: bool = False):
        graph, state = nnx.split(apart(model))
        self._leaves, tree = jax.tree.flatten(state)

        def run(leaves: list[jax.Array], *args: Any) -> Any:
            return fn(nnx.merge(graph, jax.tree.unflatten(tree, leaves)), *args)

        options = few_rows_options() if few_rows else None
        self._call: Any = jax.jit(run, donate_argnums=tuple(1 + at for at in donate), compiler_options=options)

    def __call__(self, *args: Any) -> Any:
        return self._call(self._leaves, *args)

    def traced(self, *args: Any) -> Any:
        """Return the program of a call as a closed jaxpr; nothing is computed."""
        return self._call.trace(self._leaves, *args).jaxpr

    @property
    def compilations(self) -> int:
        """How many programs were built so far: one per shape of the arguments, or something is wrong."""
        return self._call._cache_size()


@cache
def few_rows_options() -> dict[str, str] | None:
    """Return compiler options for small frames on a CPU; None elsewhere, or where this XLA does not know them.

    No YNNPACK: XLA gives it what it can, at 20 us a call, and a frame of few tokens is hundreds of calls of less work.
    (Frames of 17 tokens, jaxlib 0.10.2: 37 ms without, 47 with; whole clips: 305 without, 250 with.) And whole vectors
    of 512 bits where the CPU has them: one token at a time is a quarter faster, nothing was slower.
    """
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": "512"}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # another version of XLA
        return None
    return options


def cache_compilations() -> None:
    """Keep compiled programs between runs under the user's cache folder, unless JAX was told where to (or not to)."""
    asked = jax.config.values
    if asked["jax_compilation_cache_dir"] is None and asked["jax_enable_compilation_cache"]:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # By default only programs that took a second are kept; a run starts with dozens that take a tenth.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
