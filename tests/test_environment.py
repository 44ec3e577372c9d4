"""Real environments that agents are judged in: exact simulators, environments of Gymnasium, games of Procgen."""

from dataclasses import dataclass, replace

import gymnasium
import numpy as np
import pytest
from exact_square import Seen, SeenConfig, play

from reverie import config
from reverie.checksums import write_json
from reverie.data.episode import record
from reverie.data.sources.gymnasium import GymnasiumConfig
from reverie.data.sources.procgen import ProcgenConfig
from reverie.data.sources.square import SPACES
from reverie.data.writing import write_source
from reverie.evaluation import environment
from reverie.world_folder import data_source

DATA = play()


class Walk(gymnasium.Env):
    """A walk to the right by action 1; it ends at a place that depends on the seed, where the reward is."""

    metadata = {"render_fps": 5, "render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def seen(self):
        frame = np.zeros((16, 16, 3), np.uint8)
        frame[:, self.place], frame[:, self.goal] = 100, 200
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = 0, int(self.np_random.integers(2, 10))
        return self.seen(), {}

    def step(self, action):
        self.place = min(self.place + action, self.goal)
        there = self.place == self.goal
        return self.seen(), float(there), there, False, {}


@pytest.fixture
def walk():
    made: type = Walk
    gymnasium.register("Walk-v0", entry_point=made)
    yield GymnasiumConfig(path="Walk-v0", frames=13)
    del gymnasium.registry["Walk-v0"]


class Brief(Seen):
    def step(self, state, action):
        now, reward, _ = super().step(state, action)
        return now, reward, bool(now[7] >= state[2] - 4)  # small squares end early


@dataclass(frozen=True, kw_only=True)
class BriefConfig(SeenConfig):
    def make(self):
        return Brief(self.actions, super().make().goal)


def test_rows_that_are_over_wait():
    env = environment.Environment(BriefConfig())
    rewards = environment.play(env, range(8), 32, lambda frames, actions: np.zeros(8, np.int32))
    for row in range(8):
        length = int(env.simulator.reset(row)[2]) - 4
        assert rewards[length - 1 : length + 1, row].tolist() != [0, 0] and not rewards[length:, row].any()
        assert np.count_nonzero(rewards[:length, row]) >= length - 2


def test_an_environment_of_gymnasium_is_played_like_a_simulator(walk):
    """Each row its own level, the same one again for the same number, and none that recording has seen."""
    env = environment.Environment(walk)
    levels = env.unseen(6, 0)
    assert env.steps == 12 and env.simulator is None and env.solved() is None
    first = env.reset(levels)
    assert first.shape == (6, 16, 16, 3) and len(np.unique(first, axis=0)) > 2
    assert min(levels) >= 2**30 and not set(levels) & set(env.unseen(6, 1))
    np.testing.assert_array_equal(env.reset(levels[:3]), first[:3])

    goals = (first[:, 0, :, 0] == 200).argmax(-1)
    rewards = environment.play(env, levels, env.steps, lambda frames, actions: np.ones(6, np.int32))
    np.testing.assert_array_equal(rewards.argmax(0), goals - 1)
    assert (rewards.sum(0) == 1).all() and env.over.all() and len(rewards) == goals.max()
    idle = environment.play(env, levels, env.steps, lambda frames, actions: np.zeros(6, np.int32))
    assert len(idle) == 12 and not idle.any() and not env.over.any()
    env.close()


def test_a_game_of_procgen_is_judged_in_levels_that_were_not_recorded():
    pytest.importorskip("envpool", reason="needs the extra 'coinrun'", exc_type=ImportError)
    source = ProcgenConfig(game="coinrun", mode="easy", count=2, frames=100)
    env, rng = environment.Environment(source), np.random.default_rng(0)
    jump = env.actions.names.index("right up")
    levels = env.unseen(24, 0)

    def mean(act):
        return environment.play(env, levels, env.steps, act).sum(0).mean()

    random = mean(lambda *_: np.array([env.actions.drawn(rng) for _ in levels]))
    right = mean(lambda *_: np.full(24, jump))
    assert right == mean(lambda *_: np.full(24, jump)) > random + 4, "the coin is worth 10"
    env.close()


def test_blind_cloning_repeats_what_data_do_after_the_same_actions():
    """Data that alternate are cloned exactly, without a look at a frame."""
    simulator, rng = SeenConfig().make(), np.random.default_rng(0)

    def alternate(state, rng, last):
        return 1 - int(last) if last >= 0 else 0

    made = [record(simulator, seed=i, frames=12, rng=rng, fps=1.0, policy=alternate) for i in range(30)]
    data = type(DATA).from_episodes(SeenConfig().spec(), made)
    blind, actions = environment.Blind(data, 0), SPACES["discrete"].start((3,))
    for t in range(6):
        actions = blind(np.zeros(0), actions)
        assert (actions == t % 2).all()


def test_a_world_says_where_its_data_came_from(walk, tmp_path):
    """Its recipe says it, or the store that it was trained on."""
    write_source(tmp_path / "store", replace(walk, count=4))
    for source in (replace(walk, count=4), str(tmp_path / "store")):
        world = tmp_path / f"world-{type(source).__name__}"
        world.mkdir()
        assert data_source(world) is None
        (world / "data").symlink_to(tmp_path / "store")
        write_json(world / "world.json", {"source": config.to_json(source)})
        assert data_source(world) == replace(walk, count=4)
    (world / "data").unlink()
    (world / "data").symlink_to(DATA.save(tmp_path / "data.npz"))
    assert data_source(world) is None, "an .npz does not say it"
