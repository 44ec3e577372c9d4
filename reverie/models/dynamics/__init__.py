"""Dynamics models, one file each: config, module, loss and sampler. A file put here is found by everything else.

A file defines one config class, ``…Config``, with ``fitted(tokenizer, actions)`` and ``make(rngs)``; what it makes
keeps the contract below, and ``tests/contracts`` checks that it does.

Shapes: B batch, T time, N tokens per frame, M model width.
"""

from typing import Any, Protocol

from jax import Array

from reverie.actions import ActionSpace
from reverie.models.folder import configs
from reverie.nn.batch import Loss


class Dynamics(Protocol):
    """What comes next. Latents are what the tokenizer gives; actions are as their space says, (B, T) ints or
    (B, T, A) vectors; or weights over discrete ones, (B, T, size).

    ``temperature``: how much is left to chance (0: nothing) where nobody asks for another.
    """

    temperature: float

    def loss(self, latents: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Return what to minimise on clips, and cheap numbers about it; a key for each row. See ``nn.batch``."""
        ...

    def report(self, latents: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Return costly numbers, such as the accuracy of tokens; {} where there are none."""
        ...

    def empty(self, batch: int) -> Any:
        """Return the memory with which a world begins, a plain pytree."""
        ...

    def observe(self, memory: Any, latents: Array, actions_B: Array) -> tuple[Any, Array]:
        """Take in a real frame and the action that led to it: (memory, features)."""
        ...

    def imagine(
        self, memory: Any, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[Any, Array, Array]:
        """Dream the frame an action leads to: (memory, latents, features)."""
        ...

    def imagine_uncached(
        self, latents: Array, actions_BT: Array, key: Array, temperature: float | Array | None = None
    ) -> Array:
        """Dream the same frame without memory, from latents (B, T, ...) and actions (B, T+1); slow, for comparison."""
        ...


class DynamicsConfig(Protocol):
    """A frozen dataclass."""

    def fitted(self, tokenizer: Any, actions: ActionSpace) -> "DynamicsConfig":
        """Return this config for a tokenizer's latents and a space of actions."""
        ...

    def make(self, rngs: Any) -> Any:
        """Return the module."""
        ...


def families() -> dict[str, type]:
    """Return the config class of every file in this folder, by the file's name."""
    return configs(__name__, __path__)
