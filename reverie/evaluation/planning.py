"""Planning: an actor that searches for actions in imagination, by the cross-entropy method or random shooting.

At every real frame it draws sequences of actions, rolls all of them out in the world, and adds up predicted rewards and
the value of the last frame. It then draws near the best sequences again. It takes the first action of the best one.

Source: the cross-entropy method as in PlaNet (arXiv 1811.04551, algorithm 2).

Shapes: B episodes, H steps of a rollout, S samples, N tokens per frame, M model width, P numbers that
describe a policy.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from reverie.models.agent import Agent
from reverie.nn.returns import lambda_returns
from reverie.world import rollout


@dataclass(frozen=True, kw_only=True)
class Planner:
    """A way to choose actions, for ``evaluation.environment.Actor``. With one round it is random shooting."""

    horizon: int = 6  # steps that it looks ahead
    samples: int = 32  # sequences drawn in each round
    elites: int = 6  # of them, the best, which the next round is drawn near
    rounds: int = 2
    gamma: float = 0.9  # discount of a step: that of the value, if there is one

    def __post_init__(self):
        if min(self.horizon, self.elites, self.rounds) < 1 or self.samples < self.elites or not 0 < self.gamma <= 1:
            raise ValueError(f"a planner needs horizon, rounds and elites >= 1, samples >= elites, not {self}")

    def __call__(self, agent: Agent, state: Any, h: Array, key: Array, task: int) -> Array:
        """Choose actions (B,) or (B, A) by the state of a world's dynamics and its features (B, N, M), for a task."""
        space = agent.actions

        def search(outputs: Array, key: Array) -> tuple[Array, Array]:
            key_draw, key_world = jax.random.split(key)
            every = jnp.broadcast_to(outputs[None], (self.samples, *outputs.shape))
            actions = space.sample(every, key_draw)
            # All sequences use the same noise, so that their scores differ by their actions alone.
            scores = jax.vmap(lambda each: self.score(agent, state, each, key_world, task))(actions)
            best = jnp.argsort(-scores, axis=0)[: self.elites]
            best = best.reshape(self.elites, 1, len(h), *(1 for _ in space.space.shape))
            elites = jnp.take_along_axis(actions, best, axis=0)
            return space.fitted(elites), elites[0, 0]

        uniform = jnp.zeros((self.horizon, len(h), space.parameters))
        return jax.lax.scan(search, uniform, jax.random.split(key, self.rounds))[1][-1]

    def score(self, agent: Agent, state: Any, actions: Array, key: Array, task: int = 0) -> Array:
        """Return the discounted return (B,) of actions (H, B, ...), imagined, with the value of what follows."""
        _, steps = rollout(agent.world.dynamics, state, None, jnp.swapaxes(actions, 0, 1), key, self.horizon)
        rewards, continues = agent.rewards_of(steps.h, task), agent.continues_of(steps.h, task)
        values = jnp.zeros((self.horizon + 1, *rewards.shape[1:]))
        if agent.value is not None:
            values = values.at[-1].set(agent.config.values.mean(agent.value(steps.h[-1], task)))
        return lambda_returns(rewards, continues, values, self.gamma, 1.0)[0]
