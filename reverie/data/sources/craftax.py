"""Craftax-Classic, which is Crafter in JAX, and Craftax (Matthews et al. 2024): pip install 'reverie-worlds[craftax]'.

A seed is a world. A step's randomness follows from the seed and the number of the step, so episodes are reproducible.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from reverie.data.sources.gymnasium import GymnasiumConfig
from reverie.errors import ReverieError

GAMES = {
    "Craftax-Classic-Pixels-v1": "craftax_classic",
    "Craftax-Pixels-v1": "craftax",
}  # where their actions are named


@dataclass(frozen=True, kw_only=True)
class CraftaxConfig(GymnasiumConfig):
    """Craftax-Classic (Crafter in JAX) or Craftax, played at random (needs craftax)."""

    path: str = "Craftax-Classic-Pixels-v1"  # the id of the game, or Craftax-Pixels-v1
    package: str = "craftax"  # the package that holds the games
    extra: ClassVar[str] = "craftax"

    def __post_init__(self):
        super().__post_init__()
        if self.path not in GAMES:
            raise ReverieError(
                f"there is no game '{self.path}' of Craftax with pictures; there are {', '.join(GAMES)}."
            )

    def _make(self, gymnasium: Any) -> Any:
        return _Craftax(self.path, gymnasium.spaces.Discrete)


class _Craftax:
    """A game as an environment of Gymnasium's kind."""

    metadata: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: str, discrete: Any):
        self._reset, self._step, self._names = _compiled(path)
        self.action_space, self.unwrapped = discrete(len(self._names)), self

    def get_action_meanings(self) -> list[str]:
        return self._names

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        self._key, self._time = jax.random.key(seed), 0
        picture, self._state = self._reset(self._key)
        return np.asarray(picture), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        picture, self._state, reward, over = self._step(self._key, np.int32(self._time), self._state, np.int32(action))
        return np.asarray(picture), float(reward), bool(over), False, {}

    def close(self) -> None:
        """Nothing is held."""


@functools.cache  # to compile the two takes half a minute
def _compiled(path: str) -> tuple[Any, Any, list[str]]:
    """Return a game's reset, its step, and the names of its actions."""
    game = importlib.import_module("craftax.craftax_env").make_craftax_env_from_name(path, auto_reset=False)
    names = importlib.import_module(f"craftax.{GAMES[path]}.constants").Action

    def shown(picture: Any, state: Any) -> tuple[Any, Any]:  # explicit types: else the second step compiles again
        state = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)
        return jax.numpy.rint(picture * 255).astype("uint8"), state

    def reset(key: Any) -> Any:
        return shown(*game.reset(key))

    def step(key: Any, time: Any, state: Any, action: Any) -> Any:
        picture, state, reward, over, _ = game.step(jax.random.fold_in(key, time), state, action)
        return *shown(picture, state), reward, over

    return jax.jit(reset), jax.jit(step), [action.name.replace("_", " ").lower() for action in names]
