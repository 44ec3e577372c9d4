"""CarRacing, Gymnasium's car seen from above: pip install 'reverie-worlds[carracing]'.

The wheel and the pedals are two parts of an action, so keys for both are pressed together. The engine never rests: with
no key the car rolls on slowly, and it brakes to a crawl. A car that stands still shows nothing of what keys do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.episode import Action, Spec
from reverie.data.sources.gymnasium import GymnasiumConfig, GymnasiumGame
from reverie.data.takes import Take
from reverie.errors import ReverieError

STEPS = 50  # of the engine in a second
ZOOMING = 50  # steps in which the camera comes down to the car; episodes begin after them
VIEW = slice(0, 84), slice(6, 90)  # of 96x96: the square above the bar with numbers
STEER = 0.0, -0.6, 0.6  # straight, left, right
PEDALS = (0.01, 0.0), (0.2, 0.0), (0.02, 0.04)  # gas and brake of: roll, gas, brake; 0.2 is the environment's own gas
NAMES = ("straight", "left", "right", "roll", "gas", "brake")
KEYS = ("", "ArrowLeft", "ArrowRight", "", "ArrowUp", "ArrowDown")
SPACE = ActionSpace("multi", 2, NAMES, KEYS, sizes=(3, 3))
SPEEDS = 20.0, 60.0  # range of the speed that the driver of an episode wants, in the environment's units a second
CARE = 0.94, 1.0  # range of the share of moments in which the driver does not press keys at random
PRESSED = 0.25  # probability that keys pressed at random are released at a frame


@dataclass(frozen=True, kw_only=True)
class CarRacingConfig(GymnasiumConfig):
    """A racing car on a road, driven well or badly (needs gymnasium's Box2D)."""

    path: str = "CarRacing-v3"
    drive: bool = False  # instead of the policy: follow the road, more or less fast and carefully in each episode
    skip: int = 3  # steps of the engine for each frame; it has 50 a second
    extra: ClassVar[str] = "carracing"

    def __post_init__(self):
        super().__post_init__()
        if not self.path.startswith("CarRacing-"):
            raise ReverieError(f"'{self.path}' is no CarRacing; 'reverie data gymnasium' records other environments.")
        if not 1 <= self.skip <= STEPS:
            raise ReverieError(f"carracing needs a skip of 1 to {STEPS} steps.")

    def spec(self) -> Spec:
        """Return what its episodes have in common."""
        side = VIEW[0].stop - VIEW[0].start
        return Spec((*(self.size or (side, side)), 3), SPACE, self.fps or STEPS / self.skip, self.path)

    def _make(self, gymnasium: Any) -> "Car":
        made = gymnasium.make(self.path, continuous=True, disable_env_checker=True, max_episode_steps=-1)
        return Car(made, gymnasium.spaces.MultiDiscrete(SPACE.sizes), self.skip)

    def _drawing(self, game: GymnasiumGame, rng: np.random.Generator) -> Callable[[np.random.Generator], Action]:
        return Driver(game._env, rng) if self.drive else super()._drawing(game, rng)

    def _next(self, take: Take, rng: np.random.Generator, draw: Callable[[np.random.Generator], Action]) -> Action:
        return draw(rng) if self.drive else super()._next(take, rng, draw)


class Car:
    """The environment, whose actions are those of ``SPACE``; it draws only the frames that are kept."""

    def __init__(self, env: Any, space: Any, skip: int):
        self._env, self._skip, self.action_space = env, skip, space
        self.unwrapped, self.metadata = env.unwrapped, env.metadata

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        """Begin on the track of a seed, with the camera at the car."""
        self._env.reset(seed=seed)
        return self._run(np.zeros(3), ZOOMING)[0][VIEW], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Hold an action of ``SPACE`` for a frame's steps; the reward is their sum."""
        wheel, pedal = action
        seen, *rest = self._run(np.array([STEER[wheel], *PEDALS[pedal]]), self._skip)
        return (seen[VIEW], *rest)

    def _run(self, action: np.ndarray, steps: int) -> tuple:
        """Step several times with one action, or until the episode ends, and draw the last step alone."""
        total, draw = 0.0, self.unwrapped._render
        self.unwrapped._render = lambda mode: None  # drawing takes nine tenths of a step
        try:
            for _ in range(steps):
                _, reward, ended, cut, info = self._env.step(action)
                total += float(reward)
                if ended:
                    break
        finally:
            self.unwrapped._render = draw
        return np.asarray(draw("state_pixels")), total, ended, cut, info

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


class Driver:
    """A driver who steers to a point of the road ahead, and at times presses keys at random for a while."""

    def __init__(self, car: Car, rng: np.random.Generator):
        self._car, self._speed, self._care = car.unwrapped, rng.uniform(*SPEEDS), rng.uniform(*CARE)
        self._road = np.array(self._car.track)[:, 2:4]  # (N,2), the middle every 3.5 units
        self._pressed: np.ndarray | None = None  # keys at random, while they are held

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Return the next action (2,) int32."""
        if self._pressed is not None and rng.random() < PRESSED:
            self._pressed = None
        if self._pressed is None and rng.random() >= self._care:
            self._pressed = SPACE.drawn(rng)
        return self._follow() if self._pressed is None else self._pressed

    def _follow(self) -> np.ndarray:
        hull, road = self._car.car.hull, self._road
        ahead, speed = np.array(hull.GetWorldVector((0, 1))), float(np.hypot(*hull.linearVelocity))
        nearest = int(((road - np.array(hull.position)) ** 2).sum(1).argmin())
        way = _unit(road[(nearest + 3 + int(speed / 15)) % len(road)] - np.array(hull.position))
        turn, forward = _cross(ahead, way), float(ahead @ way)
        ways = [_unit(road[(nearest + k + 1) % len(road)] - road[(nearest + k) % len(road)]) for k in (4, 9)]
        most = self._speed * (1 - 0.5 * abs(_cross(*ways)))  # slower before a bend
        most = most if forward > 0.3 else min(most, 15.0)  # and where the road is not ahead
        wheel = 0 if abs(turn) < 0.08 and forward > 0 else 1 if turn > 0 else 2
        pedal = 1 if speed < most else 2 if speed > 1.3 * most + 3 else 0
        return np.array([wheel, pedal], np.int32)


def _unit(way: np.ndarray) -> np.ndarray:
    return way / max(float(np.linalg.norm(way)), 1e-6)


def _cross(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sine of the angle from a to b, both of length 1; positive to the left."""
    return float(a[0] * b[1] - a[1] * b[0])
