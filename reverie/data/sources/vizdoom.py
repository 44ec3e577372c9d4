"""ViZDoom's scenarios through its Gymnasium environments: pip install 'reverie-worlds[vizdoom]'."""

import contextlib
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.episode import Action, Spec
from reverie.data.sources.gymnasium import GymnasiumConfig
from reverie.data.takes import Take
from reverie.errors import ReverieError

TICS = 35  # of the game in a second
TURNS = "turn left", "turn right"
WALKS = {"move forward": 6.0, **dict.fromkeys(TURNS, 2.0)}  # how often a walker chooses what
OTHERS = 0.3  # of any other single button, or none
KEYS = {"move forward": "ArrowUp", "turn left": "ArrowLeft", "turn right": "ArrowRight", "wait": " "}
KEYS |= {"move left": "a", "move right": "d", "move backward": "ArrowDown", "attack": "x", "use": "e"}
STRIDE = 0.85  # probability that a walker repeats its action
STUCK = 5.0  # of 255: at a wall the picture of a walker changes less in a step


@dataclass(frozen=True, kw_only=True)
class ViZDoomConfig(GymnasiumConfig):
    """A ViZDoom scenario, played at random or by a walker (needs vizdoom)."""

    path: str = "VizdoomBasic-v1"  # the id of the scenario's environment
    package: str = "vizdoom.gymnasium_wrapper"  # the package that registers it
    walk: bool = False  # instead of the policy: walk forward and turn, each for a while, which shows more than a room
    skip: int = 1  # tics of the game for each frame; the game has 35 a second
    extra: ClassVar[str] = "vizdoom"
    known: ClassVar = {
        "VizdoomHealthGathering-v1": ("wait", "move forward", "turn right", "turn left"),
        "VizdoomMyWayHome-v1": ("wait", "move right", "move left", "move forward", "turn right", "turn left"),
    }

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.skip <= TICS:
            raise ReverieError(f"vizdoom needs a skip of 1 to {TICS} tics.")

    def spec(self) -> Spec:
        """See ``GymnasiumConfig.spec``; the actions have the keys that players expect."""
        found = super().spec()
        return replace(found, actions=_with_keys(found.actions))

    @property
    def _rate(self) -> float:
        return self.fps or TICS / self.skip

    def _make(self, gymnasium: Any) -> Any:
        # Campaign maps ask for sound, which is never read. Without a device for it the engine ends the process.
        silent: Any = {"audio_buffer_enabled": False, "sound_enabled": False}
        plain: Any = {"render_mode": "rgb_array", "disable_env_checker": True}
        one: Any = {"max_buttons_pressed": 1} if self.walk else {}  # campaign maps press several keys at once
        env = gymnasium.make(self.path, frame_skip=self.skip, **plain, **silent, **one)
        game = env.unwrapped
        game.metadata = {**game.metadata, "render_fps": TICS / self.skip}
        if combinations := getattr(game, "button_map", None):
            mouse = game.num_delta_buttons  # which come first
            found = game.game.get_available_buttons()[mouse:]
            buttons = np.array([button.name.replace("_", " ").lower() for button in found])
            names = [" and ".join(buttons[pressed > 0]) or "wait" for pressed in combinations]
            game.get_action_meanings = lambda: names
            if mouse:  # turns by any number of degrees, beside keys: these have no bounds, and the keys turn as well
                still = np.zeros(mouse, np.float32)
                keys = env.action_space["binary"]
                env = gymnasium.wrappers.TransformAction(env, lambda key: {"binary": key, "continuous": still}, keys)
        return env

    def _next(self, take: Take, rng: np.random.Generator, draw: Callable[[np.random.Generator], Action]) -> Action:
        """Return the next action; a walker whose picture hardly changes stands at a wall, and turns."""
        if not self.walk:
            return super()._next(take, rng, draw)
        names = take.spec.actions.names
        if not set(WALKS) <= set(names):
            raise ReverieError(f"'{self.path}' is not a scenario to walk in: its actions are {', '.join(names)}.")
        if len(take.moments) > 1:
            (_, before), (last, now) = take.moments[-2:]
            change = np.abs(now.frame.astype(np.int16) - before.frame).mean()
            if names[int(last)] == "move forward" and change < STUCK:
                return names.index(str(rng.choice(TURNS)))
            if rng.random() < STRIDE:
                return last
        chances = np.array([WALKS.get(name, OTHERS) for name in names])
        return int(rng.choice(len(names), p=chances / chances.sum()))

    def _made(self) -> Any:
        """Return the environment; its engine starts at the first reset, in a folder of its own, where it writes."""
        with contextlib.chdir(folder().name):
            env = super()._made()
            env.reset()
        return env


def _with_keys(space: ActionSpace) -> ActionSpace:
    """Return the space with the keys that players expect, where each of its actions has one."""
    keys = tuple(KEYS.get(name, "") for name in space.names)
    return replace(space, keys=keys) if keys and all(keys) else space


@functools.cache
def folder() -> tempfile.TemporaryDirectory:
    """Return a folder that is there until Python ends: the engine writes its settings when it is closed."""
    return tempfile.TemporaryDirectory(prefix="vizdoom-")
