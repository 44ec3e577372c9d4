"""Any Gymnasium environment with pictures, recorded while it is played at random; needs gymnasium.

Pictures are its observations if those are pictures, else what it renders. Every episode has a seed of its own, so that
held-out episodes are other levels. The same config records the same episodes, as far as the environment is
deterministic.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from reverie.actions import FAR, ActionSpace
from reverie.data.episode import Action, Episode, Share, Spec, share_of
from reverie.data.sources.pictures import is_picture, resized, rgb
from reverie.data.takes import JUDGED, Moment, Take, refuse_judged
from reverie.errors import ReverieError, did_you_mean, first_line

FPS = 15.0  # where the environment does not say
CHOICES = 1024  # of all components of an action together
HELD = 0.75  # probability that a player repeats its action, unless it is "random"
SPREAD = 0.5  # of a Dirichlet distribution: below 1, most episodes prefer one or two actions


@dataclass(frozen=True, kw_only=True)
class GymnasiumConfig:
    """A Gymnasium environment with pictures, played at random."""

    path: str = "CartPole-v1"  # the id of the environment, as gymnasium.make takes it
    package: str = ""  # a package to import first, which registers environments, such as ale_py
    count: int = 64  # episodes to record
    frames: int = 128  # most frames of an episode
    seed: int = 0  # of the first episode; each further one has the next
    # hold actions, draw a new one for every frame, or hold them and prefer others in each episode: some play better
    policy: Literal["sticky", "random", "mixed"] = "sticky"
    size: tuple[int, int] | None = None  # height and width of the frames made; None keeps their own
    fps: float = 0.0  # frames per second; 0 takes what the environment says, or 15
    extra: ClassVar[str] = ""  # of this package, that installs the environment
    # actions of environments whose spec needs no engine, once size and rate are given; tests compare them with its own
    known: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self):
        if self.count < 1 or self.frames < 2 or self.seed < 0 or not 0 <= self.fps <= 240:
            raise ReverieError("an environment needs count >= 1, frames >= 2, seed >= 0 and 0 <= fps <= 240.")
        if self.size is not None and min(self.size) < 1:
            raise ReverieError("an environment needs a size of at least 1 x 1.")

    def spec(self) -> Spec:
        """Return the spec of its episodes; ReverieError if it has no pictures or no actions that can be recorded."""
        if (names := self.known.get(self.path)) and self.size and self._rate:
            return Spec((*self.size, 3), ActionSpace("discrete", len(names), names), self._rate, self.path)
        return self._asked()

    def _asked(self) -> Spec:
        """Return the spec that the environment itself tells."""
        env = self._made()
        try:
            picture = self._picture(env, env.reset(seed=self.seed)[0])
            rate = env.metadata.get("render_fps") or FPS
            space = _space(self.path, env)
        finally:
            env.close()
        return Spec(picture.shape, space, self.fps or float(rate), self.path)

    @property
    def _rate(self) -> float:
        """Frames per second, as far as they are known without the environment; else 0."""
        return self.fps

    def episodes(self, shard: Share | tuple[int, int] = (0, 1)) -> Iterator[Episode]:
        """Play and yield ``count`` episodes of at most ``frames`` frames."""
        refuse_judged(self.seed + self.count)
        game = self.as_game()
        try:
            for index in share_of(shard).of(self.count):
                yield self._episode(game, self.seed + index)
        finally:
            game.close()

    def _episode(self, game: "GymnasiumGame", seed: int) -> Episode:
        rng, take = np.random.default_rng((seed, 1)), Take(game.spec, seed, game.reset(seed))
        draw = self._drawing(game, rng)
        while len(take.moments) < self.frames and not take.moments[-1][1].over:
            action = self._next(take, rng, draw)
            take.add(action, game.step(action))
        return replace(take.episode(self.path), source=f"{self.path}, seed {seed}")

    def _drawing(self, game: "GymnasiumGame", rng: np.random.Generator) -> Callable[[np.random.Generator], Action]:
        """Return how the player of one episode draws a new action."""
        space = game.spec.actions
        return _preference(space, rng) if self.policy == "mixed" else space.drawn

    def _next(self, take: Take, rng: np.random.Generator, draw: Callable[[np.random.Generator], Action]) -> Action:
        """Return the next action of the policy; ``draw``: returns a new one."""
        if len(take.moments) == 1 or self.policy == "random" or rng.random() >= HELD:
            return draw(rng)
        return take.moments[-1][0]

    def as_game(self) -> "GymnasiumGame":
        """Return the environment as a game that people can play."""
        return GymnasiumGame(self)

    def _made(self) -> Any:
        if Path(self.path).exists():
            raise ReverieError(
                f"'{self.path}' is not the id of an environment; 'reverie learn' finds out how files are read."
            )
        try:
            import gymnasium
        except ImportError as error:
            raise self._missing(error, "gym") from None
        try:
            if self.package:
                importlib.import_module(self.package)
            return self._make(gymnasium)
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise self._missing(error) from None
        except gymnasium.error.Error as error:
            near = did_you_mean(self.path, gymnasium.registry) if self.path not in gymnasium.registry else ""
            raise ReverieError(f"there is no environment '{self.path}' ({first_line(error)}).{near[:200]}") from None

    def _make(self, gymnasium: Any) -> Any:
        try:
            return gymnasium.make(self.path, render_mode="rgb_array", disable_env_checker=True)
        except TypeError:  # its constructor knows no render_mode
            return gymnasium.make(self.path, disable_env_checker=True)

    def _missing(self, error: BaseException, extra: str = "") -> ReverieError:
        """Return an error that names the missing package, and our extra that has it."""
        extra = self.extra or extra
        way = f"; pip install 'reverie-worlds[{extra}]'" if extra else ""
        return ReverieError(f"'{self.path}' needs a package that is not installed ({first_line(error)}){way}.")

    def _picture(self, env: Any, seen: Any) -> np.ndarray:
        """Return the picture (H,W,3) uint8 of this moment."""
        parts = seen.values() if isinstance(seen, dict) else [seen]
        found = next((part for part in map(np.asarray, parts) if _shows(part)), None)
        if found is None:
            try:
                found = np.asarray(env.render())
            except Exception as error:  # the environment's own; Gymnasium's for a missing package is no ImportError
                raise ReverieError(f"'{self.path}' cannot be rendered ({first_line(error)}).") from None
        if not _shows(found):
            raise ReverieError(f"'{self.path}' has no pictures: neither its observations nor what it renders.")
        picture = rgb(found[None])[0]
        return picture if self.size is None else resized(picture, self.size)


class GymnasiumGame:
    """An environment that is played step by step; see ``reverie.data.takes.Game``."""

    unseen = JUDGED

    def __init__(self, config: GymnasiumConfig):
        self.spec, self._config, self._env = config.spec(), config, config._made()

    def reset(self, seed: int) -> Moment:
        """Begin the episode of ``seed``."""
        return Moment(self._config._picture(self._env, self._env.reset(seed=seed)[0]))

    def step(self, action: Action) -> Moment:
        """Play one step; ``over`` also when the environment cuts the episode."""
        seen, reward, ended, cut, _ = self._env.step(_native(self._env.action_space, action))
        return Moment(self._config._picture(self._env, seen), float(reward), bool(ended), bool(ended or cut))

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _shows(array: np.ndarray) -> bool:
    return is_picture((1, *array.shape), array.dtype.str[1:], named=array.ndim == 2 and array.itemsize == 1)


def _space(name: str, env: Any) -> ActionSpace:
    """Return the action space of an environment; ReverieError if it has several parts or no bounds."""
    space, kind = env.action_space, type(env.action_space).__name__
    if kind == "Discrete":
        meanings = getattr(env.unwrapped, "get_action_meanings", tuple)()
        names = tuple(meanings) if len(meanings) == space.n else ()
        return ActionSpace("discrete", int(space.n), names)
    if kind == "MultiDiscrete":
        sizes = tuple(int(size) for size in np.ravel(space.nvec))
        return ActionSpace("multi", len(sizes), sizes=sizes)
    if kind == "MultiBinary":
        return ActionSpace("binary", int(np.prod(space.n)))
    if kind == "Box" and space.dtype.kind == "f":
        low, high = (np.ravel(bound).astype(float) for bound in (space.low, space.high))
        if np.abs([low, high]).max() <= FAR / 10:
            return ActionSpace("continuous", len(low), low=tuple(low.tolist()), high=tuple(high.tolist()))
    if kind == "Box" and space.dtype.kind in "iu":
        sizes = tuple((np.ravel(space.high).astype(int) - np.ravel(space.low).astype(int) + 1).tolist())
        if sum(sizes) <= CHOICES:
            return ActionSpace("multi", len(sizes), sizes=sizes)
    raise ReverieError(
        f"the actions of '{name}' cannot be recorded: {str(space)[:100]}; wrap it so that they are discrete, several "
        "choices, keys held, or numbers within bounds."
    )


def _preference(space: ActionSpace, rng: np.random.Generator) -> Callable[[np.random.Generator], Action]:
    """Return how the player of one episode draws actions; uniformly if there are too many to prefer some."""
    if space.count > CHOICES:
        return space.drawn
    chances = rng.dirichlet(np.full(space.count, SPREAD))
    return lambda rng: space.nth(rng.choice(space.count, p=chances))


def _native(space: Any, action: Action) -> Any:
    """Return an action as the environment counts and shapes it."""
    if type(space).__name__ == "Discrete":
        return int(action) + int(space.start)
    first = np.ravel(space.low) if type(space).__name__ == "Box" and space.dtype.kind in "iu" else 0
    first = np.ravel(getattr(space, "start", first))
    return (np.ravel(action) + first).reshape(space.shape).astype(space.dtype)
