"""A world as an environment: it generates frames under anyone's actions, and an agent's heads predict rewards and ends.

``ImaginedEnv`` has pure functions on pytrees, for ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``; ``make_env`` of
``reverie/gymnasium_env.py`` wraps it for Gymnasium.

Shapes: H W C image, T real frames before an episode, K recorded contexts.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from reverie.errors import ReverieError, did_you_mean
from reverie.models.agent import Agent
from reverie.nn.patch import to_uint8
from reverie.nn.transformer import unstack_layers
from reverie.training.checkpoint import load
from reverie.training.record import existing, read_record
from reverie.world import begin, temperature_of, with_passes
from reverie.world_folder import agents_of, contexts

LENGTH = 128  # steps of an episode if the world was not learned from a simulator, which says how long its own are
EVEN = 0.5  # an episode ends where the head gives its end at least this probability


@dataclass(frozen=True, kw_only=True)
class EnvOptions:
    """What an environment can be made with, beside the run."""

    context: int = 1  # real frames before an episode: the first ones of a recorded episode
    steps: int = 0  # steps after which an episode is cut off; 0: as long as a recorded episode
    temperature: float | None = None  # of sampling; None: the world's own
    passes: int = 0  # sampling passes per frame; 0: the world's own
    task: str = ""  # what is rewarded, where an agent knows several tasks; "": the first of them

    def __post_init__(self):
        if self.context < 1 or self.steps < 0 or self.passes < 0:
            raise ReverieError(f"an environment needs context >= 1, steps >= 0 and passes >= 0, not {self}.")


class EnvState(NamedTuple):
    """An episode between two steps: the world's KV caches, the random key of its episode, the steps taken so far."""

    world: Any
    key: Array
    time: Array


class Transition(NamedTuple):
    """What a step gives: a frame uint8 (H, W, C), its reward, whether the world ended, whether time is up."""

    frame: Array
    reward: Array
    terminated: Array
    truncated: Array


class ImaginedEnv:
    """Episodes in the world of an agent; ``reset`` and ``step`` are pure and work on one episode.

    An episode begins with real frames, one of ``starts``: frames (K, T, H, W, C) and the actions that led to them. It
    is cut off after ``options.steps`` steps. Rewards are those the agent's head expects, for the task with the id
    ``task``. The same key and actions give the same episode.
    """

    def __init__(self, agent: Agent, starts: tuple[np.ndarray, np.ndarray], options: EnvOptions, task: int = 0):
        self.agent: Agent = unstack_layers(agent)
        self.agent.world = with_passes(self.agent.world, options.passes)
        self.task = task
        self.starts, self.options = starts, options

    @property
    def frame(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.agent.world.config.frame

    @property
    def actions(self) -> Any:
        """The space of actions."""
        return self.agent.world.config.actions

    def reset(self, key: Array) -> tuple[EnvState, Array]:
        """Begin an episode: (state, first frame uint8 (H, W, C), as the tokenizer reconstructs it)."""
        return self.reset_with(self.agent, self.starts, key)

    def step(self, state: EnvState, action: Array) -> tuple[EnvState, Transition]:
        """Take an action () or (A,) and return the state and what it led to."""
        return self.step_with(self.agent, state, action)

    # The same with the weights as an argument, so that a program need not hold them as constants.

    def reset_with(self, agent: Agent, starts: tuple, key: Array) -> tuple[EnvState, Array]:
        """See ``reset``. ``starts``: frames (K, T, H, W, C) and the actions that led to them."""
        key_start, key = jax.random.split(key)
        chosen = jax.random.randint(key_start, (), 0, len(starts[0]))
        frames, actions = (jax.lax.dynamic_slice_in_dim(jnp.asarray(each), chosen, 1) for each in starts)
        cache, frame = begin(agent.world, frames, actions, frames.shape[1], agent.empty(1, self.task))
        return EnvState(cache, key, jnp.zeros((), jnp.int32)), frame

    def step_with(self, agent: Agent, state: EnvState, action: Array) -> tuple[EnvState, Transition]:
        """See ``step``."""
        key = jax.random.fold_in(state.key, state.time)
        cache, frames, _, h = agent.world.imagine(state.world, action[None], key, self.options.temperature)
        time, ended = state.time + 1, agent.continues_of(h, self.task)[0] <= jnp.float32(1 - EVEN)
        found = Transition(to_uint8(frames[0]), agent.rewards_of(h, self.task)[0], ended, time >= self.options.steps)
        return EnvState(cache, state.key, time), found


def load_env(run: str | Path, options: EnvOptions | None = None) -> ImaginedEnv:
    """Return the environment of a run that has an agent; ReverieError if it has none."""
    options, folder = options or EnvOptions(), Path(run) / "agent"
    existing(run)
    agents_of(Path(run))
    agent, spec = load(folder), read_record(folder).spec
    if options.task and options.task not in spec.tasks:
        raise ReverieError(f"'{run}' knows no task '{options.task}'.{did_you_mean(options.task, spec.tasks)}")
    if options.context > agent.world.config.context:
        raise ReverieError(f"'{run}' takes at most {agent.world.config.context} real frames, not {options.context}.")
    steps = options.steps or (LENGTH if spec.simulator is None else spec.simulator.frames - 1)
    temperature = temperature_of(agent.world, options.temperature)
    options = dataclasses.replace(options, steps=steps, temperature=temperature)
    task = spec.tasks.index(options.task) + 1 if options.task else agent.first_task
    return ImaginedEnv(agent, contexts(folder, options.context), options, task)
