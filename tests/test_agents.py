"""Agents: what they read, what they are trained on, what they may change, and what they do in the real environment."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import clip, frames, state
from contracts.tiny import world as tiny_world
from exact_square import HEADS, ExactBehaviour, SeenConfig, exact_world, play, run
from flax import nnx

from benchmarks import agents as results
from reverie import config
from reverie.actions import START, UNLABELLED
from reverie.cli import main
from reverie.data.episode import record
from reverie.data.sources.square import SPACES, SquareConfig
from reverie.errors import ReverieError
from reverie.evaluation import environment
from reverie.evaluation.agent_film import film
from reverie.evaluation.planning import Planner
from reverie.models.agent import Agent, AgentConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.batch import row_keys
from reverie.nn.heads import ActionDistribution, HeadConfig, TwoHot
from reverie.nn.returns import PMPO, Reinforce, lambda_returns
from reverie.recorded import _check_source
from reverie.training import agents as training
from reverie.training.agents import BehaviourObjective, ImaginationObjective, behaviour_losses
from reverie.training.blueprint import Blueprint
from reverie.training.checkpoint import load, restore
from reverie.training.engine import fit
from reverie.training.record import read_record, write_record
from reverie.world import features, prefill

KEY, DATA = jax.random.key(0), play()
IMAGINE = ImaginationObjective(horizon=6, context=4, gamma=0.9, critic_steps=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with an agent that cloned in the exact world, and policies that learned in imagination."""
    folder = tmp_path_factory.mktemp("runs")
    fit(run(ExactBehaviour(), steps=60, rate=1e-2), folder / "agent", dataset=DATA, progress=False)
    half = replace(IMAGINE, critic_steps=2)
    fit(run(half, steps=4, length=10, save_every=2), folder / "policy", dataset=DATA, progress=False)
    return folder


def awake(agent: Agent) -> Agent:
    """Let heads depend on what they read: new ones answer 0 to everything."""
    for name in ("policy", "reward", "ends"):
        kernel = getattr(agent, name).out.kernel
        kernel[...] = jax.random.normal(KEY, kernel.shape) / 2
    return agent


# -- what an agent reads ---------------------------------------------------------------------------------------------


def test_features_are_one_thing_in_training_imagination_and_play():
    """Of whole clips, of a prefilled cache, and of frames observed one by one by an actor who chooses by them."""
    world = tiny_world(ShortcutConfig)
    latents, actions = clip(2, 6, of=ShortcutConfig)
    found = jax.jit(lambda x, a: features(world.dynamics, x, a))(latents, actions)
    _, last = jax.jit(lambda x, a, n: prefill(world.dynamics, x, a, n))(latents, actions, 4)
    np.testing.assert_allclose(last, found[:, 3], atol=1e-5)

    agent = awake(AgentConfig(head=HeadConfig(width=8), ahead=2).make(world, nnx.Rngs(0)))
    shown, taken = frames(2, 6), [np.asarray(world.config.actions.start((2,)))]
    actor = environment.Actor(agent, 2, 0, environment.greedy)
    for t in range(6):
        taken.append(actor(shown[:, t], taken[-1]))
    seen = np.stack(taken[:-1], axis=1)
    policy = jax.jit(lambda x, a: agent.policy(features(world.dynamics, world.encode(x), a)))(shown, seen)
    np.testing.assert_array_equal(np.stack(taken[1:], axis=1), policy[:, :, 0].argmax(-1))
    assert len(np.unique(policy.argmax(-1))) > 1


# -- what it is trained on -------------------------------------------------------------------------------------------


def test_policy_reward_and_end_belong_to_the_step_that_the_frame_has_or_has_not_seen():
    """A trajectory by hand, with a start, an unlabelled action and an end: heads that know the truth have no loss."""
    actions = np.array([START, 2, 0, 3, UNLABELLED, 1], np.int32)
    rewards, ends = np.array([0, -1, -2, -3, -4, -5], np.float32), np.arange(6) == 5
    config, space = AgentConfig(ahead=2, rewards=TwoHot(bins=63, reach=3.2)), SPACES["discrete"]

    def certain(table, count):  # table: what is predicted at each frame, for now and for the next step
        return 40.0 * jax.nn.one_hot(jnp.asarray(table), count)[None]

    bins = config.rewards.values
    exact = np.abs(bins[:, None] - rewards).argmin(0)  # rewards that a bin holds exactly
    rewards = bins[exact]
    model: Any = SimpleNamespace(
        config=config,
        world=SimpleNamespace(config=SimpleNamespace(actions=space)),
        actions=ActionDistribution(space),
        policy=lambda h, task: certain([[2, 0], [0, 3], [3, 9], [9, 1], [1, 9], [9, 9]], 4),
        reward=lambda h, task: certain([[9, exact[1]], *zip(exact[1:], [*exact[2:], 9], strict=True)], 63),
        ends=lambda h, task: jnp.where(np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 1], [1, 0]]) > 0, 40.0, -40.0)[
            None
        ],
    )
    batch = {"features": np.zeros((6, 1, 1)), "actions": actions, "rewards": rewards, "ends": ends}
    batch = {name: jnp.asarray(each)[None] for name, each in batch.items()}
    found = jax.jit(lambda batch: behaviour_losses(model, batch))(batch)
    weights = {name: np.asarray(weight[0]).astype(int).tolist() for name, (_, weight) in found.items()}
    assert weights["policy"] == [[1, 1], [1, 1], [1, 0], [0, 1], [1, 0], [0, 0]]
    assert weights["reward"] == weights["ends"] == [[0, 1], [1, 1], [1, 1], [1, 0], [0, 1], [1, 0]]
    assert weights["error"] == [0, 1, 1, 1, 0, 1]
    for name, (loss, weight) in found.items():
        np.testing.assert_allclose(loss * weight, 0, atol=1e-4, err_msg=name)


def test_imagination_credits_each_action_with_what_it_led_to(runs, monkeypatch):
    """In the exact world every number is known: the same actions in the simulator give the same rewards."""
    agent = awake(ImaginationObjective().init(nnx.Rngs(1), DATA.spec, runs / "policy"))
    objective, given, rows = replace(IMAGINE, context=1, horizon=5, lam=0.7), {}, range(12)

    def exact_rewards(self, h, task=0):
        return -8 * jnp.hypot(h[..., 0, 0], h[..., 0, 1])

    def keep(self, log_prob, advantages, kl, entropy, weights):
        given.update(log_prob=log_prob, advantages=advantages, kl=kl, entropy=entropy, weights=weights)
        return PMPO.terms(PMPO(), log_prob, advantages, kl, entropy, weights)

    monkeypatch.setattr(Agent, "rewards_of", exact_rewards)
    monkeypatch.setattr(Reinforce, "terms", keep)
    agent.value.out.kernel[...] = jax.random.normal(KEY, agent.value.out.kernel.shape) / 9
    windows = [DATA.read(row, 4, 8) for row in rows]
    batch = {name: jnp.stack([window[name] for window in windows]) for name in ("actions", "rewards")}
    batch["latents"] = agent.world.encode(jnp.stack([window["frames"] for window in windows]))
    keys = row_keys(KEY, len(rows))

    @jax.jit
    def work(batch):
        loss = replace(objective, learner=Reinforce()).loss(agent, batch, keys, jnp.ones(()))
        h, actions = objective.imagine(agent, batch, keys[0])
        policy, values = agent.policy(h[:-1])[:, :, 0], agent.config.values.mean(agent.value(h))
        own = agent.actions.log_prob(policy, actions), agent.actions.log_prob(policy[1:], actions[:-1])
        return loss.metrics["imagined_return"].value, given, actions, agent.continues_of(h[1:]), values, own

    total, given, actions, continues, values, (own, others) = work(batch)
    simulator, rewards = SeenConfig().make(), np.zeros((5, 12), np.float32)
    for row in rows:
        now = windows[row]["states"][0]
        for t in range(5):
            now, rewards[t, row], _ = simulator.step(now, int(actions[t, row]))
    weights = np.cumprod(np.concatenate([np.ones((1, 12)), continues[:-1]]), axis=0)
    np.testing.assert_allclose(given["weights"], weights, atol=1e-5)
    np.testing.assert_allclose(total, (rewards * weights).sum(0).mean(), rtol=1e-4)
    expected = jax.jit(lambda_returns, static_argnums=(3, 4))(rewards, continues, values, 0.9, 0.7) - values[:-1]
    np.testing.assert_allclose(given["advantages"], expected, atol=1e-3)
    np.testing.assert_allclose(given["log_prob"], own, atol=1e-4)
    # The actions a policy took are more probable in the states it took them in than in those they led to.
    assert own.mean() > others.mean() + 0.2


def batch_of(agent, rows=8):
    window = {name: np.stack([DATA.read(row, 0, 10)[name] for row in range(rows)]) for name in DATA.arrays}
    batch = {"latents": agent.world.encode(window["frames"]), "actions": jnp.asarray(window["actions"])}
    return batch | {"rewards": jnp.asarray(window["rewards"])}, row_keys(KEY, rows)


def test_the_alarm_fires_on_a_planted_reward_hack_and_not_on_a_healthy_agent(runs):
    """And a policy starts from its prior."""
    agent = ImaginationObjective().init(nnx.Rngs(1), DATA.spec, runs / "policy")
    rows = batch_of(agent)

    graph, weights = nnx.split(agent)

    @jax.jit
    def numbers(weights):
        found = IMAGINE.loss(nnx.merge(graph, weights), *rows, jnp.ones(())).metrics
        return {name: each.value for name, each in found.items()}

    healthy, bias = numbers(weights), agent.reward.out.bias
    assert bias is not None
    bias[...] = bias[...].at[HEADS.rewards.bins - 1].add(30.0)  # 24 a step, whatever is done
    hacked = numbers(nnx.state(agent))
    assert healthy["alarm"] == 0 and healthy["kl"] < 1e-6 and healthy["entropy"] > 0.1
    assert hacked["alarm"] == 1 and hacked["imagined_return"] > 100


# -- what it may change ----------------------------------------------------------------------------------------------


def parts(agent: Agent, *names: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in state(agent).items() if name.split(".")[0] in names}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_imagination_trains_policy_and_value_and_nothing_else(runs):
    cloned, learned = load(runs / "agent"), load(runs / "policy")
    assert same(parts(learned, "reward", "ends"), parts(cloned, "reward", "ends"))
    prior = {name.replace("prior", "policy", 1): value for name, value in parts(learned, "prior").items()}
    assert same(prior, parts(cloned, "policy"))
    assert not same(parts(learned, "policy"), parts(cloned, "policy")) and parts(learned, "value")
    assert learned.world.config == exact_world().config


def test_the_critic_is_trained_before_the_actor(runs):
    """In the first half of its run the policy is the cloned one, bit for bit."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    cloned = parts(load(runs / "agent"), "policy")
    for step in (2, 4):
        found = restore(runs / "policy", lambda *_: device, ("weights",), step)[1]["weights"]
        moved = [name for name, value in cloned.items() if not np.array_equal(found[name], value)]
        assert len(moved) == (len(cloned) if step == 4 else 0), step
        assert any(name.startswith("value") for name in found)


def test_what_learned_on_top_of_an_agent_knows_when_that_has_changed(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    again = run(ExactBehaviour(), steps=1, length=10)
    fit(again, tmp_path / "runs" / "agent", dataset=DATA, fresh=True, progress=False)
    with pytest.raises(ReverieError, match="changed since"):
        load(tmp_path / "runs" / "policy")


@pytest.mark.parametrize(("agent", "says"), [("../policy", "an agent that has cloned"), ("../nothing", "nothing at")])
def test_imagination_needs_an_agent_that_has_cloned(runs, tmp_path, agent, says):
    with pytest.raises(ReverieError, match=says):
        ImaginationObjective(agent=agent).init(nnx.Rngs(0), DATA.spec, runs / "policy")


def test_rollouts_take_as_many_passes_as_imagination_says(monkeypatch, tmp_path):
    """Whatever the world itself takes; traced, as training does."""
    agents = [AgentConfig(head=HeadConfig(width=8)).make(tiny_world(ShortcutConfig), nnx.Rngs(0)) for _ in range(2)]
    monkeypatch.setattr(training, "load", lambda path: agents.pop())
    made = []

    def init(rngs, spec, folder):
        made.append(ImaginationObjective(passes=1).init(rngs, spec, folder))
        return made[0]

    Blueprint(SimpleNamespace(init=init, frozen=("world",)), DATA.spec, 0, tmp_path)
    assert made[0].world.dynamics.config.passes == 1 and tiny_world(ShortcutConfig).dynamics.config.passes == 4


def test_an_agent_lives_in_a_world(runs):
    with pytest.raises(ReverieError, match="is not a world: it holds Agent"):
        BehaviourObjective(world="../agent").init(nnx.Rngs(0), DATA.spec, runs / "policy")
    with pytest.raises(ValueError, match="horizon"):
        ImaginationObjective(horizon=0)
    with pytest.raises(ValueError, match="1 step"):
        AgentConfig(ahead=0)


def test_a_critic_learns_what_recorded_clips_returned(monkeypatch):
    """By hand: rewards that arrive with the next frame, a row that ends, and the last value of one that goes on."""
    bins, gamma, lam = TwoHot(bins=63, reach=3.2), 0.9, 0.8
    rewards = np.array([[7, 1, 0, 2], [7, 0, 3, 9]], np.float32)  # of frames; nothing led to the first
    ends = np.array([[0, 0, 0, 0], [0, 0, 1, 0]], bool)
    logits = jax.random.normal(KEY, (2, 4, 63))
    values, expected, weights = np.asarray(bins.mean(logits)), np.zeros((2, 3)), np.ones((2, 3))
    for row in range(2):
        following = values[row, 3]
        for t in (2, 1, 0):
            ahead = (1 - lam) * values[row, t + 1] + lam * following
            following = expected[row, t] = rewards[row, t + 1] + gamma * (not ends[row, t + 1]) * ahead
    weights[1, 2] = 0  # after the end
    monkeypatch.setattr(training, "_read", lambda *_: jnp.zeros((2, 4, 1, 1)))
    model: Any = SimpleNamespace(config=SimpleNamespace(values=bins), value=lambda h, task: logits)
    objective = ImaginationObjective(gamma=gamma, lam=lam, replay=1.0)
    batch = {"latents": 0, "actions": 0, "rewards": jnp.asarray(rewards), "ends": jnp.asarray(ends)}
    found = objective._replayed(model, batch).value
    by_hand = np.asarray(bins.nll(logits[:, :-1], jnp.asarray(expected, jnp.float32)))
    np.testing.assert_allclose(found, (by_hand * weights).sum() / weights.sum(), rtol=1e-5)


# -- in the real environment -----------------------------------------------------------------------------------------


def test_all_play_the_same_unseen_levels_and_the_oracle_wins(runs, capsys, tmp_path):
    """The command, in one JSON object: who plays, how well, and that an exact world imagines what happens."""
    assert main(["eval", str(runs), "--env", "--episodes", "24", "--json"]) == 0
    printed = capsys.readouterr()
    numbers = json.loads(printed.out)
    assert printed.err.count("] of 24 episodes") == 9, "and a table for people"
    assert (runs / "eval" / "agent.gif").read_bytes().startswith(b"GIF89a")
    returns = {name.removeprefix("return_"): value for name, value in numbers.items() if name.startswith("return_")}
    arms = {"random", "bc", "bc_greedy", "rl", "rl_greedy", "plan", "oracle", "imagined", "replayed"}
    assert set(returns) == arms and numbers["steps"] == 32
    for value in returns.values():
        assert value["episodes"] == 24 and value["low"] < value["mean"] < value["high"]
    assert -70 < returns["oracle"]["mean"] < -40 and -330 < returns["random"]["mean"] < -210
    assert all(returns["oracle"]["mean"] > value["mean"] for name, value in returns.items() if name != "oracle")
    assert abs(numbers["gap"]) < 0.3 and numbers["gap_correlation"] > 0.9 and 0 < numbers["gap_error"] < 4

    file, page = tmp_path / "results.json", tmp_path / "page.md"
    rows = results.rows_of(runs, numbers, "exact")
    assert results.add(rows, file) == results.add(rows[:2], file) == json.loads(file.read_text()) and len(rows) == 9
    assert {row["arm"]: row["policy_seed"] for row in rows}.items() >= {"random": None, "bc": None, "rl": 0}.items()
    assert {row["agent_seed"] for row in rows} == {0, None}
    assert all(name in rows[0] for name in ("task", "arm", "policy_seed", "episodes"))
    page.write_text(f"before\n{results.BEGIN}old\n{results.END}after\n")
    results.draw(rows, page)
    assert "old" not in page.read_text() and page.read_text().count("| square | exact |") == 9
    assert page.read_text().startswith("before") and page.read_text().endswith("after\n")


def test_an_exact_world_imagines_the_very_pictures_of_the_game(runs):
    """Columns of the clip: imagined, the same actions replayed, and the policy that sees each real frame."""
    clip, _ = film(runs, episodes=2)
    assert len(clip) == 33
    wide = (clip.shape[2] - 12) // 3
    imagined, replayed, real = (clip[:, 100:, i * (wide + 6) :][:, :, :wide] for i in range(3))
    assert np.array_equal(imagined, replayed) and (imagined[1:] != imagined[:-1]).any(axis=(1, 2, 3)).all()
    assert np.array_equal(real[0], imagined[0]) and not np.array_equal(real, imagined), "its chance is another's"


def test_the_table_of_agents_is_drawn_from_the_file_of_results():
    assert results.table(json.loads(results.FILE.read_text("utf8"))) in results.PAGE.read_text("utf8")


def test_planning_finds_the_best_actions_where_world_and_rewards_are_exact(runs, monkeypatch):
    """One round of one sample is random play, and the value counts for what follows the last frame."""
    agent, game = load(runs / "agent"), environment.Environment(SeenConfig())
    monkeypatch.setattr(Agent, "rewards_of", lambda self, h, task: -8 * jnp.hypot(h[..., 0, 0], h[..., 0, 1]))
    monkeypatch.setattr(Agent, "continues_of", lambda self, h, task: jnp.full(h.shape[:-2], 0.9))

    def mean(choose):
        return environment.play(game, range(16), 24, choose).sum(0).mean()

    best = mean(lambda *_: game.best())
    searched = mean(environment.Actor(agent, 16, 0, Planner(horizon=4, samples=48)))
    random = mean(environment.Actor(agent, 16, 0, Planner(samples=1, elites=1, rounds=1)))
    assert best - 4 < searched <= best + 1e-3 and random < 2.5 * searched

    agent.value = lambda h, task: 99.0 * jax.nn.one_hot(jnp.full(h.shape[:-2], 254), 255)
    actions = jnp.zeros((2, 2), jnp.int32)
    scores = Planner(horizon=2, gamma=0.5).score(agent, jnp.full((2, 1, 3), 8.0), actions, KEY)
    rewards = [-8 * np.hypot(8 - 12, y - 12) / 8 for y in (6, 4)]  # of a square of side 8 that goes up
    np.testing.assert_allclose(scores, rewards[0] + 0.45 * (rewards[1] + 0.45 * HEADS.values.values[-1]), rtol=1e-5)
    with pytest.raises(ValueError, match="elites"):
        Planner(samples=2, elites=3)


def test_the_evaluation_sounds_the_alarm_on_a_planted_reward_hack_alone(runs, monkeypatch):
    data = runs / "data"
    DATA.save(runs / "episodes.npz")
    data.symlink_to("episodes.npz")
    try:
        healthy = environment.judge(runs, 4, plan=0)
        real = Agent.rewards_of
        monkeypatch.setattr(Agent, "rewards_of", lambda self, h, task: real(self, h) + 12)
        hacked = environment.judge(runs, 4, plan=0)
    finally:
        data.unlink()
    assert (healthy["alarm"], hacked["alarm"]) == (0, 1) and "return_plan" not in healthy
    assert hacked["gap_error"] > 8 > healthy["gap_error"] and healthy["return_blind"]["episodes"] == 4


@pytest.mark.parametrize(("line", "says"), [
    ("eval {} --env --episodes 1", "at least 2 episodes"), ("eval {} --env --plan -1", "0 episodes or more"),
    ("eval {}/agent --env", "has no agent"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_line(runs, capsys, line, says):
    assert main(line.format(runs).split()) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_recordings_have_no_game(runs, capsys, tmp_path):
    shutil.copytree(runs / "agent", tmp_path / "agent")
    found = read_record(tmp_path / "agent")
    write_record(tmp_path / "agent", replace(found, spec=replace(found.spec, simulator=None)))
    assert main(["eval", str(tmp_path), "--env"]) == 2 and "there is no game to play in" in capsys.readouterr().err


def test_mixed_play_is_of_every_quality_and_the_old_play_is_what_it_was():
    source = SquareConfig(count=60, play="mixed")
    found = {}
    for episode in source.episodes():
        found.setdefault(episode.source.partition(", ")[2], []).append(episode.rewards.sum())
    kinds = {name: np.concatenate([v for k, v in found.items() if k.startswith(name)]) for name in ("beh", "random 0")}
    assert {"behaviour", "random"} < set(found) and len(found) > 10, "a half-good episode says how good"
    assert kinds["random 0"].mean() > np.mean(found["random"]) > kinds["beh"].mean()
    old = next(SquareConfig(count=1, seed=3).episodes())
    rng = np.random.default_rng((3, 0))
    again = record(SquareConfig().make(), seed=int(rng.integers(2**31)), frames=33, rng=rng, fps=10.0)
    assert old.source == again.source and np.array_equal(old.actions, again.actions)


def test_data_from_before_a_source_had_this_field_are_still_its_data(tmp_path):
    made = {name: value for name, value in config.to_json(SquareConfig()).items() if name != "play"}
    _check_source(SquareConfig(), {"source": made}, tmp_path)
    with pytest.raises(ReverieError, match="other data"):
        _check_source(SquareConfig(play="mixed"), {"source": made}, tmp_path)
