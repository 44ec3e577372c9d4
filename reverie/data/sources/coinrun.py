"""Real CoinRun (Cobbe et al. 2019, "Quantifying Generalization in Reinforcement Learning"), simulated by envpool.

Needs the extra ``coinrun``. The "hard" mode is the game as published; "easy" shows a single background.
H = W = size, E environments stepped together.
"""

import contextlib
import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reverie.actions import START, ActionSpace
from reverie.data.episode import Action, Episode, Share, Spec, share_of
from reverie.data.takes import JUDGED, Moment, refuse_judged
from reverie.errors import ReverieError

FPS = 15.0  # the rate at which procgen shows its games to people
SIDE = 64  # pixels: the only size procgen observes
TIMEOUT = 1000  # steps after which procgen ends a level
# envpool links Qt 5 and finds the wheel's only when it is loaded already; in this order nothing is left unresolved.
QT = ("libicudata.so.56", "libicuuc.so.56", "libicui18n.so.56", "libQt5Core.so.5", "libQt5Gui.so.5")

# Procgen's own 15, in its order: nine directions, then six keys that CoinRun ignores.
ACTIONS = ActionSpace(
    "discrete",
    15,
    names=(
        *("left down", "left", "left jump", "down", "stay", "jump", "right down", "right", "right jump"),
        *("key d", "key a", "key w", "key s", "key q", "key e"),
    ),
    keys=("1", "ArrowLeft", "7", "ArrowDown", " ", "ArrowUp", "3", "ArrowRight", "9", "d", "a", "w", "s", "q", "e"),
)
# Behaviour: mostly to the right, where the coin is; every action is seen.
CHANCES = np.array([1, 3, 2, 1, 2, 3, 1, 6, 6, *[0.25] * 6])
SUMS = (CHANCES / CHANCES.sum()).cumsum()

IN_TURN = 8  # episodes that each environment plays in a round: at its end some wait for others


@dataclass(frozen=True, kw_only=True)
class CoinRunConfig:
    """CoinRun, played by a random policy that holds each action for a while.

    The same config gives the same episodes, also in parts. Another ``first_level`` gives a held-out set of levels.
    """

    count: int = 500  # episodes to record
    frames: int = 512  # most frames per episode; a level ends by itself at the coin, or in death
    shortest: int = 16  # fewest frames per episode; shorter ones are left out
    size: int = SIDE  # pixels of a side; the game draws 64, other sizes are resampled
    hold: float = 0.75  # probability of repeating the last action
    levels: int = 0  # different levels to play; 0: every episode has its own
    first_level: int = 0  # number of the first level, where levels are given
    num_envs: int = 32  # games played side by side
    seed: int = 0  # seed of the levels and of the policy

    def __post_init__(self):
        if min(self.count, self.size, self.num_envs) < 1 or not 2 <= self.shortest <= self.frames:
            raise ReverieError("coinrun needs count, size and num_envs >= 1, and 2 <= shortest <= frames.")
        if self.frames > TIMEOUT or not 0 <= self.hold < 1 or min(self.levels, self.first_level, self.seed) < 0:
            raise ReverieError(f"coinrun needs frames <= {TIMEOUT}, 0 <= hold < 1, and levels, first_level, seed >= 0.")
        if self.first_level and not self.levels:
            raise ReverieError("first_level means something only with levels: say how many levels to play from there.")

    def spec(self) -> Spec:
        """Return what its episodes have in common."""
        return Spec((self.size, self.size, 3), ACTIONS, FPS, "coinrun")

    def episodes(self, shard: Share | tuple[int, int] = (0, 1)) -> Iterator[Episode]:
        """Yield ``count`` episodes; ``source`` is "level SEED"."""
        refuse_judged(self.first_level + self.levels)
        size = self.num_envs * IN_TURN
        for number in share_of(shard).of(-(-self.count // size)):
            yield from self._round(number, min(size, self.count - number * size))

    def _round(self, number: int, count: int) -> Iterator[Episode]:
        """Yield ``count`` episodes in the order in which they end; they depend on the config and ``number`` alone."""
        rng, many = np.random.default_rng((self.seed, number)), min(self.num_envs, count)
        # Each environment records its share: taking the episodes that end first would favour short ones.
        owed = np.array([count // many + (e < count % many) for e in range(many)])
        with contextlib.closing(_make(replace(self, num_envs=many, seed=int(rng.integers(2**31))))) as envs:
            takes = _Takes(many, self.frames)
            takes.begin(np.arange(many), *envs.reset())
            while owed.any():
                active = np.flatnonzero(owed).astype(np.int32)
                actions = self._policy(rng, takes.last(active))
                pictures, rewards, ended, timed_out, info = envs.step(actions, active)
                assert (info["env_id"] == active).all()
                full = active[takes.add(active, pictures, actions, rewards, ended | timed_out)]
                for e in full.tolist():
                    if takes.lengths[e] >= self.shortest:
                        owed[e] -= 1
                        yield takes.episode(e, self.size)
                if len(full):  # an explicit reset: the automatic one would drop an action and mix two levels
                    takes.begin(full, *envs.reset(full))

    def as_game(self) -> "ProcgenGame":
        """Return the game as people can play it; a seed is the number of a level, which the data need not have."""
        return ProcgenGame(self.spec(), lambda level: _make(replace(self, num_envs=1, levels=1, first_level=level)))

    def _policy(self, rng: np.random.Generator, last: np.ndarray) -> np.ndarray:
        """Return the next action (E,) int32 of each environment, given its last one."""
        drawn = rng.random(len(last))
        fresh = np.searchsorted(SUMS / SUMS[-1], drawn, "right")  # as rng.choice does, in a tenth of its time
        return np.where((rng.random(len(last)) < self.hold) & (last != START), last, fresh).astype(np.int32)


class ProcgenGame:
    """A game of Procgen, played step by step; see ``reverie.data.takes.Game``.

    ``make``: returns one environment for a seed; a fresh one is made for each level, since envpool fixes levels then.
    """

    unseen = JUDGED

    def __init__(self, spec: Spec, make: Callable[[int], Any]):
        self.spec, self._make, self._env = spec, make, make(0)

    def reset(self, seed: int) -> Moment:
        """Begin the level of this seed."""
        self._env.close()
        self._env = self._make(seed)
        return Moment(self._picture(self._env.reset()[0]))

    def step(self, action: Action) -> Moment:
        """Play one step; a level ends at its goal, in death, or after ``TIMEOUT`` steps."""
        pictures, rewards, ended, timed_out, _ = self._env.step(np.array([action], np.int32))
        return Moment(self._picture(pictures), float(rewards[0]), bool(ended[0]), bool(ended[0] or timed_out[0]))

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _picture(self, pictures: np.ndarray) -> np.ndarray:
        return shrunk_to(pictures[0].copy(), self.spec.frame[0])  # envpool reuses the buffer


class _Takes:
    """The levels that E environments are recording, each of at most ``most`` frames; envpool reuses its own arrays."""

    def __init__(self, many: int, most: int):
        self.lengths, self.levels = np.zeros(many, int), np.zeros(many, int)
        self.frames = np.empty((many, most, SIDE, SIDE, 3), np.uint8)
        self.actions, self.rewards = np.empty((many, most), np.int32), np.empty((many, most), np.float32)
        self.ends = np.empty((many, most), np.bool_)

    def begin(self, which: np.ndarray, pictures: np.ndarray, info: dict[str, Any]) -> None:
        """Begin a level in some environments."""
        self.lengths[which], self.levels[which] = 0, info["level_seed"]
        self.add(which, pictures, START, 0.0, False)

    def add(self, which: np.ndarray, pictures: np.ndarray, actions: Any, rewards: Any, ends: Any) -> np.ndarray:
        """Add a frame of some environments; return which of these are done."""
        now = which, self.lengths[which]
        self.frames[now], self.actions[now], self.rewards[now], self.ends[now] = pictures, actions, rewards, ends
        self.lengths[which] += 1
        return self.ends[now] | (self.lengths[which] == self.frames.shape[1])

    def last(self, which: np.ndarray) -> np.ndarray:
        """Return the last action of some environments."""
        return self.actions[which, self.lengths[which] - 1]

    def episode(self, e: int, size: int) -> Episode:
        """Return the level of one environment."""
        frames, actions, rewards, ends = (
            array[e, : self.lengths[e]].copy() for array in (self.frames, self.actions, self.rewards, self.ends)
        )
        return Episode(
            frames=frames if size == SIDE else np.stack([shrunk_to(frame, size) for frame in frames]),
            actions=actions,
            rewards=rewards,
            ends=ends,
            fps=FPS,
            source=f"level {self.levels[e]}",
        )


def shrunk_to(frame: np.ndarray, size: int) -> np.ndarray:
    """Return a frame of Procgen at another size."""
    return frame if size == SIDE else np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BOX))


def _make(config: CoinRunConfig) -> Any:
    levels = {"num_levels": config.levels, "start_level": config.first_level}
    return make_envs("CoinrunHard-v0", num_envs=config.num_envs, seed=config.seed, **levels)


def make_envs(task: str, **options: Any) -> Any:
    """Return envpool's vector environment of a Procgen game; ReverieError if the extra is not installed."""
    try:
        _load_qt()
        envpool, procgen = importlib.import_module("envpool"), importlib.import_module("envpool.procgen")
        if "ProcgenEnvSpec" not in vars(procgen):  # envpool was imported before Qt was there
            importlib.reload(procgen)
        return envpool.make(task, env_type="gymnasium", channel_first=False, **options)
    except (ImportError, OSError) as error:
        raise ReverieError(
            f"Procgen is not installed ({error}); on Linux run: pip install 'reverie-worlds[coinrun]'"
        ) from None


def _load_qt() -> None:
    """Load the Qt libraries of the wheel PyQt5-Qt5; without it those of the system may be enough."""
    package = importlib.util.find_spec("PyQt5")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for name in QT:
            ctypes.CDLL(str(Path(folder) / "Qt5" / "lib" / name), ctypes.RTLD_GLOBAL)
