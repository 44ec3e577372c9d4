"""The bouncing square, on which Dreamer 4's reimplementations are compared: 32x32, one square, four ways to push it.

Deterministic given the actions, unpredictable without them, and with a known best policy; written anew from its
published constants. A square of side 6..14 moves 2 pixels a step and is mirrored at the walls; the reward is minus the
distance in pixels between its centre and the picture's, on arrival. The behaviour holds an action for 4..9 steps
(uniformly), then takes one of the other three.

Mean returns over 32 steps: random -273, behaviour -320, one action for ever -365, greedy -55.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.episode import Episode, Spec, record
from reverie.errors import ReverieError

SIZE, SPEED = 32, 2
SIDES = 6, 14
HOLDS = 4, 9
X, Y, SIDE, INK, PAPER, LAST, HELD, TIME = range(8)  # the state: corner in pixels, colours as 0xRRGGBB, behaviour's own
MOVES = ((0, -SPEED), (0, SPEED), (-SPEED, 0), (SPEED, 0))
ACTIONS = ActionSpace(
    "discrete", 4, ("up", "down", "left", "right"), ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")
)


@dataclass(frozen=True)
class SquareConfig:
    """The bouncing square of Dreamer 4's reimplementations: ``count`` episodes of ``frames`` frames."""

    count: int = 512
    frames: int = 33
    seed: int = 0

    def __post_init__(self):
        if self.count < 1 or self.frames < 2 or self.seed < 0:
            raise ReverieError("the bouncing square needs count >= 1, frames >= 2 and seed >= 0.")

    def spec(self) -> Spec:
        """Return what its episodes have in common."""
        return Spec((SIZE, SIZE, 3), ACTIONS, 10.0, "square", self)

    def make(self) -> "Square":
        """Return the simulator."""
        return Square()

    def episodes(self) -> Iterator[Episode]:
        """Yield ``count`` episodes, each a square of its own, played by ``Square.policy``."""
        simulator, fps = self.make(), self.spec().fps
        for index in range(self.count):
            rng = np.random.default_rng((self.seed, index))
            yield record(simulator, seed=int(rng.integers(2**31)), frames=self.frames, rng=rng, fps=fps)


class Square:
    """The simulator; see ``reverie.data.episode.Simulator``. States are (8,) int32, named at the head of this file."""

    actions = ACTIONS

    def reset(self, seed: int) -> np.ndarray:
        """Return a square of random side, place and colours."""
        rng = np.random.default_rng(seed)
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        x, y = rng.integers(SIZE - side + 1, size=2)
        ink, paper = rng.integers(1 << 24, size=2)
        return np.array([x, y, side, ink, paper, -1, 0, 0], np.int32)

    def step(self, state: np.ndarray, action: int) -> tuple[np.ndarray, float, bool]:
        """Return (state, reward, False); the world does not end. Actions 0..3, else IndexError."""
        if not 0 <= action < ACTIONS.size:
            raise IndexError(f"action {action} of {ACTIONS.size}")
        x, y, side, ink, paper, last, held, time = state.tolist()
        room = SIZE - side
        dx, dy = MOVES[action]
        x, y = (room - abs(room - abs(place)) for place in (x + dx, y + dy))  # mirrored at 0 and at the far wall
        held = held + 1 if action == last else 1
        reward = -math.hypot(x - room / 2, y - room / 2)
        return np.array([x, y, side, ink, paper, action, held, time + 1], np.int32), reward, False

    def render(self, state: np.ndarray) -> np.ndarray:
        """Return the picture (32,32,3) uint8."""
        x, y, side, ink, paper, *_ = state.tolist()
        frame = np.full((SIZE, SIZE, 3), tuple(paper.to_bytes(3, "big")), np.uint8)
        frame[y : y + side, x : x + side] = tuple(ink.to_bytes(3, "big"))
        return frame

    def policy(self, state: np.ndarray, rng: np.random.Generator, last_action: int) -> int:
        """Hold the last action for 4..9 steps in all, uniformly, then take another."""
        held = int(state[HELD])
        if last_action < 0:
            return int(rng.integers(ACTIONS.size))
        if held < HOLDS[0] or rng.random() >= 1 / (HOLDS[1] + 1 - held):  # of the lengths still possible, not this one
            return last_action
        return int((last_action + rng.integers(1, ACTIONS.size)) % ACTIONS.size)
