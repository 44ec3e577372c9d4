"""The platformer as a world without error: its dynamics are the simulator's own, on arrays, for the oracle arm.

A picture is a column of numbers: the level's walls, the coins that are left, and the player. So data, cloning,
imagination and evaluation are what they are in any world. Features are the 11 x 11 tiles around the player.

B batch; the walls are (tiles + 2, tiles + 2) with a border, as in the simulator.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from exact_square import Eyes
from flax import nnx

from reverie import config
from reverie.data.sources.platformer import (
    COINS,
    FALL,
    JUMP,
    JUMP_TILES,
    LEFT,
    LEVEL,
    POSE,
    RIGHT,
    RISE,
    RISING,
    STAND,
    STAY,
    WALK,
    Platformer,
    PlatformerConfig,
    X,
    Y,
    _level,
)  # fmt: skip
from reverie.models.agent import AgentConfig
from reverie.nn.heads import HeadConfig, TwoHot
from reverie.training.agents import BehaviourObjective
from reverie.world import WorldConfig, WorldModel

config.packages.add(__name__)  # so that run.json may name the classes below

TILES, AROUND = 6, 5
WALLS = (TILES + 2) ** 2
SIZE = 2 * WALLS + 4  # walls, coins, then row, column, pose, rising
HEADS = AgentConfig(
    head=HeadConfig(width=128), ahead=2, rewards=TwoHot(bins=63, reach=1.4), values=TwoHot(bins=63, reach=1.8)
)


class Seen(Platformer):
    def render(self, state):
        level, tile = _level(int(state[LEVEL]), TILES, self.config.themes), self.config.tile
        coins = np.zeros((TILES + 2, TILES + 2), np.uint8)
        for index, (row, column) in enumerate(level.coins):
            coins[row + 1, column + 1] = int(state[COINS]) >> index & 1
        player = [state[Y] // tile, state[X] // tile, state[POSE], state[RISING]]
        return np.concatenate([np.ravel(level.solid), coins.ravel(), player]).astype(np.uint8)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class SeenConfig(PlatformerConfig):
    tiles: int = TILES
    frames: int = 17
    themes: int = 2

    def spec(self):
        return replace(super().spec(), frame=(SIZE, 1, 1))

    def make(self):
        return Seen(self)


class Column(Eyes):
    def encode(self, frames):
        return frames[..., 0].astype(jnp.float32).swapaxes(2, 3)


class Exact(nnx.Module):
    temperature = 0.0

    def empty(self, batch):
        return jnp.zeros((batch, 1, SIZE))

    def observe(self, state, latents, actions):
        return latents, jax.vmap(_features)(latents[:, 0])[:, None]

    def imagine(self, state, actions, key, temperature=None):
        latents = jax.vmap(step)(state[:, 0], actions)[:, None]
        state, h = self.observe(state, latents, actions)
        return state, latents, h


def _features(x):
    walls, coins, (row, column, *rest) = _parts(x)
    planes = jnp.stack([jnp.pad(each, AROUND, constant_values=fill) for each, fill in ((walls, 1), (coins, 0))])
    crop = jax.lax.dynamic_slice(planes, (0, row + 1, column + 1), (2, 2 * AROUND + 1, 2 * AROUND + 1))
    return jnp.concatenate([crop.ravel(), jax.nn.one_hot(rest[0], 4), rest[1][None] / 2, _missing(coins)[None]])


def _missing(coins):
    return (jnp.sum(coins) == 0).astype(jnp.float32)


def _parts(x):
    walls, coins = (each.reshape(TILES + 2, TILES + 2) for each in (x[:WALLS], x[WALLS : 2 * WALLS]))
    return walls, coins, tuple(x[2 * WALLS :].astype(jnp.int32))


def step(x, action):
    """What ``Platformer.step`` does, on the numbers of a picture."""
    walls, coins, (y, x_, pose, rising) = _parts(x)

    def free(row, column):
        return (walls[row + 1, column + 1] == 0).astype(jnp.int32)

    way = (action == RIGHT).astype(jnp.int32) - (action == LEFT).astype(jnp.int32)
    jumps = (action == JUMP) & ((pose == STAND) | (pose == WALK))
    rising = jnp.where(jumps, JUMP_TILES, rising)
    up = free(y - 1, x_)
    y_up = y - up
    x_up = x_ + way * free(y_up, x_ + way)
    x_down = x_ + way * free(y, x_ + way)
    y_down = y + (action != JUMP).astype(jnp.int32) * free(y + 1, x_down)
    rises = (rising > 0) & (action != STAY)
    y, x_ = jnp.where(rises, y_up, y_down), jnp.where(rises, x_up, x_down)
    rising = jnp.where(rises, rising - up, 0)
    standing = jnp.where(way != 0, WALK, STAND)
    pose = jnp.where(rising > 0, RISE, jnp.where(free(y + 1, x_) == 1, FALL, standing))
    coins = coins.at[y + 1, x_ + 1].set(0.0)
    return jnp.concatenate([walls.ravel(), coins.ravel(), jnp.stack([y, x_, pose, rising]).astype(jnp.float32)])


@dataclass(frozen=True, kw_only=True)
class ExactBehaviour(BehaviourObjective):
    """Cloning in the exact world, which no run has trained."""

    agent: AgentConfig = HEADS

    def init(self, rngs: nnx.Rngs, spec, folder: Path):
        world = WorldConfig(frame=spec.frame, actions=spec.actions, context=1)
        return self.agent.make(WorldModel(world, Column(), None, Exact()), rngs)
