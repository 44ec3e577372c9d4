"""What an agent learns: from recorded play (cloning, rewards, ends), then in imagination. Both run under ``fit``.

Sources: Dreamer 4 (arXiv 2509.24527, sections 3.3 and 3.4). The world stays as it is; only heads are trained.

Shapes: B batch, T time, H steps of a rollout, N tokens per frame, M model width, L offsets ahead, P numbers that
describe a policy.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.data.episode import Dataset, Spec
from reverie.data.loader import RELEVANT
from reverie.data.tasked import TASK, Tasked
from reverie.errors import ReverieError
from reverie.models.agent import TOO_MANY, Agent, AgentConfig
from reverie.nn.batch import Loss, Mean, mean, row_keys, weighted_rows
from reverie.nn.embed import from_start
from reverie.nn.heads import Head, bernoulli_nll
from reverie.nn.returns import PMPO, Reinforce, alive, lambda_returns
from reverie.nn.step import step_key
from reverie.training.checkpoint import load
from reverie.training.objectives import Encode, check_fits
from reverie.training.tokens import cached
from reverie.world import features, prefill, rollout, with_passes

LEAD = 32  # frames observed before a segment of a long episode, so that features know what came before


@dataclass(frozen=True, kw_only=True)
class BehaviourObjective:
    """Clone recorded play, and predict rewards and ends, from the features of a frozen world.

    Agent tokens (``agent.tokens``) learn with the heads, and so do the dynamics with ``finetune``. Then features change
    in every step and cannot be cached. If the run draws relevant clips (``Run.relevant``), Dreamer 4's split of losses
    holds: the policy clones those alone, the dynamics learn from the others, rewards and ends are learned from all.
    """

    agent: AgentConfig = field(default_factory=AgentConfig)  # the heads
    finetune: bool = False  # the dynamics learn too, as in Dreamer 4; steps cost as much as those of the dynamics
    world: str = "../dynamics"  # folder of the world's dynamics, relative to this run's folder
    frozen: tuple[str, ...] = ("world",)  # parts that do not learn

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays of a batch."""
        return ("latents" if self._learns_to_read else "features"), "actions", "rewards", "ends", TASK, RELEVANT

    @property
    def _learns_to_read(self) -> bool:
        return self.finetune or self.agent.tokens > 0

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> Agent:
        """Return a new agent in the world that was trained before."""
        world = check_fits(load(folder / self.world), "prefill", "world", folder / self.world, spec)
        return self.agent.make(world, rngs, len(spec.tasks), self.finetune)

    @property
    def encoder(self) -> Encode:
        """The world's features, or its latents if these are read again in every step."""
        return _latents if self._learns_to_read else _features

    def prepare(self, model: Agent, dataset: Dataset, cache: Path) -> Dataset:
        """Features or latents, and the actions that condition the world, computed once; the rest as recorded."""
        return _prepared(model, self.encoder, dataset, cache)

    def loss(self, model: Agent, batch: dict[str, Array], keys_B: Array, progress: Array) -> Loss:
        """Cross-entropies of actions, rewards and ends, now and up to L - 1 steps ahead, each divided by its RMS.

        A step whose action was not recorded teaches nothing: features have not seen what led to its reward.
        """
        found = behaviour_losses(model, batch)
        losses = {name: mean(*found[name]) for name in ("policy", "reward", "ends")}
        notes: dict[str, Any] = {"scales": losses}
        if self.finetune:
            rows = batch["latents"], batch["actions"], keys_B
            if RELEVANT in batch:
                uniform = 1 - batch[RELEVANT].astype(jnp.float32)
                learned = weighted_rows(lambda row: model.dynamics.loss(*row), rows, uniform)
            else:
                learned = model.dynamics.loss(*rows)
            losses["dynamics"], notes["dynamics"] = learned.terms[0], learned.notes
        terms = tuple(getattr(model.scales, name)(each) for name, each in losses.items())
        return Loss(terms, _behaviour_metrics(found), notes)

    def report(self, model: Agent, batch: dict[str, Array], key: Array) -> dict[str, Array]:
        """The same numbers, of held-out clips."""
        return {name: each.value for name, each in _behaviour_metrics(behaviour_losses(model, batch)).items()}


def behaviour_losses(model: Agent, batch: dict[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Return the loss and the weight of every prediction: of policy, reward and ends (B, T, L), of "error" (B, T).

    ``actions[t]``, ``rewards[t]``, ``ends[t]`` belong to the step that led to frame t. So at frame t, n steps ahead,
    the policy is trained on ``actions[t + 1 + n]``, and reward and end on those of t + n. "error" is that of rewards
    predicted where they arrive, in units of reward. Where some clips are relevant, the policy has no weight in others.
    """
    actions, rewards, ends = (batch[name] for name in ("actions", "rewards", "ends"))
    space, count, task = model.world.config.actions, model.config.ahead, batch.get(TASK, 0)
    h = batch["features"] if "features" in batch else _read(model, batch["latents"], actions, _task_of(batch))
    known = (~space.is_start(actions) & ~space.is_unlabelled(actions)).astype(jnp.float32)
    (taken, when), (now, arrived) = (_ahead(known, first, count) for first in (1, 0))
    if RELEVANT in batch:
        taken = taken * batch[RELEVANT].astype(jnp.float32)[:, None, None]
    policy, reward = model.policy(h, task), model.reward(h, task)
    error = jnp.abs(model.config.rewards.mean(reward[:, :, 0]) - rewards)
    return {
        "policy": (-model.actions.log_prob(policy, actions[:, when]), taken),
        "reward": (model.config.rewards.nll(reward, rewards[:, arrived]), now),
        "ends": (bernoulli_nll(model.ends(h, task), ends[:, arrived]), now),
        "error": (error, known),
    }


def _ahead(known_BT: Array, first: int, count: int) -> tuple[Array, np.ndarray]:
    """Return for each frame, and each of ``count`` steps from ``first`` on: its weight (B, T, L), its time (T, L)."""
    length = known_BT.shape[1]
    at = np.arange(length)[:, None] + first + np.arange(count)
    inside = jnp.asarray(at < length, jnp.float32)
    at = np.minimum(at, length - 1)
    return known_BT[:, at] * inside[None], at


def _behaviour_metrics(found: dict[str, tuple[Array, Array]]) -> dict[str, Mean]:
    """Numbers of the predictions for now: of the next action, and of the reward and end that have just arrived."""
    now = {name: mean(loss[..., 0], weight[..., 0]) for name, (loss, weight) in found.items() if loss.ndim == 3}
    return {f"{name}_nll": each for name, each in now.items()} | {"reward_error": mean(*found["error"])}


@dataclass(frozen=True, kw_only=True)
class ImaginationObjective:
    """Improve a cloned policy by rollouts in its world: no frame of them is real but the first few.

    Policy and value are trained, one network each. The policy starts from the cloned one, which stays beside it as
    the prior. World, reward and ends are frozen. The critic is trained before the actor: PMPO reads only the sign of
    return minus value, so with a value of 0 every action is bad where rewards are negative.

    A rollout has one key, which is its first row's: computed in parts (``accumulate``) a batch draws other actions.
    """

    learner: PMPO | Reinforce = field(default_factory=PMPO)  # how the policy learns from advantages
    agent: str = "../agent"  # folder of the agent that cloned, relative to this run's folder
    horizon: int = 16  # steps of a rollout
    context: int = 8  # real frames before a rollout: at least 1 and at most this many, drawn once per step
    gamma: float = 0.95  # discount of a step; .997 needs hundreds of steps of the critic alone
    lam: float = 0.95  # lambda of the returns
    critic_steps: int = 30  # first steps, in which only the critic learns
    # weight of the critic's loss on recorded clips, as in DreamerV3: values of rare rewards are learned from data first
    replay: float = 0.0
    passes: int = 0  # sampling passes per frame; 0: the world's own
    frozen: tuple[str, ...] = ("world", "reward", "ends", "prior")  # parts that do not learn
    reads = "latents", "actions", "rewards", "ends", TASK

    def __post_init__(self):
        if self.horizon < 1 or self.context < 1 or min(self.critic_steps, self.replay) < 0:
            raise ValueError(f"horizon and context must be 1 or more, critic_steps and replay 0 or more: not {self}")

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> Agent:
        """Return the agent that cloned, with its policy as prior and a new value."""
        path = folder / self.agent
        cloned, again = load(path), load(path)  # twice: what is trained shares no array with what is frozen
        if not isinstance(cloned, Agent) or cloned.prior is not None:
            raise ReverieError(f"'{path}' is not an agent that has cloned: it holds {type(cloned).__name__}.")
        return self.begun(cloned, again.policy, rngs)

    def begun(self, cloned: Agent, prior: Head, rngs: nnx.Rngs) -> Agent:
        """Return an agent that has cloned, with a new value and a copy of its policy as prior."""
        c, policy = cloned.config, cloned.policy
        value = Head(c.head, policy.features, (c.values.bins,), cloned.tasks, policy.grid, rngs=rngs)
        return Agent(c, with_passes(cloned.world, self.passes), policy, cloned.reward, cloned.ends, prior, value)

    @property
    def encoder(self) -> Encode:
        """The world's tokenizer."""
        return _latents

    def prepare(self, model: Agent, dataset: Dataset, cache: Path) -> Dataset:
        """Latents and the actions that condition the world, computed once; rewards as they were recorded."""
        return _prepared(model, self.encoder, dataset, cache)

    def loss(self, model: Agent, batch: dict[str, Array], keys_B: Array, progress: Array) -> Loss:
        """The critic's cross-entropy with lambda-returns, and the learner's terms once the critic has had its time."""
        h, taken = self.imagine(model, batch, keys_B[0])
        task = _task_of(batch)
        rewards, continues = model.rewards_of(h[1:], task), model.continues_of(h[1:], task)
        values, returns, critic = self._critic(model, model.value(h, task), rewards, continues)
        weights = alive(continues)
        advantages = returns - values[:-1]
        policy, prior = (head(h[:-1], task)[..., 0, :] for head in (model.policy, model.prior))
        kl, entropy = model.actions.kl(policy, prior), model.actions.entropy(policy)
        scaled = model.returns.advantages.scaled(advantages)
        actor = self.learner.terms(model.actions.log_prob(policy, taken), scaled, kl, entropy, weights)
        begun = (model.returns.advantages.steps[...] >= self.critic_steps).astype(jnp.float32)
        metrics = {
            "value_nll": critic,
            "value_error": mean(jnp.abs(advantages), weights),
            "positive": mean((advantages >= 0).astype(jnp.float32), weights),
            "kl": mean(kl, weights),
            "entropy": mean(entropy, weights),
        }
        imagined, real = jnp.sum(rewards * weights, axis=0), batch["rewards"][:, -self.horizon :]
        outside = model.returns.outside(imagined / self.horizon, jnp.mean(real, axis=1))
        outside = outside.astype(jnp.float32)
        metrics |= {"imagined_return": mean(imagined), "real_return": mean(jnp.sum(real, axis=1))}
        metrics |= {"outside": mean(outside), "alarm": mean(outside, then=_too_many)}
        terms = (critic, *(term.times(begun) for term in actor))
        if self.replay:
            metrics["replay_nll"] = self._replayed(model, batch)
            terms += (metrics["replay_nll"].times(self.replay),)
        return Loss(terms, metrics, {"returns": model.returns.note(advantages, jnp.mean(real, axis=1))})

    def _replayed(self, model: Agent, batch: dict[str, Array]) -> Mean:
        """The critic's cross-entropy with lambda-returns of what was recorded: the values of who recorded it."""
        h = jax.lax.stop_gradient(_read(model, batch["latents"], batch["actions"], _task_of(batch)))
        logits = jnp.swapaxes(model.value(h, batch.get(TASK, 0)), 0, 1)
        rewards, ends = (jnp.swapaxes(batch[name][:, 1:], 0, 1) for name in ("rewards", "ends"))
        return self._critic(model, logits, rewards, 1 - ends.astype(jnp.float32))[2]

    def _critic(self, model: Agent, logits: Array, rewards: Array, continues: Array) -> tuple[Array, Array, Mean]:
        """Values (T + 1, B), lambda-returns (T, B), and the cross-entropy of the critic's logits with these."""
        bins = model.config.values
        values = jax.lax.stop_gradient(bins.mean(logits))
        returns = lambda_returns(rewards, continues, values, self.gamma, self.lam)
        return values, returns, mean(bins.nll(logits[:-1], returns), alive(continues))

    def imagine(self, model: Agent, batch: dict[str, Array], key: Array) -> tuple[Array, Array]:
        """Roll out the policy from recorded frames: features (H + 1, B, N, M), the first real; actions (H, B, ...).

        No gradient flows through a rollout: the policy's gradient is that of its log-probabilities.
        """
        latents, actions = (batch[name][:, : self.context] for name in ("latents", "actions"))
        actions, task = from_start(actions, model.world.config.actions), _task_of(batch)
        real = self.real_frames(key, latents.shape[1])
        state, h = prefill(model.world.dynamics, latents, actions, real, model.empty(len(latents), task))

        def act(h: Array, key: Array) -> Array:
            return jax.lax.stop_gradient(model.act(h, key, task=task))

        _, steps = rollout(model.world.dynamics, state, h, act, key, self.horizon)
        return jax.lax.stop_gradient((jnp.concatenate([h[None], steps.h]), steps.actions))

    def real_frames(self, key: Array, most: int) -> Array | int:
        """How many real frames come before a rollout: of all rows, since a KV cache counts time once for all."""
        return jax.random.randint(jax.random.fold_in(step_key(key), 3), (), 1, most + 1)

    def report(self, model: Agent, batch: dict[str, Array], key: Array) -> dict[str, Array]:
        """Rewards of held-out clips, imagined after one real frame with the recorded actions: error and correlation.

        And the numbers of the loss, of rollouts from held-out clips.
        """
        latents, actions, rewards = (batch[name] for name in ("latents", "actions", "rewards"))
        task = _task_of(batch)
        dynamics, start = model.world.dynamics, from_start(actions, model.world.config.actions)
        state, _ = prefill(dynamics, latents, start, 1, model.empty(len(latents), task))
        _, steps = rollout(dynamics, state, None, actions[:, 1:], key, latents.shape[1] - 1)
        imagined, real = model.rewards_of(steps.h, task), jnp.swapaxes(rewards[:, 1:], 0, 1)
        known = (~model.world.config.actions.is_unlabelled(actions[:, 1:])).astype(jnp.float32).T
        numbers = {
            "replayed_error": mean(jnp.abs(imagined - real), known).value,
            "replayed_correlation": _correlation(*(jnp.sum(each * known, axis=0) for each in (imagined, real))),
        }
        found = self.loss(model, batch, row_keys(key, len(latents)), jnp.ones(()))
        return numbers | {name: each.value for name, each in found.metrics.items()}


def _too_many(share: Array) -> Array:
    return (share > TOO_MANY).astype(jnp.float32)


def _correlation(a_B: Array, b_B: Array) -> Array:
    a, b = a_B - jnp.mean(a_B), b_B - jnp.mean(b_B)
    return jnp.sum(a * b) / jnp.maximum(jnp.sqrt(jnp.sum(a * a) * jnp.sum(b * b)), 1e-12)


def _latents(agent: Agent, batch: dict[str, Array]) -> dict[str, Array]:
    world = agent.world
    return {"latents": world.encode(batch["frames"]), "actions": world.actions_of(batch["frames"], batch["actions"])}


def _features(agent: Agent, batch: dict[str, Array]) -> dict[str, Array]:
    found = _latents(agent, batch)
    return {"features": _read(agent, found["latents"], found["actions"], 0), "actions": found["actions"]}


def _read(agent: Agent, latents: Array, actions: Array, task: Array | int) -> Array:
    """Features of clips, (B, T, N, M); ``task``: that of each, (B,), or one for all."""
    state = agent.empty(len(latents), task)
    return features(agent.world.dynamics, latents, from_start(actions, agent.world.config.actions), state)


def _task_of(batch: dict[str, Array]) -> Array | int:
    """The task of each clip of a batch, (B,); 0 if there are none."""
    return batch[TASK][:, 0] if TASK in batch else 0


def _prepared(model: Agent, encode: Encode, dataset: Dataset, cache: Path) -> Dataset:
    """Return what ``encode`` gives, computed once, beside rewards, ends, and ids of tasks if the agent knows any."""
    tasked = Tasked(dataset, getattr(dataset, "tasks", []), dataset.spec.tasks) if model.tasks else dataset
    copied = "rewards", "ends", *([TASK] if model.tasks else ())
    return cached(model, encode, tasked, LEAD, cache, ("world",), copied, ("inputs",) if model.config.inputs else ())
