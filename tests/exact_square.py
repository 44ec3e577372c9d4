"""The bouncing square as a world without error: its dynamics are the simulator's own, on arrays, for the oracle arm.

A picture is one pixel that holds (x, y, side), so data, cloning, imagination and evaluation are what they are in any
world. If an agent does not learn here, no learned world is to blame.

B batch, T time; features are (B, 1, 7): the way to the centre, the side, the last action.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reverie import config
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.square import MOVES, SIZE, Square, SquareConfig
from reverie.models.agent import AgentConfig
from reverie.nn.heads import HeadConfig, TwoHot
from reverie.training.agents import BehaviourObjective
from reverie.training.engine import Run
from reverie.training.optim import OptimConfig
from reverie.world import WorldConfig, WorldModel

config.packages.add(__name__)  # so that run.json may name the classes below

HEADS = AgentConfig(head=HeadConfig(width=64), ahead=2, rewards=TwoHot(bins=63, reach=3.2), values=TwoHot(reach=5.5))


class Seen(Square):
    def render(self, state):
        return state[:3].astype(np.uint8)[None, None]


@dataclass(frozen=True, kw_only=True)
class SeenConfig(SquareConfig):
    def spec(self):
        return replace(super().spec(), frame=(1, 1, 3))

    def make(self):
        return Seen(self.actions, super().make().goal)


class Eyes(nnx.Module):
    receptive_field, grid = 0, (1, 1)

    def encode(self, frames):
        return frames[:, :, 0].astype(jnp.float32)

    def decode(self, latents):
        return latents[:, :, None] / 255

    def empty(self, batch):
        return ()

    def decode_frame(self, cache, latents):
        return cache, latents[:, None] / 255


class Exact(nnx.Module):
    temperature = 0.0

    def empty(self, batch):
        return jnp.zeros((batch, 1, 3))

    def observe(self, state, latents, actions):
        x, y, side = latents[:, 0].T
        way = jnp.stack([(place - (SIZE - side) / 2) / 8 for place in (x, y)] + [side / 16], axis=1)
        return latents, jnp.concatenate([way, jax.nn.one_hot(actions, len(MOVES))], axis=1)[:, None]

    def imagine(self, state, actions, key, temperature=None):
        room, moves = SIZE - state[:, 0, 2:], jnp.asarray(MOVES, jnp.float32)[actions]
        places = room - jnp.abs(room - jnp.abs(state[:, 0, :2] + moves))
        latents = jnp.concatenate([places, state[:, 0, 2:]], axis=1)[:, None]
        state, h = self.observe(state, latents, actions)
        return state, latents, h


def exact_world() -> WorldModel:
    spec = SeenConfig().spec()
    return WorldModel(WorldConfig(frame=spec.frame, actions=spec.actions, context=1), Eyes(), None, Exact())


@dataclass(frozen=True, kw_only=True)
class ExactBehaviour(BehaviourObjective):
    """Cloning in the exact world, which no run has trained."""

    agent: AgentConfig = HEADS

    def init(self, rngs: nnx.Rngs, spec, folder: Path):
        return self.agent.make(exact_world(), rngs, len(spec.tasks))


def play(count: int = 32, seed: int = 0) -> ArrayDataset:
    source = SeenConfig(count=count, seed=seed, play="mixed")
    return ArrayDataset.from_episodes(source.spec(), source.episodes())


def run(objective, steps: int, batch: int = 16, length: int = 8, rate: float = 1e-3, **changes) -> Run:
    optimizer = OptimConfig(rate=rate, schedule="constant", warmup=0, weight_decay=0.0)
    clocks = {"log_every": 1, "report_every": 0, "save_every": 0, **changes}
    return Run(objective=objective, batch=batch, length=length, steps=steps, optimizer=optimizer, **clocks)
