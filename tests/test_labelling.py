"""Actions of unlabelled steps, inferred by a world that follows its actions."""

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from exact_square import Exact, SeenConfig, exact_world

import reverie
from reverie import cli, labelling
from reverie.actions import START, UNLABELLED, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.copying import opened
from reverie.data.episode import Episode
from reverie.data.sources.square import MOVES
from reverie.data.splits import labelled
from reverie.data.store import write_store
from reverie.data.subset import Wanted, subset
from reverie.errors import ReverieError
from reverie.labelling import Labeller, label
from reverie.world import WorldModel


@pytest.fixture
def whole(tmp_path):
    of_length = {length: SeenConfig(count=4, frames=length, play="mixed", seed=length).episodes() for length in (21, 9)}
    episodes = [each for pair in zip(*of_length.values(), strict=True) for each in pair]
    return opened(write_store(tmp_path / "whole", SeenConfig().spec(), {"train": episodes[:5], "val": episodes[5:]}))


def reached(frames, actions):
    """The frames that actions lead to, by the world without error, from every frame but the last."""
    state = jnp.asarray(frames[:-1, 0].astype(np.float32))
    return np.asarray(Exact().imagine(state, jnp.asarray(actions[1:]), None)[1])[:, 0]


def test_inferred_actions_lead_to_the_recorded_frames(whole, tmp_path):
    subset(whole.path, tmp_path / "few", Wanted(labels=0.4))
    few = opened(tmp_path / "few")
    said = label(few, exact_world(), tmp_path / "all", "zstd")
    found = opened(tmp_path / "all")
    for split, part in found.splits.items():
        for episode, length in enumerate(part.lengths.tolist()):
            now, old, real = (each.splits[split].read(episode, 0, length) for each in (found, few, whole))
            assert all(np.array_equal(now[name], real[name]) for name in ("frames", "rewards", "ends"))
            assert now["actions"][0] == real["actions"][0], "no action leads to the first frame"
            np.testing.assert_array_equal(reached(now["frames"], now["actions"]), now["frames"][1:, 0, 0])
            if labelled(few.splits[split], [episode])[0]:
                np.testing.assert_array_equal(now["actions"], old["actions"], "what was recorded stays")
    assert all(labelled(found.splits["train"]))
    hidden = [length - 1 for length, known in zip(whole.any.lengths, labelled(few.any), strict=True) if not known]
    assert len(hidden) == 3 and f"of {sum(hidden)} steps were inferred" in said
    assert int(re.findall(r"right in (\d+)% of", said)[0]) > 60, "walls make some actions alike, so fewer than 100 %"
    assert said.splitlines()[-1] in found.any.notes and "held-out steps" in said


def test_nothing_is_inferred_for_a_folder_that_is_there_already(whole, tmp_path, monkeypatch):
    subset(whole.path, tmp_path / "few", Wanted(labels=0.4))
    few = opened(tmp_path / "few")
    label(few, exact_world(), tmp_path / "all", "zstd")
    monkeypatch.setattr(Labeller, "actions", lambda *_, **__: pytest.fail("it infers again"))
    assert "it is there already" in label(few, exact_world(), tmp_path / "all", "zstd")
    with pytest.raises(ReverieError, match="few.*exists"):
        label(few, exact_world(), tmp_path / "few", "zstd")


def test_it_is_checked_where_actions_are_known(whole, tmp_path):
    subset(whole.path, tmp_path / "few", Wanted(labels=0.4, split="train"))
    said = label(opened(tmp_path / "few"), exact_world(), tmp_path / "all", "zstd")
    assert re.findall(r"of (\d+) recorded training steps", said)


def test_the_size_of_batches_and_chunks_changes_nothing(whole, monkeypatch):
    train = whole.splits["train"]
    before = Labeller(exact_world()).actions(train, [0, 2, 3, 4], known=False)
    monkeypatch.setattr(labelling, "FRAMES", 4)
    monkeypatch.setattr(labelling, "ROWS", 2 * len(MOVES))
    after = Labeller(exact_world()).actions(train, [4, 2, 0, 3], known=False)
    for place, episode in enumerate([4, 2, 0, 3]):
        np.testing.assert_array_equal(after[place], before[[0, 2, 3, 4].index(episode)])


class Carried(Exact):
    """A square that repeats its last move beside the new one, so what comes next depends on the action before."""

    def empty(self, batch):
        return jnp.zeros((batch, 1, 5))

    def observe(self, state, latents, actions):
        moves = jnp.where(actions[:, None] < 0, 0, jnp.asarray(MOVES, jnp.float32)[actions])
        return jnp.concatenate([latents, moves[:, None]], axis=-1), latents

    def imagine(self, state, actions, key, temperature=None):
        moves = jnp.asarray(MOVES, jnp.float32)[actions] + state[:, 0, 3:]
        latents = state[..., :3] + jnp.pad(moves, ((0, 0), (0, 1)))[:, None]
        return *self.observe(state, latents, actions)[:1], latents, latents


def test_what_was_inferred_is_what_the_world_goes_on_from():
    world, rng = exact_world(), np.random.default_rng(0)
    world.dynamics = Carried()
    actions = np.array([START, *rng.integers(0, len(MOVES), 15)], np.int32)
    moves = np.array(MOVES)[actions[1:]]
    moves[1:] += np.array(MOVES)[actions[1:-1]]
    places = 100 + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    frames = np.concatenate([places, np.full((16, 1), 8)], axis=1).astype(np.uint8)[:, None, None]
    nothing = np.zeros(16, np.float32)
    hidden = np.where(actions == START, START, UNLABELLED).astype(np.int32)
    episode = Episode(frames=frames, actions=hidden, rewards=nothing, ends=nothing.astype(np.bool_))
    dataset = ArrayDataset.from_episodes(SeenConfig().spec(), [episode])
    np.testing.assert_array_equal(Labeller(world).actions(dataset, [0])[0], actions)


def test_worlds_and_stores_it_cannot_serve_are_refused(whole, tmp_path, capsys):
    world = exact_world()
    with pytest.raises(ReverieError, match="nothing to infer"):
        label(whole, world, tmp_path / "out", "zstd")
    spaces = {"no recorded actions": ActionSpace("latent", 4), "81 actions": ActionSpace("multi", 2, sizes=(9, 9))}
    for text, space in spaces.items():
        with pytest.raises(ReverieError, match=text):
            Labeller(WorldModel(replace(world.config, actions=space), world.tokenizer, None, world.dynamics))
    for flags, text in (([], "--world RUN"), (["--world", "platformer"], "other frames or actions")):
        assert cli.main(["data", "label", str(whole.path), str(tmp_path / "out"), *flags]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trained_world_infers_the_keys_of_its_game(tmp_path, capsys):
    flags = ["--count", "6", "--frames", "17", "--themes", "6", "--anywhere", "--val", "0.3"]
    assert cli.main(["data", "platformer", str(tmp_path / "whole"), *flags]) == 0
    assert cli.main(["data", "subset", str(tmp_path / "whole"), str(tmp_path / "none"), "--labels", "0"]) == 0
    assert cli.main(["data", "label", str(tmp_path / "none"), str(tmp_path / "all"), "--world", "platformer"]) == 0
    assert int(re.findall(r"right in (\d+)% of", capsys.readouterr().out)[0]) >= 80
    real, made = (opened(tmp_path / name).splits["train"] for name in ("whole", "all"))
    pairs = [(part.read(e, 1, 16)["actions"] for part in (real, made)) for e in range(len(real.lengths))]
    assert np.mean([a == b for a, b in pairs]) >= 0.8
    assert reverie.load("platformer").config.actions == made.spec.actions
