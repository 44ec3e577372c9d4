"""Calling a model without paying for its Python structure on every call."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from reverie.cache import cache
from reverie.nn.target import target
from reverie.nn.transformer import unstack_layers


class compiled:
    """``compiled(model, fn)(*args)`` is ``fn(model, *args)`` under ``jax.jit``, the weights passed as flat leaves.

    The model is split once, here: later changes to it have no effect, and changes that ``fn`` makes are dropped.
    ``args`` are plain pytrees; ``donate`` are the positions among them whose buffers may be reused (a KV cache, a
    state). Why not ``nnx.jit``: it walks the module in Python on every call, which shows in the time of a played frame
    (docs/speed.md). ``few_rows``: the program works on one small frame at a time.
    """

    def __init__(self, model: nnx.Module, fn: Callable, donate: Sequence[int] = (), few_rows: bool = False):
        graph, state = nnx.split(unstack_layers(model))
        self.weights, tree = jax.tree.flatten(state)

        def run(leaves: list[jax.Array], *args: Any) -> Any:
            return fn(nnx.merge(graph, jax.tree.unflatten(tree, leaves)), *args)

        donated = tuple(1 + at for at in donate)
        self._call: Any = jax.jit(run, donate_argnums=donated, compiler_options=compiler_options(few_rows))

    def __call__(self, *args: Any) -> Any:
        return self._call(self.weights, *args)

    def traced(self, *args: Any) -> Any:
        """Return the program of a call as a closed jaxpr, whose first inputs are ``weights``; nothing is computed."""
        return self._call.trace(self.weights, *args).jaxpr

    @property
    def compilations(self) -> int:
        """How many programs were built so far: one per shape of the arguments, or something is wrong."""
        return self._call._cache_size()


def compiler_options(few_rows: bool = False) -> dict[str, str] | None:
    """Return XLA's compiler options for a program on CPU; None for other targets, or if this XLA lacks these options.

    ``few_rows``: the program works on one small frame at a time. Reasons and numbers: docs/speed.md.
    """
    return _on_cpu(few_rows) if target().platform == "cpu" else None


@functools.cache
def _on_cpu(few_rows: bool) -> dict[str, str] | None:
    options = {
        # Only single matmuls go to YNNPACK: for a norm it needs scales copied out to full size. Each call costs 20 us,
        # and a frame of few tokens is hundreds of matmuls of less work than that.
        "xla_cpu_experimental_ynn_fusion_type": "" if few_rows else "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        "xla_disable_hlo_passes": "tree_reduction_rewriter",  # it splits each norm and softmax into three operations
        "xla_cpu_prefer_vector_width": "512",  # AVX-512 where the CPU has it
    }
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # another version of XLA
        return None
    return options


def cache_compilations() -> None:
    """Keep compiled programs under the user's cache folder, unless the user configured or disabled JAX's cache."""
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is None and settings["jax_enable_compilation_cache"]:
        jax.config.update("jax_compilation_cache_dir", str(cache("xla")))
        # By default JAX keeps programs that took a second to compile; a run starts with dozens that take a tenth.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
