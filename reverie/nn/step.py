"""The key of a training step: for what all rows of its batch have in common, in whatever parts they are computed.

Everything else that is random belongs to a row, and comes as an argument.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from jax import Array

_key: ContextVar[Array | None] = ContextVar("key", default=None)


def made_with(key: Array, loss: Callable) -> Callable:
    """Return ``loss``, which is to be traced as part of a step that has this key."""

    def keyed(*args: Any) -> Any:
        before = _key.set(key)
        try:
            return loss(*args)
        finally:
            _key.reset(before)

    return keyed


def step_key(otherwise: Array) -> Array:
    """Return the key of the step that is being made; ``otherwise`` where a loss is computed for itself."""
    here = _key.get()
    return otherwise if here is None else here
