"""The real game beside its world: an exact simulator under the same keys, from the same moment on.

Shapes: H W C image, S numbers in a simulator's state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reverie.data.episode import Simulator
from reverie.training.checkpoint import find_run, read_record
from reverie.world_folder import Start, initial_states


class Real(NamedTuple):
    """A moment of the real game: its state (S,), and its frame uint8 (H, W, C)."""

    state: np.ndarray
    frame: np.ndarray


class Beside:
    """A simulator and the states in which a world's starts end; a player's game is its moment alone."""

    def __init__(self, simulator: Simulator, states: Sequence[np.ndarray]):
        self.simulator, self.states = simulator, states

    def begin(self, start: int) -> Real | None:
        """Return the moment at which a start ends; None for the player's own picture."""
        return self._seen(self.states[start]) if 0 <= start < len(self.states) else None

    def step(self, real: Real, action: Any) -> Real | None:
        """Return the next moment; None if the game ends with it."""
        state, _, over = self.simulator.step(real.state, action if np.ndim(action) else int(action))
        return None if over else self._seen(state)

    def _seen(self, state: np.ndarray) -> Real:
        return Real(state, self.simulator.render(state))


def beside_of(run: Path, world: Any, starts: Sequence[Start]) -> Beside | None:
    """Return the real game of a world whose data came from an exact simulator, or None.

    The data must hold the simulator's states, and the simulator must draw its frames from them: it may have changed.
    """
    source = read_record(find_run(run)).spec.simulator
    if source is None or not starts or len(states := initial_states(run)) != len(starts):
        return None
    simulator = source.make()
    same = all(np.array_equal(simulator.render(s), frames[-1]) for s, (frames, _) in zip(states, starts, strict=True))
    return Beside(simulator, states) if same and simulator.actions == world.config.actions else None
