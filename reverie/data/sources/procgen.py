"""The sixteen games of Procgen (Cobbe et al. 2020), simulated by envpool; CoinRun has a source of its own beside it.

Each episode plays one level, whose number is noted, from its start. An episode depends on nothing but the config and
its own number, so parts of an array job give the episodes of one job, to the bit. Needs the extra ``coinrun``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.episode import Episode, Share, Spec, share_of
from reverie.data.sources.coinrun import ACTIONS, FPS, SIDE, TIMEOUT, ProcgenGame, make_envs
from reverie.data.takes import Take, refuse_judged
from reverie.errors import ReverieError, did_you_mean

Name = Literal[
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
]  # fmt: skip
HELD = 0.75  # probability that a policy repeats its action, unless it is "random"
SPACE = ActionSpace("discrete", 15, tuple(name.replace("jump", "up") for name in ACTIONS.names), ACTIONS.keys)
# Where a scripted player mostly goes: the goal of these games is there. Key d fires, and key w jumps far.
GOALS = {
    "climber": ("up", "left up", "right up"),
    "coinrun": ("right", "right up", "up"),
    "dodgeball": ("key d", "up", "down", "left", "right"),
    "fruitbot": ("left", "right", "stay", "key d"),
    "jumper": ("up", "left up", "right up"),
    "leaper": ("up", "stay"),
    "ninja": ("right", "right up", "key w"),
    "plunder": ("left", "right", "key d"),
    "starpilot": ("right", "up", "down", "key d"),
    "bossfight": ("left", "right", "key d"),
    "caveflyer": ("up", "left", "right", "key d"),
}
WALKS = ("left", "right", "up", "down")  # in the others, whose four ways are alike
GOAL_SHARE = 0.8  # of a scripted player's choices
MIXED_SHARE = 0.2, 1.0  # range of that share where every episode draws its own


@dataclass(frozen=True, kw_only=True)
class ProcgenConfig:
    """A game of Procgen, one level per episode, played at random or towards its goal."""

    game: Name = "starpilot"  # which game
    path: str = ""  # the game by the flag that every source has: maze, or procgen-maze-v0
    count: int = 500  # episodes to record
    frames: int = 512  # most frames per episode; a level ends by itself at its goal, or in death
    size: int = SIDE  # pixels of a side; the games draw 64, other sizes are resampled
    # hold actions, draw a new one each time, head for the goal, or head for it more or less from episode to episode
    policy: Literal["sticky", "random", "scripted", "mixed"] = "sticky"
    levels: int = 0  # different levels to play; 0: every episode has its own
    first_level: int = 0  # number of the first level
    mode: Literal["hard", "easy"] = "hard"  # the game as published, or with few backgrounds
    seed: int = 0  # seed of the policy

    def __post_init__(self):
        if self.path:
            named = self.path.removeprefix("procgen-").removesuffix("-v0")
            if named not in get_args(Name):
                raise ReverieError(f"there is no game '{self.path}' of Procgen.{did_you_mean(named, get_args(Name))}")
            object.__setattr__(self, "game", named)
        if min(self.count, self.size) < 1 or not 2 <= self.frames <= TIMEOUT:
            raise ReverieError(f"procgen needs count and size >= 1, and 2 <= frames <= {TIMEOUT}.")
        if min(self.levels, self.first_level, self.seed) < 0 or self.first_level + self.count >= 2**31:
            raise ReverieError("procgen needs levels, first_level and seed >= 0, and levels below 2^31.")

    def spec(self) -> Spec:
        """Return what its episodes have in common."""
        return Spec((self.size, self.size, 3), SPACE, FPS, self.game)

    def episodes(self, shard: Share | tuple[int, int] = (0, 1)) -> Iterator[Episode]:
        """Yield ``count`` episodes; ``source`` is "GAME, level NUMBER"."""
        refuse_judged(self.first_level + (self.levels or self.count))
        game = self.as_game()
        try:
            for index in share_of(shard).of(self.count):
                level = self.first_level + (index % self.levels if self.levels else index)
                rng = np.random.default_rng((self.seed, index))
                share = self._goal_share(rng)
                take, action = Take(game.spec, level, game.reset(level)), -1
                while len(take.moments) < self.frames and not take.moments[-1][1].over:
                    action = self._next(rng, action, share)
                    take.add(action, game.step(action))
                yield take.episode(self.game)
        finally:
            game.close()

    def as_game(self) -> ProcgenGame:
        """Return the game as people can play it; a seed is the number of a level."""
        task, one = f"{self.game.capitalize()}{self.mode.capitalize()}-v0", {"num_envs": 1, "num_threads": 1, "seed": 0}
        return ProcgenGame(self.spec(), lambda level: make_envs(task, **one, num_levels=1, start_level=level))

    def _goal_share(self, rng: np.random.Generator) -> float:
        """Return the share of an episode's choices that head for the goal."""
        if self.policy == "mixed":
            return rng.uniform(*MIXED_SHARE)
        return GOAL_SHARE if self.policy == "scripted" else 0.0

    def _next(self, rng: np.random.Generator, last: int, goal_share: float) -> int:
        """Return the next action of the policy, after another or at the start (-1)."""
        if self.policy != "random" and last >= 0 and rng.random() < HELD:
            return last
        if goal_share and rng.random() < goal_share:
            return SPACE.names.index(str(rng.choice(GOALS.get(self.game, WALKS))))
        return int(rng.integers(SPACE.size))
