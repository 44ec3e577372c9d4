"""Unmodified PPO of Stable-Baselines3, trained in a world model or in its real game, and measured in the real game.

Usage: pip install 'reverie-worlds[sb3]'; python stable_baselines.py runs/toy-agent [--real] [--passes 1] [--seed 1]
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import reverie
from reverie.evaluation.control import interval
from reverie.evaluation.environment import real_environment, returns
from reverie.gymnasium_env import action_space


class RealGame(gymnasium.Env):
    """The game that a run's data came from, in random levels; episodes last as long as recorded ones."""

    def __init__(self, run: Path):
        self.game = real_environment(run)
        self.observation_space = gymnasium.spaces.Box(0, 255, self.game.games[0].spec.frame, np.uint8)
        self.action_space = action_space(self.game.actions)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in a level that is none of those of the evaluation."""
        super().reset(seed=seed)
        self.left = self.game.steps
        return self.game.reset([int(self.np_random.integers(self.game.unseen(1, 0)[0]))])[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take an action; time is up after as many steps as a recorded episode has."""
        frames, rewards, over = self.game.step(np.asarray(action)[None])
        self.left -= 1
        return frames[0], float(rewards[0]), bool(over[0]), not self.left, {}


parser = argparse.ArgumentParser()
parser.add_argument("run", type=Path, help="a world with an agent")
parser.add_argument("--real", action="store_true", help="train in the real game instead of the world")
parser.add_argument("--passes", type=int, default=0, help="sampling passes per frame; 0: the world's own")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--rows", type=int, default=8, help="episodes at a time")
parser.add_argument("--policy", default="CnnPolicy", help="MlpPolicy for frames of less than 36 pixels")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()


def make() -> gymnasium.Env:
    return RealGame(args.run) if args.real else reverie.make_env(args.run, passes=args.passes)


settings = {"n_steps": 256, "batch_size": 256, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 0.95, "ent_coef": 0.01}
rows = make_vec_env(make, n_envs=args.rows, seed=args.seed)
player = PPO(args.policy, rows, seed=args.seed, verbose=1, **settings).learn(args.steps, log_interval=10)
for name, act in {
    "random actions": lambda frames, _: np.array([rows.action_space.sample() for _ in frames]),
    "PPO": lambda frames, _: player.predict(frames)[0],
}.items():
    found = returns(args.run, act)
    low, high = interval(found)
    print(
        f"mean return of {name} in {len(found)} levels of the real game: {found.mean():.3f} ({low:.3f} to {high:.3f})"
    )
