"""Tasks by id, and what is learned from which clips: on the exact square with two goals of opposite rewards."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import tiny
from contracts.tiny import clip, state
from exact_square import HEADS, ExactBehaviour, SeenConfig, exact_world, play, run
from flax import nnx

from reverie import config
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import MOST_TASKS, record, with_tasks
from reverie.data.sources.square import GOALS, SquareConfig
from reverie.data.store import open_dataset, write_store
from reverie.data.tasked import Tasked
from reverie.env import EnvOptions, load_env
from reverie.errors import ReverieError
from reverie.models.agent import AgentConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.batch import row_keys, weighted_rows
from reverie.nn.heads import HeadConfig
from reverie.nn.step import made_with
from reverie.training.agents import BehaviourObjective, ImaginationObjective, behaviour_losses
from reverie.training.checkpoint import load
from reverie.training.engine import fit
from reverie.world import features

config.packages.add(__name__)  # so that run.json may name a class below
KEY = jax.random.key(0)
SMALL = AgentConfig(head=HeadConfig(width=8, depth=1), ahead=2, tokens=2)


@cache
def original():
    """A world that is made when the first test needs it, not in every worker that imports this file."""
    made = tiny.world(ShortcutConfig)
    made.dynamics.config = replace(made.dynamics.config, passes=1, bootstrap=0.0)  # less to compile
    return made


def world():
    """A copy of this world, with weights of its own: those that are trained are donated."""
    graph, weights = nnx.split(original())
    return nnx.merge(graph, jax.tree.map(jnp.copy, weights))


def both(count=48, random=0.3):
    """Play of both tasks in turn, mostly good."""
    source, episodes = SeenConfig(count=count, goal="both"), []
    for index in range(count):
        task = GOALS[index % 2]
        simulator: Any = source.for_task(task).make()

        def policy(now, rng, last, simulator=simulator):
            return int(rng.integers(4)) if rng.random() < random else simulator.best(now)

        how = {"rng": np.random.default_rng(index), "fps": 10.0, "policy": policy, "task": task}
        episodes.append(record(simulator, seed=index, frames=33, **how))
    return ArrayDataset.from_episodes(source.spec(), episodes)


def cloned(folder, data, steps):
    """An agent in the exact world that has cloned play of two tasks."""
    fit(run(ExactBehaviour(), steps=steps, rate=1e-2, batch=32), folder / "agent", dataset=data, progress=False)
    data.save(folder / "starts.npz")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return cloned(tmp_path_factory.mktemp("tasks"), both(), steps=100)


# -- the data --------------------------------------------------------------------------------------------------------


def test_tasks_are_known_by_id_in_memory_and_on_disk(tmp_path):
    data = both(5)
    assert data.spec.tasks == GOALS and data.tasks == [*GOALS, *GOALS, GOALS[0]]
    write_store(tmp_path / "d", data.spec, SeenConfig(count=5, goal="both").episodes())
    for place in (data.save(tmp_path / "d.npz"), tmp_path / "d"):
        found: Any = open_dataset(place)
        assert found.spec.tasks == GOALS and set(found.tasks) == set(GOALS)
    window = Tasked(data, [*GOALS, "else", "", GOALS[1]], data.spec.tasks)
    assert [window.read(episode, 3, 4)["task"].tolist() for episode in range(5)] == [[i] * 4 for i in (1, 2, 0, 0, 2)]
    assert set(window.read(0, 0, 2, ("task",))) == {"task"} and "task" not in window.read(0, 0, 2, ("actions",))
    spec = replace(data.spec, tasks=())
    assert with_tasks(spec, ["b", "", "a", "b"]).tasks == ("a", "b")
    assert with_tasks(spec, map(str, range(MOST_TASKS + 1))).tasks == (), "these are instructions, not tasks"


def test_both_goals_are_opposites_and_the_best_policy_of_one_is_bad_at_the_other():
    returns: dict[str, Any] = {}
    for goal in GOALS:
        simulator = SquareConfig(goal="both").for_task(goal).make()
        now, total = simulator.reset(5), {str(name): 0.0 for name in GOALS}
        others = {name: SquareConfig(goal=name).make() for name in GOALS}
        for _ in range(32):
            action = simulator.best(now)
            for name, other in others.items():
                total[name] += other.step(now, action)[1]
            now = simulator.step(now, action)[0]
        returns[goal] = total
    assert returns["centre"]["centre"] > returns["corner"]["centre"] + 100
    assert returns["corner"]["corner"] > returns["centre"]["corner"] + 100
    assert SquareConfig().make().goal == SquareConfig(goal="both").make().goal == "centre"


# -- what an agent makes of them -------------------------------------------------------------------------------------


def test_each_id_leads_to_a_policy_of_its_own(runs):
    """Of unseen frames: each id does what is best for its task, and not what is best for the other."""
    agent, unseen = load(runs / "agent"), both(16, random=1.0)
    simulators: Any = [SeenConfig(goal="both").for_task(goal).make() for goal in GOALS]
    windows = [unseen.read(episode, 1, 24) for episode in range(16)]
    frames, actions = (jnp.stack([window[name] for window in windows]) for name in ("frames", "actions"))
    best = np.array([[[s.best(now) for now in window["states"]] for window in windows] for s in simulators])
    read = jax.jit(lambda frames, actions: features(agent.world.dynamics, agent.world.encode(frames), actions))
    h = read(frames, actions)
    chosen = np.stack([jax.jit(agent.act, static_argnums=2)(h, KEY, True, task) for task in (1, 2)])
    own, other = ((chosen == each).mean((1, 2)) for each in (best, best[::-1]))
    assert (own > 0.4).all() and (other < 0.2).all(), (own, other)


def test_the_world_as_an_environment_rewards_the_task_that_is_asked_for(runs):
    found = {}
    for task in ("", *GOALS):
        env = load_env(runs, EnvOptions(task=task))
        at, _ = jax.jit(env.reset)(KEY)
        found[task] = np.array(jax.jit(lambda s, a, env=env: env.step(s, a))(at, jnp.int32(1))[1].reward)
    assert abs(found["centre"] - found["corner"]) > 0.5 and found[""] == found["centre"]
    with pytest.raises(ReverieError, match="no task 'corners'. Did you mean 'corner'"):
        load_env(runs, EnvOptions(task="corners"))


def test_agent_tokens_and_heads_know_the_task_and_the_world_does_not():
    agent = SMALL.make(world(), nnx.Rngs(0), tasks=2)
    kernel = agent.policy.out.kernel
    kernel[...] = jax.random.normal(KEY, kernel.shape)
    latents, actions = clip(2, 2, of=ShortcutConfig)

    @jax.jit
    def seen(task):
        now, h = agent.empty(2, task), jnp.zeros(())
        for t in range(2):
            now, h = agent.world.dynamics.observe(now, latents[:, t], actions[:, t])
        return now._replace(agents=None), h, agent.policy(h, 1), agent.policy(h, task)

    one, two, mixed = seen(jnp.array([1, 1])), seen(jnp.array([2, 2])), seen(jnp.array([1, 2]))
    assert all(map(np.array_equal, jax.tree.leaves(one[0]), jax.tree.leaves(two[0])))
    for a, b in ((one[1], two[1]), (one[2], two[2]), (two[2], two[3])):
        assert np.abs(a - b).max() > 1e-3, "tokens know it, and heads know it beside them"
    for row, other in enumerate((one, two)):
        np.testing.assert_allclose(mixed[3][row], other[3][row], atol=1e-5)


# -- what is learned from which clips --------------------------------------------------------------------------------


def test_the_policy_clones_relevant_clips_and_rewards_are_learned_from_all():
    data = play(2)
    agent, windows = HEADS.make(exact_world(), nnx.Rngs(0)), [data.read(row, 0, 6) for row in range(2)]
    batch = {name: jnp.stack([window[name] for window in windows]) for name in ("actions", "rewards", "ends")}
    marks = {"relevant": jnp.array([False, True])}
    losses = jax.jit(lambda batch: behaviour_losses(agent, batch))
    plain, split = (losses(batch | {"features": jnp.ones((2, 6, 1, 7))} | more) for more in ({}, marks))
    assert plain["policy"][1].sum() > split["policy"][1].sum() > 0
    assert not split["policy"][1][0].any() and np.array_equal(split["policy"][1][1], plain["policy"][1][1])
    for name in ("reward", "ends", "error"):
        assert np.array_equal(split[name][1], plain[name][1]), name


def test_rows_of_weight_zero_take_no_part_in_a_loss():
    model = tiny.dynamics(ShortcutConfig)
    latents, actions = clip(4, 3, of=ShortcutConfig)
    keys = row_keys(KEY, 4)

    @jax.jit
    def value(latents, actions, keys, weights):
        loss = made_with(KEY, model.loss)
        found = weighted_rows(lambda row: loss(*row), (latents, actions, keys), weights)
        return found.value, {name: each.value for name, each in found.metrics.items()}

    some = value(latents, actions, keys, jnp.array([1.0, 0, 1, 0]))
    expected = jax.jit(made_with(KEY, model.loss))(latents[::2], actions[::2], keys[::2])
    np.testing.assert_allclose(some[0], expected.value, rtol=1e-5)
    for name, each in some[1].items():
        np.testing.assert_allclose(each, expected.metrics[name].value, rtol=1e-5, err_msg=name)


@dataclass(frozen=True, kw_only=True)
class Finetuned(BehaviourObjective):
    """Agent finetuning in a world that no run has trained."""

    agent: AgentConfig = SMALL
    finetune: bool = True

    def init(self, rngs, spec, folder):
        return self.agent.make(world(), rngs, len(spec.tasks), self.finetune)


def test_dynamics_learn_from_all_clips_or_from_those_that_are_not_relevant():
    agent = SMALL.make(world(), nnx.Rngs(0), finetunes=True)
    latents, actions = clip(2, 2, of=ShortcutConfig)
    still = {"rewards": jnp.zeros((2, 2)), "ends": jnp.zeros((2, 2), bool)}

    @jax.jit
    def learned(**marks):
        batch = {"latents": latents, "actions": actions, **still, **marks}
        loss = made_with(KEY, Finetuned().loss)(agent, batch, row_keys(KEY, 2), jnp.zeros(()))
        return loss.notes["scales"]["dynamics"].value

    everything, none, one = learned(), learned(relevant=np.zeros(2, int)), learned(relevant=np.array([0, 1]))
    np.testing.assert_allclose(everything, none, rtol=1e-5)
    assert abs(everything - one) > 1e-3


def test_dynamics_learn_with_the_agent_if_they_may_and_imagination_has_what_they_learned(tmp_path):
    spec, rng = SquareConfig(count=4, frames=8, goal="both").spec(), np.random.default_rng(0)
    episodes = list(SquareConfig(count=4, frames=8, goal="both").episodes())
    for episode in episodes:
        episode.frames = rng.integers(0, 256, (8, *tiny.FRAME)).astype(np.uint8)
        episode.actions = np.minimum(episode.actions, 2)
        episode.rewards[:] = 0
    episodes[1].rewards[3] = 1
    spec = replace(spec, frame=tiny.FRAME, actions=tiny.ACTIONS)
    data = ArrayDataset.from_episodes(spec, episodes)
    how = run(Finetuned(), steps=2, batch=4, length=4, relevant=0.5)
    original()  # not while ``fit`` traces
    fit(how, tmp_path / "agent", dataset=data, progress=False)
    cloned, before = load(tmp_path / "agent"), Finetuned().init(nnx.Rngs(0), spec, tmp_path)
    assert cloned.dynamics is cloned.world.dynamics and cloned.tasks == 2
    old = state(before.world)
    moved = {name for name, value in state(cloned.world).items() if not np.array_equal(value, old[name])}
    assert any(name.startswith("dynamics.transformer") for name in moved) and any(".agents." in name for name in moved)
    assert not any(name.startswith("tokenizer") for name in moved)
    imagined = ImaginationObjective().init(nnx.Rngs(0), spec, tmp_path / "policy")
    assert imagined.dynamics is None and imagined.tasks == 2
    a, b = state(imagined.world.dynamics), state(cloned.dynamics)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
