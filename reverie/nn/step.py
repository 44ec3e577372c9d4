"""The random key of a training step, for draws that all rows of a batch share, in however many parts they are computed.

All other draws belong to a row, whose key is an argument.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from jax import Array

_key: ContextVar[Array | None] = ContextVar("key", default=None)


def made_with(key: Array, loss: Callable) -> Callable:
    """Return ``loss``, to be traced as part of a step with this key."""

    def keyed(*args: Any) -> Any:
        token = _key.set(key)
        try:
            return loss(*args)
        finally:
            _key.reset(token)

    return keyed


def step_key(otherwise: Array) -> Array:
    """Return the key of the training step being traced; ``otherwise`` if a loss is computed outside a step."""
    here = _key.get()
    return otherwise if here is None else here
