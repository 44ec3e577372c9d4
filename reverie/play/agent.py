"""An agent on the page: at every frame it says what it would do and what it expects, and a player may let it play.

The page plays the agent's actions as its own, so a link replays them like any others.

Shapes: N tokens per frame, M model width.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from starlette.websockets import WebSocket

from reverie.models.agent import Agent
from reverie.nn.compiled import compiled
from reverie.play.connection import Connection, Seat, Seats, say
from reverie.training.checkpoint import load
from reverie.world import Session, WorldKVCache, advance_with_features, begin_with_features
from reverie.world_folder import agents_in


def agent_of(run: Path) -> Agent | None:
    """Return the best agent in a world's folder; None if there is none."""
    found = agents_in(run)
    return load(found[0]) if found else None


class AgentSession(Session):
    """A session of an agent's world. ``advice`` is what the agent says after the last frame; frames are the same."""

    def __init__(self, agent: Agent, **options: Any):
        self.agent = agent
        self.advice: dict[str, Any] = {}
        super().__init__(agent.world, **options)

    def _compiled(self) -> tuple[compiled, compiled]:
        return compiled(self.agent, _begin), compiled(self.agent, _advance, donate=(0,), few_rows=True)

    def _shown(self, frame: Array, advice: dict[str, Array]) -> np.ndarray:
        found = jax.device_get(advice)
        action = self.actions.number(found.pop("action"))
        self.advice = {"action": action} | {name: np.round(each, 4).tolist() for name, each in found.items()}
        return super()._shown(frame)


def _begin(agent: Agent, frames: Array, actions: Array, length: Array) -> tuple[WorldKVCache, Array, dict[str, Array]]:
    state = agent.empty(1, agent.first_task)
    cache, picture, h = begin_with_features(agent.world, frames, actions, length, state)
    return cache, picture, _advice(agent, h, jax.random.key(0))


def _advance(agent: Agent, cache: WorldKVCache, action: Array, clock: Array, temperature: Array) -> Any:
    cache, frame, unsure, h = advance_with_features(agent.world, cache, action, clock, temperature)
    # A key that the world does not use: what the agent draws has nothing to do with what the world draws.
    return cache, frame, unsure, _advice(agent, h, jax.random.fold_in(jax.random.key(~clock[0]), clock[1]))


def _advice(agent: Agent, h_1NM: Array, key: Array) -> dict[str, Array]:
    """Return what an agent says about a frame: an action drawn from its policy, and numbers for the page.

    ``shares``: the policy's probability of each button. ``reward``: expected to have arrived with the frame.
    ``goes_on``: the probability that the frame was not the last. ``value``: the expected return from here, if a critic
    has learned it.
    """
    task = agent.first_task
    outputs = agent.policy(h_1NM, task)[0, 0]
    found = {
        "action": agent.actions.sample(outputs, key),
        "shares": agent.actions.shares(outputs),
        "reward": agent.rewards_of(h_1NM, task)[0],
        "goes_on": agent.continues_of(h_1NM, task)[0],
    }
    if agent.value is not None:
        found["value"] = agent.config.values.mean(agent.value(h_1NM, task))[0]
    return jax.tree.map(jnp.asarray, found)


class AgentSeats(Seats):
    """Seats at an agent's world: ``world`` is the agent's."""

    def __init__(self, agent: Agent, *given: Any):
        self.agent = agent
        super().__init__(*given)

    def session(self) -> AgentSession:
        """Return a new session with the agent."""
        return AgentSession(self.agent)

    def connect(self, socket: WebSocket, seat: Seat, card: dict[str, Any]) -> Connection:
        """Return a connection that also says what the agent would do."""
        return _Connection(socket, seat, self, {**card, "agent": True})


class _Connection(Connection):
    async def _show(self, frame: np.ndarray, action: int, id: int) -> None:
        advice = self.session.advice  # before the next command changes it
        await super()._show(frame, action, id)
        await say(self.socket, "agent", id=id, **advice)
