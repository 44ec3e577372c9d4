"""Unmodified PPO of Stable-Baselines3, trained in a world model and measured in the real game.

Usage: pip install 'reverie-worlds[sb3]'; python stable_baselines.py runs/toy-agent [STEPS]
"""

import sys

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import reverie
from reverie.evaluation.environment import returns

run, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
rows = make_vec_env(lambda: reverie.make_env(run), n_envs=1 if steps < 1000 else 8, seed=0)
player = PPO("MlpPolicy", rows, n_steps=32, batch_size=32, gamma=0.95, seed=0, verbose=1)
player.learn(steps)


def act(frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return player.predict(frames)[0]


print(f"mean return in the real game: {returns(run, act, episodes=64).mean():.2f}")
