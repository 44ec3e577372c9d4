"""Agents in the real environment: copies of a game in step, and the returns of everyone who plays in them.

All play the same levels, none of which is in any data. A return is the sum of rewards of one episode.

Shapes: E episodes, T steps, H W C image, R + 1 frames that a tokenizer looks at.
"""

import contextlib
import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from reverie.actions import ActionSpace
from reverie.data.episode import Dataset
from reverie.data.store import open_dataset
from reverie.data.takes import game_of
from reverie.errors import ReverieError
from reverie.evaluation.control import interval
from reverie.evaluation.keys import Keys, keys_of
from reverie.evaluation.planning import Planner
from reverie.models.agent import TOO_MANY, Agent, is_outside
from reverie.nn.compiled import compiled
from reverie.nn.returns import alive
from reverie.training.checkpoint import load
from reverie.training.record import read_record
from reverie.world import rollout
from reverie.world_folder import agents_in, agents_of, data_source

HISTORY, ENOUGH = 9, 20  # actions that blind cloning looks back at, and how often it must have seen them
Numbers = dict[str, Any]
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (frames, actions that led to them) -> actions, one per row
Choose = Callable[[Agent, Any, Array, Array, int], Array]  # (agent, dynamics' state, h, key, task) -> actions


class Environment:
    """Copies of a source's game, stepped together: uint8 frames (E, H, W, C) in, actions out. Rows that end wait.

    ``steps``: the longest episode, which is that of the source's data. ReverieError if the source has no game.
    """

    def __init__(self, source: Any):
        self._source, self.games, self.moments = source, [game_of(source)], []
        self.actions, self.steps = self.games[0].spec.actions, source.frames - 1
        self._keys: Keys | None = None

    def translated(self, keys: Keys | None) -> "Environment":
        """Return the same games with latent actions, which become those of the games by ``keys``; None: as they are."""
        if keys is None:
            return self
        found = copy.copy(self)
        found.actions, found._keys = ActionSpace("latent", keys.size), keys
        return found

    def unseen(self, episodes: int, seed: int) -> np.ndarray:
        """Return the levels in which agents are measured, (E,): no data have them."""
        return self.games[0].unseen + (seed * episodes + np.arange(episodes)) % 2**30  # engines count with 31 bits

    def reset(self, levels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Begin an episode in each of the levels and return their first frames."""
        self.games += [game_of(self._source) for _ in range(len(levels) - len(self.games))]
        self.moments = [game.reset(int(level)) for game, level in zip(self.games, levels, strict=False)]
        return self.frames()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take an action in each row: (frames, rewards (E,), which episodes are over (E,))."""
        rewards = np.zeros(len(self.moments), np.float32)
        actions = actions if self._keys is None else self._keys(actions, self.frames())
        for row in np.flatnonzero(~self.over):
            self.moments[row] = self.games[row].step(actions[row])
            rewards[row] = self.moments[row].reward
        return self.frames(), rewards, self.over

    @property
    def over(self) -> np.ndarray:
        """Which episodes are over, (E,)."""
        return np.array([moment.over for moment in self.moments])

    @property
    def simulator(self) -> Any:
        """The exact simulator of the game, which may know the best action, or when a task is solved; None without."""
        return getattr(self.games[0], "simulator", None)

    def solved(self) -> np.ndarray | None:
        """Return in which rows the task is solved, (E,); None if no simulator knows."""
        if not hasattr(self.simulator, "solved"):
            return None
        return np.array([self.simulator.solved(moment.state) for moment in self.moments])

    def best(self) -> np.ndarray:
        """Return the best action known in each row, where the simulator has one."""
        return np.array([self.simulator.best(moment.state) for moment in self.moments])

    def frames(self) -> np.ndarray:
        """Return the frames of all rows, uint8 (E, H, W, C)."""
        return np.stack([moment.frame for moment in self.moments])

    def close(self) -> None:
        """Close all copies."""
        for game in self.games:
            game.close()


def play(environment: Environment, levels: Sequence[int] | np.ndarray, steps: int, act: Act) -> np.ndarray:
    """Play an episode of at most ``steps`` steps in each level: rewards (T, E)."""
    frames = environment.reset(levels)
    actions, rewards = environment.actions.start((len(levels),)), []
    while len(rewards) < steps and not environment.over.all():
        actions = act(frames, actions)
        frames, reward, _ = environment.step(actions)
        rewards.append(reward)
    return np.stack(rewards)


# -- who plays -------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What an actor has seen of an episode: the dynamics' state, the frames that its world depends on, the time."""

    dynamics: Any
    frames: Array
    time: Array


def sampled(agent: Agent, state: Any, h: Array, key: Array, task: int) -> Array:
    """Choose actions as the policy draws them."""
    return agent.act(h, key, task=task)


def greedy(agent: Agent, state: Any, h: Array, key: Array, task: int) -> Array:
    """Choose the policy's most probable actions."""
    return agent.act(h, key, greedy=True, task=task)


class Actor:
    """An agent that plays: it observes real frames as its world does, from the first frame of an episode on.

    In a world of latent actions it reads those that led to real frames off the frames.

    ``choose``: how it decides: ``sampled``, ``greedy`` or a ``Planner``. ``task``: the id of what it is to do.
    """

    def __init__(self, agent: Agent, episodes: int, seed: int, choose: Choose = sampled, task: int = 0):
        world: Any = agent.world
        look = 1 + max(each.receptive_field for each in (world.tokenizer, world.lam) if each is not None)
        self._call = compiled(agent, partial(_act, choose=choose, task=task), donate=(0,))
        self._seen = Seen(
            jax.jit(lambda: agent.empty(episodes, task))(),
            jnp.zeros((episodes, look, *world.config.frame), jnp.uint8),
            jnp.zeros((), jnp.int32),
        )
        self._key = jax.random.key(seed)

    def __call__(self, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
        self._seen, chosen = self._call(self._seen, frames, actions, self._key)
        return np.asarray(chosen)


def _act(agent: Agent, seen: Seen, frames, actions, key, choose: Choose, task: int) -> tuple[Seen, Array]:
    """Take in real frames and the actions that led to them, and choose the next actions."""
    window, look = seen.frames, seen.frames.shape[1]
    window = jnp.where(seen.time >= look, jnp.roll(window, -1, axis=1), window)
    place = jnp.minimum(seen.time, look - 1)
    window = jax.lax.dynamic_update_index_in_dim(window, frames, place, 1)
    latents = jax.lax.dynamic_index_in_dim(agent.world.encode(window), place, 1, keepdims=False)
    given = jnp.broadcast_to(actions[:, None], (*window.shape[:2], *actions.shape[1:]))
    actions = jax.lax.dynamic_index_in_dim(agent.world.actions_of(window, given), place, 1, keepdims=False)
    dynamics, h = agent.world.dynamics.observe(seen.dynamics, latents, actions)
    chosen = choose(agent, dynamics, h, jax.random.fold_in(key, seen.time), task)
    return Seen(dynamics, window, seen.time + 1), chosen


class Blind:
    """Cloning that sees past actions only: what data did next after the same last actions, as many as are known.

    An agent that is no better has learned nothing from pictures. ``knows``: whether any action of the data is recorded.
    """

    def __init__(self, dataset: Dataset, seed: int, episodes: Sequence[int] | None = None):
        self._counts: dict[tuple, Counter] = defaultdict(Counter)
        self._rng, self._past = np.random.default_rng(seed), []
        for episode in range(len(dataset.lengths)) if episodes is None else episodes:
            length = int(dataset.lengths[episode])
            read = dataset.read(episode, 0, length, ("actions",))["actions"]
            actions = [tuple(np.atleast_1d(a)) for a in read]
            for t in np.flatnonzero(~dataset.spec.actions.is_unlabelled(read))[1:].tolist():
                for back in range(min(HISTORY, t) + 1):
                    self._counts[tuple(actions[t - back : t])][actions[t]] += 1
        self.knows = bool(self._counts)

    def __call__(self, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
        self._past.append([tuple(np.atleast_1d(action)) for action in actions])
        chosen = np.array([self._next(tuple(past)) for past in zip(*self._past[-HISTORY:], strict=True)], actions.dtype)
        return chosen.reshape(actions.shape)

    def _next(self, past: tuple) -> tuple:
        known = (self._counts[past[start:]] for start in range(len(past) + 1) if past[start:] in self._counts)
        counts = next((found for found in known if found.total() >= ENOUGH), self._counts[()])
        return list(counts)[self._rng.choice(len(counts), p=np.array(list(counts.values())) / counts.total())]


def imagined(agent: Agent, frames: np.ndarray, steps: int, seed: int, task: int = 0) -> tuple[np.ndarray, ...]:
    """Play in the agent's own world after one real frame each.

    Returns rewards (T, E) as it predicts them, actions (T, E, ...) and the latents of frames (T, E, ...).
    """

    def run(agent: Agent, frames: Array, key: Array):
        dynamics, space = agent.world.dynamics, agent.world.config.actions
        latents = agent.world.encode(frames[:, None])[:, 0]
        empty, start = agent.empty(len(frames), task), jnp.asarray(space.start((len(frames),)))
        state, h = dynamics.observe(empty, latents, start)
        _, found = rollout(dynamics, state, h, partial(agent.act, task=task), key, steps)
        rewards = agent.rewards_of(found.h, task) * alive(agent.continues_of(found.h, task))
        return rewards, found.actions, found.latents

    return jax.device_get(compiled(agent, run)(frames, jax.random.key(seed)))


# -- the table -------------------------------------------------------------------------------------------------------


def judge(run: Path, episodes: int = 512, seed: int = 0, plan: int = 32, planner: Planner | None = None) -> Numbers:
    """Return the returns of a world's agents, and of those they must beat, in the real environment.

    Each ``return_*`` is {"mean", "low", "high", "episodes"}, with the 95 % interval over episodes, and "success" (the
    share of episodes) where a simulator knows when a task is solved. ``_greedy`` takes the most probable action, others
    are sampled. ``return_plan`` is the search by ``planner``, in the first ``plan`` of the levels. ``return_imagined``
    is the trained policy in its own world, ``return_replayed`` the same actions in the real environment; ``gap`` is
    their relative difference, ``gap_correlation`` their correlation over episodes, ``gap_error`` the mean difference of
    a reward. ``alarm`` is 1 if imagined returns leave the range of those in the data. What a run does not have is left
    out.

    Where the environment has tasks, these numbers are in "tasks" by their names. There ``_other`` is the policy that
    was given the id of another task. The codes of latent actions become actions of the game (``evaluation.keys``).
    """
    if episodes < 2:
        raise ReverieError(f"returns need at least 2 episodes for an interval, not {episodes}.")
    if plan < 0:
        raise ReverieError(f"planning is measured in 0 episodes or more, not {plan}.")
    agents = {{"agent": "bc", "policy": "rl"}[stage.name]: load(stage) for stage in reversed(agents_of(run))}
    source, tasks = played_source(run), read_record(run / "agent").spec.tasks
    data = open_dataset(run / "data", "train") if (run / "data").exists() else None
    keys = keys_of(run, next(iter(agents.values())).world)

    def judged(source: Any, task: int = 0) -> Numbers:
        with contextlib.closing(Environment(source)) as environment:
            theirs = environment.translated(keys)
            if any(agent.world.config.actions != theirs.actions for agent in agents.values()):
                raise ReverieError(f"the game of '{run}' takes other actions than its world: no agent can play in it.")
            how = {"seed": seed, "plan": min(plan, episodes), "planner": planner or _planner(run), "task": task}
            return _judged(agents, environment, theirs, data, environment.unseen(episodes, seed), **how)

    if not tasks or not hasattr(source, "for_task"):
        return judged(source)
    return {"tasks": {task: judged(source.for_task(task), number) for number, task in enumerate(tasks, start=1)}}


def _judged(
    agents: dict[str, Agent],
    environment: Environment,
    theirs: Environment,
    data: Any,
    levels: np.ndarray,
    *,
    seed: int,
    plan: int,
    planner: Planner,
    task: int,
) -> Numbers:
    """Return the numbers of ``judge`` for one task; 0: for an environment without tasks.

    ``theirs``: the same environment with the actions of the agents.
    """
    simulator, steps, rng = environment.simulator, environment.steps, np.random.default_rng(seed)

    def played(act: Act, where: Environment = environment, count: int = len(levels)) -> Numbers:
        return _summary(play(where, levels[:count], steps, act).sum(0), where.solved())

    def by(agent: Agent, choose: Choose = sampled, task: int = task, count: int = len(levels)) -> Numbers:
        return played(Actor(agent, count, seed, choose, task), theirs, count)

    drawn = environment.actions.drawn
    found: dict[str, Any] = {"random": played(lambda *_: np.array([drawn(rng) for _ in levels]))}
    recorded, named = None, getattr(data, "tasks", [])
    if chosen := [i for i, name in enumerate(named) if not task or name == data.spec.tasks[task - 1]]:
        clips = [data.read(i, 0, int(data.lengths[i]), ("rewards", "ends")) for i in chosen]
        recorded = np.array([clip["rewards"].sum() for clip in clips])
        ended = np.array([clip["ends"].any() for clip in clips]) if hasattr(simulator, "solved") else None
        blind = Blind(data, seed, chosen)
        found |= {"data": _summary(recorded, ended)} | ({"blind": played(blind)} if blind.knows else {})
    for name, agent in agents.items():
        found |= {name: by(agent), f"{name}_greedy": by(agent, greedy)}
        if task and agent.tasks > 1:
            found[f"{name}_other"] = by(agent, task=task % agent.tasks + 1)
    if plan:
        found["plan"] = by(agents.get("rl", agents["bc"]), planner, count=plan)
    if hasattr(simulator, "best"):
        found["oracle"] = played(lambda *_: environment.best())
    numbers: Numbers = {"seed": seed, "steps": steps}
    if "rl" in agents:
        rewards, actions, _ = imagined(agents["rl"], environment.reset(levels), steps, seed, task)
        replay = iter(actions)
        real = play(theirs, levels, steps, lambda *_: next(replay))
        found |= {"imagined": _summary(rewards.sum(0)), "replayed": _summary(real.sum(0), theirs.solved())}
        numbers |= _gap(rewards, real)
        if recorded is not None:
            outside = is_outside(rewards.sum(0), recorded.min(), recorded.max())
            numbers["alarm"] = float(outside.mean() > TOO_MANY)
    return {f"return_{name}": summary for name, summary in found.items()} | numbers


def _planner(run: Path) -> Planner:
    """Return a planner that discounts as the value of the run's policy does."""
    if run / "policy" not in agents_in(run):
        return Planner()
    objective: Any = read_record(run / "policy").run.objective
    return Planner(gamma=objective.gamma)


def returns(run: str | Path, act: Act, episodes: int = 512, seed: int = 0) -> np.ndarray:
    """Return what a policy gets in the real environment of a run, in the levels of ``judge``: (E,)."""
    with contextlib.closing(real_environment(run)) as environment:
        return play(environment, environment.unseen(episodes, seed), environment.steps, act).sum(0)


def real_environment(run: str | Path) -> Environment:
    """Return the real environment of a run; its actions are those of the run's world."""
    run = Path(run)
    return Environment(played_source(run)).translated(keys_of(run, load(agents_in(run)[0]).world))


def played_source(run: Path) -> Any:
    """Return the config of the source of a run's data, whose game agents play; ReverieError if it is not known."""
    source = read_record(agents_in(run)[-1]).spec.simulator or data_source(run)
    if source is None:
        raise ReverieError(f"'{run}' was learned from recordings: there is no game to play in.")
    return source


def _gap(imagined_TE: np.ndarray, real_TE: np.ndarray) -> Numbers:
    imagined_TE, real_TE = (
        np.pad(each, ((0, len(imagined_TE) - len(each)), (0, 0))) for each in (imagined_TE, real_TE)
    )
    imagined, real = imagined_TE.sum(0), real_TE.sum(0)
    moved = min(imagined.std(), real.std()) > 0
    return {
        "gap": float(imagined.mean() - real.mean()) / max(abs(float(real.mean())), 1e-9),
        "gap_correlation": float(np.corrcoef(imagined, real)[0, 1]) if moved else 0.0,
        "gap_error": float(np.abs(imagined_TE - real_TE).mean()),
    }


def _summary(returns_E: np.ndarray, solved_E: np.ndarray | None = None) -> Numbers:
    low, high = interval(returns_E.astype(np.float64))
    found = {"mean": float(returns_E.mean()), "low": float(low), "high": float(high), "episodes": len(returns_E)}
    return found if solved_E is None else found | {"success": float(solved_E.mean())}
