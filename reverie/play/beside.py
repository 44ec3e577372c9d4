"""The real game beside its world: an exact simulator under the same keys, from the same moment on.

Shapes: H W C image, S numbers in a simulator's state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverie.data.episode import Simulator
from reverie.training.checkpoint import find_run, read_record
from reverie.world_folder import Start, initial_states


class Beside:
    """A simulator and the states in which a world's starts end; a player's game is the state alone."""

    def __init__(self, simulator: Simulator, states: Sequence[np.ndarray]):
        self.simulator, self.states = simulator, states

    def begin(self, start: int) -> np.ndarray | None:
        """Return the state (S,) at the end of a start; None for a picture of the player's own."""
        return self.states[start] if 0 <= start < len(self.states) else None

    def step(self, state: np.ndarray, action: Any) -> np.ndarray | None:
        """Return the next state (S,); None if the game ended before."""
        state, _, over = self.simulator.step(state, action if np.ndim(action) else int(action))
        return None if over else state

    def render(self, state: np.ndarray) -> np.ndarray:
        """Return the frame uint8 (H, W, C) of a state."""
        return self.simulator.render(state)


def beside_of(run: Path, world: Any, starts: Sequence[Start]) -> Beside | None:
    """Return the real game of a world whose data came from an exact simulator, or None.

    The data must hold the simulator's states, and the simulator must draw its frames from them: it may have changed.
    """
    source, states = read_record(find_run(run)).spec.simulator, initial_states(run)
    if source is None or len(states) != len(starts) or not starts:
        return None
    simulator = source.make()
    same = all(np.array_equal(simulator.render(s), frames[-1]) for s, (frames, _) in zip(states, starts, strict=True))
    return Beside(simulator, states) if same and simulator.actions == world.config.actions else None
