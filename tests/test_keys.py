"""Agents in worlds of latent actions: which keys their codes stand for, and play in the real game."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from exact_square import HEADS, Exact, Eyes, SeenConfig, run
from exact_square import play as recorded_play
from flax import nnx

from reverie import config
from reverie.actions import START, UNLABELLED, ActionSpace
from reverie.cli import main
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.square import MOVES
from reverie.errors import ReverieError
from reverie.evaluation import environment
from reverie.evaluation.keys import Keys, keys_of
from reverie.models.agent import AgentConfig
from reverie.training.agents import BehaviourObjective
from reverie.training.engine import fit
from reverie.world import WorldConfig, WorldModel

config.packages.add(__name__)  # so that run.json may name a class below
KEYS = np.array([3, 0, 1, 2], np.int32)  # of each code
DATA = recorded_play(8)


class Steps(nnx.Module):
    """A latent action model without error: the code of a step follows from two pictures, but for steps into walls."""

    codes, receptive_field = len(KEYS), 1

    def infer(self, frames):
        places = frames[:, :, 0, 0, :2].astype(jnp.float32)
        moves = jnp.einsum("btx,ax->bta", places[:, 1:] - places[:, :-1], jnp.asarray(MOVES, jnp.float32)[KEYS])
        return jnp.pad(jnp.argmax(moves, axis=-1).astype(jnp.int32), ((0, 0), (1, 0)), constant_values=START)


class Coded(Exact):
    """The exact square, whose actions are codes."""

    def imagine(self, state, actions, key, temperature=None):
        state, latents, _ = super().imagine(state, jnp.asarray(KEYS)[actions], key)
        return state, latents, self.observe(state, latents, actions)[1]


def latent_world() -> WorldModel:
    frame = SeenConfig().spec().frame
    space = ActionSpace("latent", len(KEYS))
    return WorldModel(WorldConfig(frame=frame, actions=space, context=1), Eyes(), Steps(), Coded())


@dataclass(frozen=True, kw_only=True)
class CodedBehaviour(BehaviourObjective):
    """Cloning in the exact world of codes, which no run has trained."""

    agent: AgentConfig = HEADS

    def init(self, rngs: nnx.Rngs, spec, folder: Path):
        return self.agent.make(latent_world(), rngs)


def homeward(agent, state, h, key, task):
    """The code of a step toward the centre, along the longer way."""
    ways = -h[:, 0, :2] @ jnp.asarray(MOVES, jnp.float32)[KEYS].T
    return jnp.argmax(ways, axis=-1).astype(jnp.int32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the data of the square, and an agent that cloned its codes."""
    folder = tmp_path_factory.mktemp("coded")
    DATA.save(folder / "episodes.npz")
    (folder / "data").symlink_to("episodes.npz")
    fit(run(CodedBehaviour(), steps=2), folder / "agent", dataset=DATA, progress=False)
    return folder


def test_a_code_stands_for_what_was_done_after_the_most_similar_frames():
    """In dark scenes code 1 is action 2 and in bright ones it is 0; no step has code 3, so what is near decides."""
    dark, bright = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 200, np.uint8)
    frames = np.stack([dark] * 4 + [bright] * 8)
    known = Keys(np.array([1, 1, 1, 0, *[1] * 8]), frames, np.array([2, 2, 1, 3, *[0] * 8]), 4)
    assert known(np.array([0, 0]), np.stack([dark, bright])).tolist() == [3, 3]
    assert known(np.array([3, 3]), np.stack([dark + 9, bright])).tolist() == [2, 0]
    many = Keys(np.ones(12, int), np.stack([dark] * 5 + [bright] * 7), np.array([[2, 1]] * 5 + [[0, 5]] * 7), 2)
    assert many(np.array([1, 1]), np.stack([dark, bright])).tolist() == [[2, 1], [0, 5]]


def test_a_hundred_labelled_steps_say_which_key_each_code_is(place, tmp_path):
    keys = keys_of(place, latent_world())
    assert keys is not None and keys.size == 4 and len(keys.codes) == 100
    assert keys(np.arange(4), np.zeros((4, 1, 1, 3), np.uint8)).tolist() == KEYS.tolist()
    with pytest.raises(ReverieError, match="came without its data"):
        keys_of(tmp_path, latent_world())
    episodes = list(SeenConfig(count=2).episodes())
    for episode in episodes:
        episode.actions[1:] = UNLABELLED
    hidden = ArrayDataset.from_episodes(SeenConfig().spec(), episodes)
    hidden.save(tmp_path / "hidden.npz")
    assert environment.Blind(DATA, 0).knows and not environment.Blind(hidden, 0).knows
    (tmp_path / "data").symlink_to("hidden.npz")
    with pytest.raises(ReverieError, match="no step of its data says"):
        keys_of(tmp_path, latent_world())


def test_an_actor_of_codes_plays_by_keys_and_reads_codes_off_real_frames(place):
    agent, game = HEADS.make(latent_world(), nnx.Rngs(0)), environment.Environment(SeenConfig())
    theirs, levels, seen = game.translated(keys_of(place, latent_world())), game.unseen(24, 0), []
    actor = environment.Actor(agent, 24, 0, homeward)

    def act(frames, actions):
        seen.append((frames, actions))
        return actor(frames, actions)

    assert theirs.actions == agent.world.config.actions and game.translated(None) is game
    found = environment.play(theirs, levels, 16, act).sum(0)
    best = environment.play(game, levels, 16, lambda *_: game.best()).sum(0)
    assert found.mean() > 1.25 * best.mean() and best.mean() < 0
    wrong = environment.play(game, levels, 16, environment.Actor(agent, 24, 0, homeward)).sum(0)
    assert wrong.mean() < 2 * found.mean(), "without the map"
    # What it believes led to a frame is what the frames show, not what it is given.
    read = np.asarray(agent.world.lam.infer(np.stack([frames for frames, _ in seen], axis=1)))
    clip = environment.Actor(agent, 24, 0, lambda agent, state, h, key, task: jnp.argmax(h[:, 0, 3:], -1))
    for t, (frames, actions) in enumerate(seen):
        assert (clip(frames, 0 * actions)[read[:, t] >= 0] == read[:, t][read[:, t] >= 0]).all()


def test_eval_env_judges_a_latent_agent_and_films_it(place, capsys):
    assert main(["eval", str(place), "--env", "--episodes", "16", "--plan", "0", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert {"return_random", "return_blind", "return_bc", "return_bc_greedy", "return_oracle"} <= set(numbers)
    assert (place / "eval" / "agent.gif").stat().st_size > 0
