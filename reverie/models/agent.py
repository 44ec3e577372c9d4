"""An agent: heads over the features of a world's dynamics.

What an agent reads is one thing everywhere: ``h``, the features (N, M) that ``dynamics.observe`` and
``dynamics.imagine`` return for a finished frame. Training reads it of recorded clips (``world.features``), imagination
of rollouts, evaluation and play of real frames. All of them begin with ``Agent.empty``, which decides what ``h`` is:
features, agent tokens (A, M), or embeddings of tokens. ``h`` of frame t has seen the action that led to t. So the
policy at t predicts the action taken *from* t, and reward and end are those that *arrived with* t.

Shapes: ... any leading axes, N tokens per frame, M model width, P numbers that describe a policy.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.errors import ReverieError
from reverie.nn.agent_tokens import AgentTokens
from reverie.nn.batch import Rows
from reverie.nn.heads import ActionDistribution, Head, HeadConfig, TwoHot
from reverie.nn.running import RunningMoments, RunningRMS, Statistics

MARGIN = 0.1  # of the range of real returns: how far outside it an imagined one may lie
TOO_MANY = 0.05  # share of rollouts outside that sets off the alarm


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The heads of an agent. Each has a network of its own: none moves another's features."""

    head: HeadConfig = field(default_factory=HeadConfig)  # the network of each head
    # heads read embeddings of the tokens of this frame and the one before (MaskGIT), from which rewards are learned ten
    # times sooner than from its features
    inputs: bool = False
    tokens: int = 0  # agent tokens that the world's transformer runs (A); 0: the heads read the tokens of the frame
    ahead: int = 8  # L: policy, reward and end are predicted for this frame and the L - 1 after it
    rewards: TwoHot = field(default_factory=TwoHot)  # bins of rewards
    values: TwoHot = field(default_factory=TwoHot)  # bins of values

    def __post_init__(self):
        if self.ahead < 1:
            raise ValueError(f"an agent predicts 1 step ahead at least, not {self.ahead}")

    def make(self, world: Any, rngs: nnx.Rngs, tasks: int = 0, finetunes: bool = False) -> "Agent":
        """Return an agent that has learned nothing, in a world that has. ``tasks``: how many it is conditioned on.

        Agent tokens are put into the world's dynamics; ReverieError if these are of a family that has none.
        """
        if self.inputs and not hasattr(world.dynamics, "inputs"):
            raise ReverieError(f"{type(world.dynamics).__name__} dynamics show agents no inputs: let inputs be False.")
        if self.tokens:
            if not hasattr(world.dynamics, "agents"):
                raise ReverieError(f"{type(world.dynamics).__name__} dynamics have no agent tokens: let tokens be 0.")
            world.dynamics.agents = AgentTokens(self.tokens, world.dynamics.transformer, tasks, rngs=rngs)
        features, size = self.feature_shape(world), ActionDistribution(world.config.actions).parameters
        outputs = {"policy": (self.ahead, size), "reward": (self.ahead, self.rewards.bins), "ends": (self.ahead,)}
        grid = grid_of(world, features[0])
        heads = {name: Head(self.head, features, shape, tasks, grid, rngs=rngs) for name, shape in outputs.items()}
        return Agent(self, world, **heads, finetunes=finetunes)

    def empty(self, world: Any, batch: int, task: Array | int = 0) -> Any:
        """Return the state of a world's dynamics before the first frame; it decides which features heads get of it."""
        chosen = ({"inputs": True} if self.inputs else {}) | ({"task": task} if self.tokens else {})
        return world.dynamics.empty(batch, **chosen)

    def feature_shape(self, world: Any) -> tuple[int, int]:
        """Return (N, M) of the features that heads get of a world; nothing is computed."""

        def first(frames: Array) -> Array:
            start = jnp.asarray(world.config.actions.start((1,)))
            return world.dynamics.observe(self.empty(world, 1), world.encode(frames)[:, 0], start)[1]

        _, tokens, width = jax.eval_shape(first, jax.ShapeDtypeStruct((1, 1, *world.config.frame), jnp.uint8)).shape
        return tokens, width


def grid_of(world: Any, tokens: int) -> tuple[int, int] | None:
    """Return rows and columns of the ``tokens`` that heads read; None if these have no positions in the picture."""
    rows, columns = world.tokenizer.grid
    of_frame = getattr(world.dynamics, "agents", None) is None and rows * columns == tokens
    return (rows, columns) if of_frame and rows > 1 else None


class Agent(nnx.Module):
    """A policy, and predictions of reward and end; ``world`` is the WorldModel whose features they read.

    ``prior`` and ``value``: of an agent that learns in imagination. ``finetunes``: the dynamics learn with the heads.
    """

    def __init__(
        self, config: AgentConfig, world: Any, policy: Head, reward: Head, ends: Head, prior: Any = None,
        value: Any = None, finetunes: bool = False,
    ):  # fmt: skip
        self.config, self.world = config, world
        # While it clones, what learns of the world is a part of the agent. Later it is the frozen world's.
        self.dynamics: Any = world.dynamics if finetunes else None
        self.tokens: Any = getattr(world.dynamics, "agents", None) if prior is None else None
        self.actions = ActionDistribution(world.config.actions)
        self.policy, self.reward, self.ends = policy, reward, ends
        self.prior: Any = prior
        self.value: Any = value
        # Statistics of training: by cloning, and in imagination.
        self.scales: Any = LossScales(finetunes) if prior is None else None
        self.returns: Any = None if prior is None else Returns()

    @property
    def tasks(self) -> int:
        """How many tasks it knows by id; 0 if it is not conditioned on any."""
        return 0 if self.policy.tasks is None else len(self.policy.tasks.table) - 1

    @property
    def first_task(self) -> int:
        """The id of its task where none is named; 0 if it knows none."""
        return min(self.tasks, 1)

    def empty(self, batch: int, task: Array | int = 0) -> Any:
        """Return the state of the world's dynamics before the first frame, of rows with a task."""
        return self.config.empty(self.world, batch, task)

    def act(self, h: Array, key: Array, greedy: bool = False, task: Array | int = 0) -> Array:
        """Choose actions (...) or (..., A) by features (..., N, M); ``greedy``: the most probable ones.

        ``task``: the id of the task, here and below (see ``nn.heads.Head``).
        """
        outputs = self.policy(h, task)[..., 0, :]
        return self.actions.mode(outputs) if greedy else self.actions.sample(outputs, key)

    def rewards_of(self, h: Array, task: Array | int = 0) -> Array:
        """Return the expected reward that arrived with frames, (...)."""
        return self.config.rewards.mean(self.reward(h, task)[..., 0, :])

    def continues_of(self, h: Array, task: Array | int = 0) -> Array:
        """Return the probability that the world did not end with frames, (...)."""
        return jax.nn.sigmoid(-self.ends(h, task)[..., 0])


class LossScales(nnx.Module):
    """Running scales of the losses of an agent's heads and of its dynamics, if they learn; their units differ."""

    def __init__(self, dynamics: bool = False):
        self.policy, self.reward, self.ends = RunningRMS(), RunningRMS(), RunningRMS()
        self.dynamics = RunningRMS() if dynamics else None


class Returns(nnx.Module):
    """What imagination is compared with: the deviation of advantages, and the range of returns in real data."""

    def __init__(self):
        self.advantages = RunningMoments()
        self.low, self.high = (Statistics(jnp.full((), end, jnp.float32)) for end in (np.inf, -np.inf))

    def note(self, advantages: Array, real_B: Array) -> tuple:
        """Return what ``settle`` needs of a step."""
        return self.advantages.note(advantages), Rows(real_B)

    def settle(self, note: tuple, key: Array, progress: Array) -> None:
        """Update from all advantages and real returns of a step."""
        moments, real = note
        self.advantages.settle(moments, key, progress)
        self.low[...] = jnp.minimum(self.low[...], jnp.min(real.array))
        self.high[...] = jnp.maximum(self.high[...], jnp.max(real.array))

    def outside(self, imagined_B: Array, real_B: Array) -> Array:
        """Return which imagined returns leave the range of all real ones so far, (B,)."""
        low, high = jnp.minimum(self.low[...], jnp.min(real_B)), jnp.maximum(self.high[...], jnp.max(real_B))
        return is_outside(imagined_B, low, high)


def is_outside(imagined: Any, low: Any, high: Any) -> Any:
    """Return which imagined returns lie outside low..high by more than ``MARGIN`` of that range; for any arrays."""
    spare = np.float32(MARGIN) * (high - low)
    return (imagined < low - spare) | (imagined > high + spare)
