"""The bouncing square, on which reimplementations of Dreamer 4 are compared: 32x32, one square, four pushes.

``SquareConfig.actions`` chooses the kind of action, so that every kind has a small simulator. With ``goal="both"`` it
has two tasks of opposite rewards: to be in the centre, as in the original, or in a corner.

It is deterministic given the actions, unpredictable without them, and its best policy is known. Written from its
published constants. A square of side 6..14 moves 2 pixels a step and is mirrored at the walls; the reward is minus the
distance in pixels between its centre and the picture's, on arrival. The policy holds an action for 4..9 steps
(uniformly), then takes one of the other three.

Mean returns over 32 steps: random -273, this policy -320, one constant action -365, greedy -55.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.episode import Action, Episode, Share, Spec, record, share_of
from reverie.data.mixed import draw_policy
from reverie.errors import ReverieError

SIZE, SPEED, PUSH = 32, 2, 4  # PUSH: the most pixels per step for continuous actions
SIDES = 6, 14
HOLDS = 4, 9
X, Y, SIDE, INK, PAPER, LAST, HELD, TIME = range(8)  # the state: corner in pixels, colours as 0xRRGGBB, behaviour's own
GOALS = "centre", "corner"  # what is rewarded
MOVES = ((0, -SPEED), (0, SPEED), (-SPEED, 0), (SPEED, 0))
NAMES, KEYS = ("up", "down", "left", "right"), ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")
SPACES = {
    "discrete": ActionSpace("discrete", 4, NAMES, KEYS),
    "binary": ActionSpace("binary", 4, NAMES, KEYS),  # held together, opposite ones cancel out
    "multi": ActionSpace(  # one of three ways across, one of three ways down
        "multi", 2, ("left", "stay", "right", "up", "stay", "down"), (*KEYS[2:3], "", *KEYS[3:], KEYS[0], "", KEYS[1]),
        sizes=(3, 3),
    ),
    "continuous": ActionSpace(  # (across, down), a share of PUSH
        "continuous", 2, ("left", "right", "up", "down"), (*KEYS[2:], *KEYS[:2]), low=(-1.0, -1.0), high=(1.0, 1.0)
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SquareConfig:
    """The bouncing square on which Dreamer 4's reimplementations are compared."""

    count: int = 512  # episodes to record
    frames: int = 33  # frames per episode
    seed: int = 0  # seed of the squares and of the actions
    actions: Literal["discrete", "binary", "multi", "continuous"] = "discrete"  # kind of the action space
    play: Literal["hold", "mixed"] = "hold"  # who plays: one policy that holds actions, or policies of mixed quality
    goal: Literal["centre", "corner", "both"] = "centre"  # where it should be; both: tasks, each of every other episode

    def __post_init__(self):
        if self.count < 1 or self.frames < 2 or self.seed < 0:
            raise ReverieError("the bouncing square needs count >= 1, frames >= 2 and seed >= 0.")

    def spec(self) -> Spec:
        """Return the spec of its episodes."""
        tasks = GOALS if self.goal == "both" else ()
        return Spec((SIZE, SIZE, 3), SPACES[self.actions], 10.0, "square", self, tasks)

    def make(self) -> "Square":
        """Return the simulator; of both goals, that of the first."""
        return Square(self.actions, GOALS[0] if self.goal == "both" else self.goal)

    def for_task(self, name: str) -> "SquareConfig":
        """Return the square with one of both goals."""
        return replace(self, goal=name)

    def episodes(self, shard: Share | tuple[int, int] = (0, 1)) -> Iterator[Episode]:
        """Yield ``count`` episodes, each a square of its own, played by ``Square.policy`` or a mixture."""
        tasks, fps = self.spec().tasks, self.spec().fps
        for index in share_of(shard).of(self.count):
            task = tasks[index % len(tasks)] if tasks else ""
            simulator = (self.for_task(task) if task else self).make()
            rng = np.random.default_rng((self.seed, index))
            level = int(rng.integers(2**31))
            kind, policy = ("", simulator.policy) if self.play == "hold" else draw_policy(simulator, rng)
            how = {"policy": policy, "kind": kind, "task": task}
            yield record(simulator, seed=level, frames=self.frames, rng=rng, fps=fps, **how)


class Square:
    """The simulator; see ``reverie.data.episode.Simulator``. States are (8,) int32, named at the head of this file."""

    def __init__(self, actions: str = "discrete", goal: str = "centre"):
        self.kind, self.actions, self.goal = actions, SPACES[actions], goal

    def reset(self, seed: int) -> np.ndarray:
        """Return a square of random side, place and colours."""
        rng = np.random.default_rng(seed)
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        x, y = rng.integers(SIZE - side + 1, size=2)
        ink, paper = rng.integers(1 << 24, size=2)
        return np.array([x, y, side, ink, paper, -1, 0, 0], np.int32)

    def step(self, state: np.ndarray, action: Action) -> tuple[np.ndarray, float, bool]:
        """Return (state, reward, False); the world does not end. IndexError if the action is not in its space."""
        if not self.actions.is_action(np.asarray(action)):
            raise IndexError(f"action {action} of {self.actions.choices}")
        x, y, side, ink, paper, last, held, time = state.tolist()
        room = SIZE - side
        dx, dy = self.push(action)
        x, y = (room - abs(room - abs(place)) for place in (x + dx, y + dy))  # mirrored at 0 and at the far wall
        held, action = held + 1 if self._way(action) == last else 1, self._way(action)
        far = math.hypot(x - room / 2, y - room / 2)  # from the centre
        reward = -far if self.goal == "centre" else far - math.hypot(room / 2, room / 2)
        return np.array([x, y, side, ink, paper, action, held, time + 1], np.int32), reward, False

    def render(self, state: np.ndarray) -> np.ndarray:
        """Return the picture (32,32,3) uint8."""
        x, y, side, ink, paper, *_ = state.tolist()
        frame = np.full((SIZE, SIZE, 3), tuple(paper.to_bytes(3, "big")), np.uint8)
        frame[y : y + side, x : x + side] = tuple(ink.to_bytes(3, "big"))
        return frame

    def policy(self, state: np.ndarray, rng: np.random.Generator, last_action: Action) -> Action:
        """Hold the last action for 4..9 steps in all, uniformly, then take one of another direction."""
        held, count = int(state[HELD]), self.actions.count
        begun = state[LAST] >= 0
        if begun and (held < HOLDS[0] or rng.random() >= 1 / (HOLDS[1] + 1 - held)):  # of those possible, not this one
            return last_action
        if self.kind == "discrete":
            return int((last_action + rng.integers(1, count)) % count if begun else rng.integers(count))
        while True:
            drawn = rng.uniform(-1, 1, 2) if self.kind == "continuous" else self.actions.nth(rng.integers(count))
            if self._way(drawn) != state[LAST]:
                return drawn.astype(self.actions.dtype)

    def best(self, state: np.ndarray) -> Action:
        """Return the action of the highest next reward: for discrete actions this is optimal (-54.6 in 32 steps)."""
        actions = [self.actions.nth(index) for index in range(self.actions.count)]
        actions = actions if self.actions.shape else [int(action) for action in actions]
        return max(actions, key=lambda action: self.step(state, action)[1])

    def push(self, action: Action) -> tuple[int, int]:
        """Return the pixels by which an action moves the square, (across, down)."""
        if self.kind == "discrete":
            return MOVES[action]
        if self.kind == "continuous":
            return round(PUSH * float(action[0])), round(PUSH * float(action[1]))
        if self.kind == "multi":
            return SPEED * (int(action[0]) - 1), SPEED * (int(action[1]) - 1)
        up, down, left, right = (int(key) for key in action)
        return SPEED * (right - left), SPEED * (down - up)

    def _way(self, action: Action) -> int:
        """Return one number >= 0 for all actions that push in the same direction."""
        dx, dy = self.push(action)
        return int(action) if self.kind == "discrete" else (dx + PUSH) * (2 * PUSH + 1) + dy + PUSH
