"""A world as an environment: what it shows, predicts and promises to those who train in it."""

import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import tiny
from exact_square import ExactBehaviour, SeenConfig, play, run
from flax import nnx
from gymnasium.utils.env_checker import check_env

import reverie
from reverie.actions import ActionSpace
from reverie.data.sources.square import SPACES
from reverie.env import EnvOptions, ImaginedEnv, load_env
from reverie.errors import ReverieError
from reverie.gymnasium_env import action_space
from reverie.models.agent import AgentConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.heads import HeadConfig
from reverie.training.engine import fit

DATA = play()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The exact square with an agent that knows rewards well: its environment is the real one, but for their error."""
    place = tmp_path_factory.mktemp("env")
    fit(run(ExactBehaviour(), steps=60, rate=1e-2), place / "agent", dataset=DATA, progress=False)
    DATA.save(place / "starts.npz")
    return place


def test_an_episode_is_that_of_the_real_environment_where_the_world_is_exact(folder):
    env, simulator = gymnasium.make("reverie/World-v0", run=folder, steps=12), SeenConfig().make()
    frame, info = env.reset(seed=3)
    firsts = [DATA.read(episode, 0, 1)["frames"][0] for episode in range(len(DATA.lengths))]
    assert any(np.array_equal(frame, first) for first in firsts) and info == {}
    state, errors = np.zeros(8, np.int32), []
    state[:3], env.action_space = frame[0, 0], gymnasium.spaces.Discrete(4, seed=0)
    for t in range(12):
        action = env.action_space.sample()
        frame, reward, terminated, truncated, _ = env.step(action)
        state, real, _ = simulator.step(state, int(action))
        assert np.array_equal(frame, simulator.render(state)) and not terminated and truncated == (t == 11)
        errors.append(abs(reward - real))
    assert np.mean(errors) < 2.5, "rewards are those of the head"


def test_gymnasium_finds_nothing_wrong(folder):
    env = gymnasium.make("reverie/World-v0", run=folder, render_mode="rgb_array", steps=5)
    with warnings.catch_warnings():
        # Pictures of one pixel are the exact square's, and none of the environment's.
        warnings.filterwarnings("ignore", ".*(different from the unwrapped|shape|resolution).*")
        check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (1, 1, 3) and env.unwrapped.functional.options.steps == 5


def test_rows_play_what_single_environments_play_and_begin_anew(folder):
    rows, steps = gymnasium.make_vec("reverie/World-v0", num_envs=3, run=folder, steps=4), []
    frames, _ = rows.reset(seed=7)
    actions = np.random.default_rng(0).integers(0, 4, (11, 3))
    steps = [(frames, np.zeros(3), np.zeros(3, bool))] + [rows.step(action)[:4:1] for action in actions]
    env = reverie.make_env(folder, steps=4)
    for row in range(3):
        assert np.array_equal(env.reset(seed=7 + row)[0], steps[0][0][row])
        over = False
        for action, (frame, reward, *ends) in zip(actions[:, row], steps[1:], strict=True):
            if over:  # "NextStep": the row begins anew, and its action has no effect
                assert np.array_equal(env.reset()[0], frame[row]) and reward[row] == 0 and not ends[1][row]
                over = False
                continue
            alone, own, terminated, over, _ = env.step(action)
            assert np.array_equal(alone, frame[row]) and own == pytest.approx(reward[row], abs=1e-3)
            assert (terminated, over) == (ends[0][row], ends[1][row])
    again = [rows.reset(seed=7)[0]] + [rows.step(action)[0] for action in actions]
    assert all(np.array_equal(a, step[0]) for a, step in zip(again, steps, strict=True)), "seeds are exact"


def test_the_functional_form_is_vmapped_and_scanned(folder):
    env = load_env(folder, EnvOptions(steps=6))
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def episodes(keys):
        state, first = jax.vmap(env.reset)(keys)
        actions = jax.random.randint(jax.random.key(1), (6, 4), 0, 4)
        return first, jax.lax.scan(jax.vmap(env.step), state, actions)[1], actions

    first, steps, actions = episodes(keys)
    assert first.shape == (4, 1, 1, 3) and steps.frame.shape == (6, 4, 1, 1, 3) and steps.frame.dtype == np.uint8
    assert np.array_equal(steps.truncated[:, 0], [False] * 5 + [True]) and not steps.terminated.any()
    assert len(np.unique(np.asarray(first).reshape(4, -1), axis=0)) > 1, "each key begins an episode of its own"
    state, _ = jax.jit(env.reset)(keys[2])
    one = jax.jit(env.step)(state, actions[0, 2])[1]
    assert np.array_equal(one.frame, steps.frame[0, 2])


def test_rows_of_different_ages_share_a_batch_and_an_episode_ends_where_the_head_says_so():
    """In a world with KV caches, whose time is one number for all rows of a batch."""
    agent = AgentConfig(head=HeadConfig(width=8), ahead=1).make(tiny.world(ShortcutConfig), nnx.Rngs(0))
    agent.ends.out.bias[...] += 1  # in the exact square above nothing ever ends
    agent.reward.out.kernel[...] = jax.random.normal(jax.random.key(1), agent.reward.out.kernel.shape) / 9
    starts = tiny.frames(6, 2), np.stack([agent.world.config.actions.start((2,))] * 6)
    env = ImaginedEnv(agent, starts, EnvOptions(steps=8, context=2, passes=1))

    reset, step, steps = jax.jit(env.reset), jax.jit(env.step), jax.jit(jax.vmap(env.step))
    actions, keys = np.random.default_rng(0).integers(0, 3, 5).astype(np.int32), jax.random.split(jax.random.key(3), 2)
    states = [[reset(key)[0]] for key in keys]
    alone = [[], []]
    for state, found in zip(states, alone, strict=True):
        for action in actions:
            now, shown = step(state[-1], action)
            state.append(now)
            found.append(shown)
    now = jax.tree.map(lambda *each: jnp.stack(each), states[0][2], states[1][0])  # the second row begins later
    for t in range(3):
        now, rows = steps(now, actions[[t + 2, t]])
        for row, single in enumerate((alone[0][t + 2], alone[1][t])):
            assert np.abs(np.int16(rows.frame[row]) - np.int16(single.frame)).max() <= 1
            np.testing.assert_allclose(rows.reward[row], single.reward, rtol=1e-4)
        assert rows.terminated.all() and np.std(rows.reward) > 0


@pytest.mark.parametrize("kind", [*SPACES, "latent"])
def test_every_kind_of_action_is_a_space_of_gymnasium(kind):
    space = SPACES.get(kind, ActionSpace("latent", 5))
    made = action_space(space)
    made.seed(0)
    for _ in range(8):
        assert space.is_action(space.taken(made.sample()))


def test_registered_whichever_is_imported_first_and_nothing_heavy_is_imported():
    code = "import sys; import {}; import {}; assert 'jax' not in sys.modules; gymnasium.spec('reverie/World-v0')"
    for names in (("gymnasium", "reverie"), ("reverie", "gymnasium")):
        subprocess.run([sys.executable, "-c", code.format(*names)], check=True, timeout=60)
    code = "import sys, reverie.cli; assert not {'numpy', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_no_environment_is_one_line(folder, tmp_path):
    for wrong, says in [
        ({"run": tmp_path}, "has no agent"), ({"context": 0}, "context >= 1"), ({"context": 9}, "at most 1 real"),
        ({"stpes": 3}, "Did you mean 'steps'"), ({"num_envs": 0}, "at least 1 row"),
        ({"render_mode": "x"}, "no render"), ({"temperature": -1.0}, "temperature .* from 0 on, not -1"),
        ({"run": tmp_path / "no-such"}, "there is nothing at .*no-such"),
    ]:  # fmt: skip
        with pytest.raises(ReverieError, match=says):
            reverie.make_env(**({"run": folder} | wrong))
    env = reverie.make_env(folder)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(ReverieError, match="no action 4"):
        env.step(4)
    (folder / "starts.npz").rename(folder / "gone.npz")
    with pytest.raises(ReverieError, match="data of .* is gone"):
        reverie.make_env(folder)
    (folder / "gone.npz").rename(folder / "starts.npz")


@pytest.mark.parametrize("where", [(), ("--real",)])
@pytest.mark.filterwarnings("ignore")  # their warnings are theirs
def test_ppo_of_stable_baselines_trains_in_a_world_and_in_its_game_as_it_is(folder, where, monkeypatch, capsys):
    pytest.importorskip("stable_baselines3")
    script = str(Path(__file__).parents[1] / "docs" / "agents" / "stable_baselines.py")
    few = "--steps", "256", "--rows", "1", "--policy", "MlpPolicy"
    monkeypatch.setattr(sys, "argv", [script, str(folder), *few, *where])
    runpy.run_path(script, run_name="__main__")
    assert "mean return of PPO in 512 levels of the real game: -" in capsys.readouterr().out
