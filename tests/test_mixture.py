"""Mixtures of stores: one space and one size for the model, and clips by weight; relevant clips."""

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie import cli, config
from reverie.actions import UNLABELLED, ActionSpace
from reverie.checksums import write_json
from reverie.data.arrays import ArrayDataset
from reverie.data.copying import opened
from reverie.data.episode import Episode, Spec
from reverie.data.loader import batches
from reverie.data.mixture import Mixture, joined
from reverie.data.order import Tiles, order_of, relevant_frames
from reverie.data.shifted import Shifted
from reverie.data.sources.mixture import MixtureConfig
from reverie.data.sources.square import SquareConfig
from reverie.data.store import open_dataset, write_store
from reverie.errors import ReverieError
from reverie.nn.batch import mean
from reverie.presets import preset
from reverie.recorded import note, record, spec_of, stored
from reverie.training.engine import fit

config.packages.add(__name__)  # so that run.json may name a class below
RNG = np.random.default_rng(0)
SPACES = {
    "moves": ActionSpace("discrete", 3, ("left", "right", "jump"), ("ArrowLeft", "ArrowRight", " ")),
    "shots": ActionSpace("discrete", 2, ("aim", "fire"), ("a", "f")),
    "keys": ActionSpace("binary", 2),
    "pad": ActionSpace("multi", 2, sizes=(3, 4)),
    "arm": ActionSpace("continuous", 2, low=(-1.0, -2.0), high=(1.0, 2.0)),
    "wheel": ActionSpace("continuous", 1, low=(2.0,), high=(4.0,)),
    "none": ActionSpace(),
}


def data_of(name, lengths=(12, 20), frame=(8, 6, 3), **changes):
    """Episodes of random actions; ``changes``: arrays of an episode, or fields."""
    space, episodes = SPACES[name], []
    for index, length in enumerate(lengths):
        actions = space.nth(RNG.integers(0, space.count, length))
        actions[0] = space.start()
        arrays = {"rewards": np.zeros(length, np.float32), "ends": np.zeros(length, bool)} | changes
        frames = RNG.integers(0, 256, (length, *frame)).astype(np.uint8)
        episodes.append(Episode(frames, actions, **arrays, source=f"{name} {index}"))
    return Spec(frame, space, 10.0, name), episodes


def in_memory(*names, **more):
    return [ArrayDataset.from_episodes(*data_of(name, **more)) for name in names]


def mixed(*names, **options):
    parts = in_memory(*names)
    return Mixture(parts, [part.spec for part in parts], **options)


def actions_of(mixture, part):
    """The actions of a part's first episode: its own, and those of the mixture."""
    first = int(np.searchsorted(mixture._part, part))
    own, joint = mixture.parts[part].read(0, 0, 12)["actions"], mixture.read(first, 0, 12)["actions"]
    mixture.spec.actions.refuse(joint, "a mixture")
    assert mixture.spec.actions.is_start(joint).tolist() == [True] + [False] * 11
    return own[1:], joint[1:]


# -- one action space ------------------------------------------------------------------------------------------------


def test_choices_lie_one_after_the_other():
    mixture = mixed("moves", "none", "shots", "moves")
    space = mixture.spec.actions
    assert (space.kind, space.size) == ("discrete", 5)
    assert space.names == ("moves: left", "moves: right", "moves: jump", "shots: aim", "shots: fire")
    assert space.keys == ("ArrowLeft", "ArrowRight", " ", "", "")
    for part, shift in ((0, 0), (2, 3), (3, 0)):
        own, joint = actions_of(mixture, part)
        assert np.array_equal(joint, own + shift) and len(set(own.tolist())) > 1
    assert (actions_of(mixture, 1)[1] == UNLABELLED).all()


@pytest.mark.parametrize(("names", "kind", "size", "others"), [
    (("keys", "pad"), "multi", 4, 0), (("moves", "keys"), "multi", 3, 0), (("pad", "shots"), "multi", 3, 0),
    (("arm", "wheel"), "continuous", 3, 2.0),
])  # fmt: skip
def test_components_lie_side_by_side_and_those_of_another_dataset_rest(names, kind, size, others):
    mixture = mixed(*names)
    space = mixture.spec.actions
    assert (space.kind, space.size) == (kind, size)
    own, joint = actions_of(mixture, 0)
    width = own.reshape(11, -1).shape[1]
    assert np.array_equal(joint[:, :width], own.reshape(11, -1)) and (joint[:, width:] == others).all()
    own, joint = actions_of(mixture, 1)
    assert np.array_equal(joint[:, width:], own.reshape(11, -1)) and (joint[:, :width] == 0).all()


def test_equal_spaces_are_one_and_two_keyboards_are_one_of_all_keys():
    assert mixed("moves", "moves", "none").spec.actions == SPACES["moves"]
    assert mixed("none", "none").spec.actions.kind == "none"
    two = [Spec((8, 6, 3), ActionSpace("binary", count), 10.0, "keys") for count in (2, 3)]
    assert joined(two)[0].actions == ActionSpace("binary", 5)
    with pytest.raises(ReverieError, match="no action space holds continuous ones .arm. and discrete ones .moves."):
        mixed("arm", "moves")


# -- one size, one game ----------------------------------------------------------------------------------------------


def test_frames_are_of_one_size_and_number_of_channels():
    parts = [*in_memory("moves"), *in_memory("moves", frame=(16, 12, 1))]
    mixture = Mixture(parts, [part.spec for part in parts])
    assert mixture.spec.frame == (8, 6, 3)
    small = mixture.read(2, 3, 4, ("frames",))["frames"]
    mean = parts[1].read(0, 3, 4)["frames"].reshape(4, 8, 2, 6, 2).mean((2, 4))
    assert small.shape == (4, 8, 6, 3) and np.abs(small - mean[..., None]).max() <= 1
    assert np.array_equal(mixture.read(0, 0, 12)["frames"], parts[0].read(0, 0, 12)["frames"])
    large = Mixture(parts, [part.spec for part in parts], size=(16, 12))
    assert np.array_equal(large.read(0, 0, 1)["frames"][0, ::2, ::2], parts[0].read(0, 0, 1)["frames"][0])


def test_a_game_stays_known_where_all_of_the_mixture_is_of_it():
    random, good = SquareConfig(count=2, frames=4), SquareConfig(count=3, frames=4, seed=1, play="mixed")
    parts = [ArrayDataset.from_episodes(source.spec(), source.episodes()) for source in (random, good)]
    mixture = Mixture(parts, [part.spec for part in parts])
    assert mixture.spec == random.spec() and "states" in mixture.read(4, 0, 4)
    assert {name for name, *_ in mixture.kinds} == {"frames", "actions", "rewards", "ends", "states"}
    other = Mixture([parts[0], *in_memory("none")], [parts[0].spec, data_of("none")[0]])
    assert other.spec.simulator is None and "states" not in other.read(0, 0, 4)


# -- which clips -----------------------------------------------------------------------------------------------------


def test_datasets_take_turns_by_weight_and_each_has_epochs_of_its_own():
    mixture = mixed("moves", "shots", "keys", weights=(3, 1, 0.5))
    order = order_of(mixture, 10, 0)
    drawn = [order.window(row) for row in range(900)]
    for count in (9, 90, 450, 900):
        counts = np.bincount([mixture._part[window.episode] for window in drawn[:count]], minlength=3)
        assert np.abs(counts - np.array([3, 1, 0.5]) / 4.5 * count).max() < 2, counts
    shots = [window for window in drawn if mixture._part[window.episode] == 1]
    count = int(Tiles.of(mixture.parts[1].lengths, 10, 0).ends[-1])
    for epoch in range(len(shots) // count):
        assert len(set(shots[epoch * count : (epoch + 1) * count])) == count
    moved = order_of(Shifted(mixture), 10, 0)
    assert [mixture._part[moved.window(row).episode % 6] for row in range(99)] == [
        mixture._part[e] for e, *_ in drawn[:99]
    ]


def test_half_of_the_clips_are_relevant_if_a_run_says_so_and_every_relevant_clip_is_drawn():
    space, lengths = SPACES["moves"], (40, 12, 30, 9, 30)
    spec, episodes = data_of("moves", lengths)
    assert space == spec.actions
    episodes[0].rewards[[7, 25]] = 1, -1
    episodes[1].ends[11] = True
    episodes[3].rewards[3] = 1  # shorter than a clip
    episodes[4].task = "fetch"
    data = ArrayDataset.from_episodes(spec, episodes)
    assert np.flatnonzero(relevant_frames(data)).tolist() == [7, 25, 51, 85, *range(91, 121)]
    holds = {(0, first) for first in [*range(8), *range(16, 26)]} | {(1, 2)} | {(4, first) for first in range(21)}
    order = order_of(data, 10, 5, relevant=0.5)
    drawn = [order.window(row) for row in range(4 * len(holds))]
    relevant = [window[:2] for window in drawn if window.relevant]
    for epoch in (relevant[: len(holds)], relevant[len(holds) :]):
        assert set(epoch) == holds and len(epoch) == len(holds)
    assert relevant[: len(holds)] != relevant[len(holds) :] != sorted(holds)
    plain = order_of(data, 10, 5)
    assert [window[:2] for window in drawn if not window.relevant] == [plain.window(row)[:2] for row in range(80)]
    assert [window.relevant for window in drawn[:4]] == [False, True, False, True]
    assert plain.window(0).relevant is None


def test_where_all_episodes_have_a_task_rewards_say_which_clips_are_relevant():
    spec, episodes = data_of("moves")
    for episode in episodes:
        episode.task = "fetch"
    with pytest.raises(ReverieError, match="no clip of 10 frames contains a reward, an end or a task"):
        order_of(ArrayDataset.from_episodes(spec, episodes), 10, 0, relevant=0.5)
    episodes[1].rewards[4] = 2
    data = ArrayDataset.from_episodes(spec, episodes)
    assert {order_of(data, 10, 0, 1.0).window(row)[0] for row in range(8)} == {1}
    with pytest.raises(ReverieError, match="share of relevant clips is 0 to 1"):
        order_of(data, 10, 0, relevant=1.5)


def test_a_share_of_the_clips_has_recorded_actions_where_only_some_episodes_have():
    spec, episodes = data_of("moves", (30, 12, 25, 40, 9))
    every = ArrayDataset.from_episodes(spec, episodes)
    rows, plain = range(200), [order_of(every, 10, 3).window(row) for row in range(200)]
    assert [order_of(every, 10, 3, labelled=0.7).window(row) for row in rows] == plain, "all episodes have actions"
    for episode in episodes[1:4]:
        episode.actions[1:] = UNLABELLED
        episode.rewards[-1] = 1
    episodes[0].rewards[20] = 1
    some = ArrayDataset.from_episodes(spec, episodes)
    assert [order_of(some, 10, 3).window(row) for row in rows] == plain
    for share in (0.25, 1.0):
        order = order_of(some, 10, 3, 0.5, share)
        drawn = [order.window(row) for row in rows]
        known = [window for window in drawn if window.episode == 0]
        assert len(known) == 200 * share and sum(window.relevant or False for window in known) == 100 * share
        assert {window.episode for window in drawn} == ({0} if share == 1 else {0, 1, 2, 3})
    episodes[0].actions[1:] = UNLABELLED  # an episode that is too short still has actions
    with pytest.raises(ReverieError, match="no episode of 10 frames has recorded actions: let 'labelled' be 0"):
        order_of(ArrayDataset.from_episodes(spec, episodes), 10, 3, labelled=0.5)
    with pytest.raises(ReverieError, match="share of labelled clips is 0 to 1, not -1"):
        order_of(some, 10, 0, labelled=-1)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of other sizes, spaces and rewards, with held-out episodes in the first."""
    folder = tmp_path_factory.mktemp("stores")
    spec, episodes = data_of("moves", (16, 40, 25, 33))
    episodes[2].rewards[11] = 1
    write_store(folder / "a", spec, {"train": episodes[:3], "val": episodes[3:]}, chunk=8, licence="CC0")
    spec, episodes = data_of("shots", (22, 19), (16, 12, 3))
    episodes[0].ends[-1] = True
    write_store(folder / "b", spec, {"train": episodes}, licence="MIT")
    words = f"data mixture {folder / 'both'} --stores {folder / 'a'} {folder / 'b'} --weights 3 1 --val 0"
    assert cli.main(words.split()) == 0
    return folder


@pytest.mark.parametrize("start", [0, 1, 7, 10**6])
def test_a_batch_is_the_same_on_any_number_of_processes_and_readers_and_after_a_restart(stores, start):
    """The property of the loader, of a weighted mixture with relevant clips."""
    data = open_dataset(stores / "both")
    order = order_of(data, 10, 3, relevant=0.5)
    clip = {"length": 10, "seed": 3, "order": order, "names": ("frames", "actions", "rewards", "relevant")}

    def take(count=2, **options):
        return list(itertools.islice(batches(data, batch=8, start=start, **clip, **options), count))

    whole = take(prefetch=0)
    assert whole[0]["relevant"].tolist() == [False, True] * 4 and whole[0]["frames"].shape == (8, 10, 8, 6, 3)
    for shards, prefetch in itertools.product((1, 2, 4), (0, 2)):
        parts = [take(shard=(index, shards), prefetch=prefetch) for index in range(shards)]
        for step in range(2):
            for name, array in whole[step].items():
                found = np.concatenate([part[step][name] for part in parts])
                assert found.dtype == array.dtype and np.array_equal(found, array), (shards, prefetch, name)
    later = next(batches(data, batch=8, start=start + 1, **clip))
    assert all(np.array_equal(later[name], array) for name, array in whole[1].items())


# -- on disk, and the command line -----------------------------------------------------------------------------------


def test_a_mixture_is_opened_and_shown_like_a_store_and_knows_its_stores(stores, capsys):
    train: Any = open_dataset(stores / "both")
    val = open_dataset(stores / "both", "val")
    assert len(train.lengths) == 5 and len(val.lengths) == 1 and train.spec == val.spec
    assert train.fingerprint != val.fingerprint
    assert opened(stores / "both").any.licence == "CC0; MIT"
    other = Mixture(train.parts, [part.spec for part in train.parts], weights=(1, 1), split="train")
    assert other.fingerprint != train.fingerprint, "a run does not go on with other weights"
    assert cli.main(["data", "show", str(stores / "both")]) == 0
    assert "train: 5 episodes" in capsys.readouterr().out
    assert cli.main(["data", "subset", str(stores / "both"), str(stores / "plain"), "--every", "2"]) == 0
    plain = open_dataset(stores / "plain")
    assert np.array_equal(plain.read(2, 0, 19)["actions"], train.read(4, 0, 19)["actions"])
    with pytest.raises(ReverieError, match="has a split 'test'"):
        open_dataset(stores / "both", "test")


@pytest.mark.parametrize(("words", "says"), [
    ("data mixture {}/c --stores {}/a {}/b --weights 1", "2 stores need as many weights"),
    ("data mixture {}/c --stores {}/a {}/b --weights 1 0", "numbers above 0"),
    ("data mixture {}/c --stores {}/a {}/gone", "no dataset at"),
    ("data mixture {}/both --stores {}/a", "exists already"),
    ("data mixture {}/c --stores {}/a {}/both", "is a mixture itself"),
    ("train toy-maskgit --data {}/a --data {}/b --weights 1 --out {}/run", "2 stores need as many weights"),
    ("train toy-maskgit --weights 1 --out {}/run", "needs the stores"),
    ("train toy-maskgit --data {}/a --source.tiles 7 --out {}/run", "which --data replaces"),
    ("data append {}/both {}/a", "not added to"), ("data doctor {}/both --release", "one file or a mixture"),
])  # fmt: skip
def test_what_cannot_be_mixed_is_one_line(stores, capsys, words, says):
    assert cli.main(words.replace("{}", str(stores)).split()) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1, error
    assert not (stores / "c").exists()


def test_a_recording_is_not_trained_on_in_one_store_and_held_out_in_another(tmp_path):
    spec, episodes = data_of("moves", (16, 20, 24))
    for name, held in (("a", 2), ("b", 0)):
        rest = [episode for index, episode in enumerate(episodes) if index != held]
        write_store(tmp_path / name, spec, {"train": rest, "val": [episodes[held]]})
    with pytest.raises(ReverieError, match="2 recordings are for training in one store and held out in another"):
        MixtureConfig(stores=(str(tmp_path / "a"), str(tmp_path / "b"))).write(tmp_path / "c")


def test_a_damaged_or_newer_mixture_is_one_line(stores, tmp_path):
    file, good = tmp_path / "mixture.json", json.loads((stores / "both" / "mixture.json").read_text())
    good.pop("checksum")
    for change, says in [
        ({"weights": [1]}, "do not fit"), ({"weights": ["x", 1]}, "damaged"), ({"stores": []}, "do not fit"),
        ({"size": [0, 4]}, "do not fit"), ({"schema": 2}, "newer Reverie"), ({"format": "x"}, "not a mixture"),
        ({"stores": 3}, "damaged"), ({"stores": ["/nowhere", "/else"]}, "no dataset at"),
    ]:  # fmt: skip
        write_json(file, good | change)
        with pytest.raises(ReverieError, match=says) as error:
            open_dataset(tmp_path)
        assert "\n" not in str(error.value)
    file.write_text(json.dumps(good))
    with pytest.raises(ReverieError, match="checksum is missing"):
        open_dataset(tmp_path)


# -- in a training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marked(ToyObjective):
    """An objective that logs which clips were drawn as relevant ones."""

    reads = ("frames", "relevant")

    def loss(self, model, batch, keys_B, progress):
        found = super().loss(model, batch, keys_B, progress)
        return found._replace(metrics={"relevant": mean(batch["relevant"].astype(jnp.float32))})


def test_a_run_draws_relevant_clips_of_a_mixture_and_goes_on_with_the_same_weights_only(stores, tmp_path):
    a, b = (open_dataset(stores / name) for name in "ab")
    run = replace(toy_run(2, Marked(), save_every=1, log_every=1), length=9, relevant=0.5)

    def trained(weights, steps):
        mixture = Mixture([a, b], [a.spec, b.spec], weights=weights, split="train")
        return fit(replace(run, steps=steps), tmp_path / "run", dataset=mixture, held_out=mixture, progress=False)

    lines = (trained((3, 1), 1) / "metrics.jsonl").read_text().splitlines()
    assert 0.5 in [json.loads(line).get("relevant") for line in lines]
    with pytest.raises(ReverieError, match="trained on other data"):
        trained((1, 1), 2)
    with pytest.raises(ReverieError, match="none is relevant"):
        fit(run, tmp_path / "other", dataset=toy_dataset(), progress=False)
    assert not (tmp_path / "other").exists()


def test_a_recipe_takes_stores_and_its_world_names_them(stores, tmp_path):
    a, b = (str(stores / name) for name in "ab")
    recipe = replace(preset("toy-maskgit"), source=stored([a, b], (3, 1)))
    assert stored([a]) == a and spec_of(recipe).frame == (8, 6, 3)
    for _ in range(2):  # the second finds it
        record(recipe, tmp_path, lambda found: None, lambda text: None)
        assert open_dataset(tmp_path / "data").fingerprint == open_dataset(stores / "both").fingerprint
    assert config.from_json((note(tmp_path) or {})["source"]) == recipe.source
    with pytest.raises(ReverieError, match="made from other data"):
        record(replace(recipe, source=stored([a, b], (1, 1))), tmp_path, lambda found: None, lambda text: None)
