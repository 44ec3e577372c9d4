"""The kind of machine that programs are traced for: that of this process, or one that is planned for.

Number types, flash attention and compiler options depend on it. A plan traces on a CPU for machines that are elsewhere,
so none of these may ask which backend JAX has here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import jax

from reverie.errors import ReverieError


class Target(NamedTuple):
    """A kind of machine. ``capability``: of a GPU with cuDNN its compute capability (8.0 for an A100), else 0."""

    platform: str  # as JAX names a backend: "cpu", "gpu" or "tpu"
    capability: float = 0.0


_planned: ContextVar[Target | None] = ContextVar("planned", default=None)


def target() -> Target:
    """Return the kind of machine that programs are traced for."""
    return _planned.get() or _this()


def host_memory() -> str:
    """Return JAX's name of the host memory that devices read directly; ReverieError if those of this process cannot."""
    name = "pinned_host"
    if not _planned.get() and name not in {memory.kind for memory in jax.local_devices()[0].addressable_memories()}:
        raise ReverieError(
            f"devices of kind {target().platform} cannot keep activations on the host: use remat layers."
        )
    return name


@contextmanager
def traced_for(planned: Target) -> Iterator[None]:
    """Trace programs for another machine inside."""
    token = _planned.set(planned)
    try:
        yield
    finally:
        _planned.reset(token)


@cache
def _this() -> Target:
    try:
        capability = float(jax.local_devices()[0].compute_capability)
    except (AttributeError, ValueError):  # a CPU, a TPU, or a GPU without cuDNN, such as AMD's
        capability = 0.0
    return Target(jax.default_backend(), capability)
