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
    """Predicts the next frame. Latents are the tokenizer's. Actions are as their space says, (B, T) ints or (B, T, A)
    vectors; or weights over discrete actions, (B, T, size).

    ``temperature``: the sampling temperature used unless a caller gives another; 0 is deterministic.

    A family may have ``imagine_uncached(latents (B, T, ...), actions (B, T+1), key, temperature)``: the same frame
    without a KV cache, for tests and to measure what the cache saves.

    A family that can say how unsure it was of a frame has ``imagine_with_uncertainty``: ``imagine`` with that number
    (B,) as a fourth value. Its ``uncertainty`` is the number's unit, or "" if it cannot say as configured. A larger
    number must mean a larger error: "uncertainty_rank" of an evaluation measures it.
    """

    temperature: float

    def loss(self, latents: Array, actions_BT: Array, keys_B: Array) -> Loss:
        """Return the loss of clips and cheap metrics; ``keys_B`` has a key for each row. See ``nn.batch``."""
        ...

    def report(self, latents: Array, actions_BT: Array, key: Array) -> dict[str, Array]:
        """Return costly metrics, such as the accuracy of tokens; {} if there are none."""
        ...

    def empty(self, batch: int) -> Any:
        """Return the state before the first frame, a plain pytree; transformers keep their KV cache in it."""
        ...

    def observe(self, state: Any, latents: Array, actions_B: Array) -> tuple[Any, Array]:
        """Append a real frame and the action that led to it: (state, features)."""
        ...

    def imagine(
        self, state: Any, actions_B: Array, key: Array, temperature: float | Array | None = None
    ) -> tuple[Any, Array, Array]:
        """Generate the frame an action leads to and append it: (state, latents, features)."""
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
