"""Initial frames and names of latent actions are found from a world's folder alone."""

import json

import numpy as np
import pytest
from playground import FPS, FRAME, STEER

from reverie.actions import START, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Spec
from reverie.errors import ReverieError
from reverie.play.server import play
from reverie.training.engine import Run
from reverie.training.record import Record, write_record
from reverie.world_folder import STARTS, initial_frames, named_actions


def test_a_world_begins_in_its_own_data_or_in_what_was_packed_with_it(tmp_path):
    rng = np.random.default_rng(0)

    def dataset(episodes):
        arrays = {"frames": rng.integers(0, 256, (20 * episodes, *FRAME), np.uint8)}
        arrays["actions"] = np.tile(np.r_[START, np.ones(19)], episodes).astype(np.int32)
        return ArrayDataset(Spec(FRAME, STEER, FPS, "noise"), np.full(episodes, 20), arrays)

    folder = tmp_path / "world" / "dynamics"
    folder.mkdir(parents=True)
    data = dataset(30)
    write_record(folder, Record(Run(objective=None, data="../there.npz"), data.spec, data.fingerprint))
    assert initial_frames(folder.parent) == [], "without its data a world can still be played"
    data.save(tmp_path / "there.npz")
    starts = initial_frames(folder.parent)
    assert 1 < len(starts) <= 8
    for frames, actions in starts:
        assert len(frames) == len(actions) and data.arrays["frames"].tobytes().find(frames.tobytes()) >= 0
    packed = dataset(1)
    packed.save(folder.parent / STARTS)
    assert len(initial_frames(folder.parent)) == 1
    with pytest.raises(ReverieError, match="nothing at"):
        play(tmp_path / "nowhere")


def test_latent_actions_bear_the_names_and_keys_of_what_they_stand_for(tmp_path):
    spec, space = Spec(FRAME, STEER, FPS, "noise"), ActionSpace("latent", 4)
    folder = tmp_path / "world" / "dynamics"
    folder.mkdir(parents=True)
    write_record(folder, Record(Run(objective=None), spec, "0"))
    assert named_actions(space, folder.parent) == space, "not measured yet"

    def measured(found):
        (folder.parent / "eval.json").write_text(json.dumps({"lam_actions": found}))
        return named_actions(space, folder.parent)

    some = measured([None, 1, None, 0])
    assert some.names == ("1", STEER.names[1], "3", STEER.names[0])
    assert some.keys == ("", STEER.keys[1], "", STEER.keys[0])
    for nonsense in (None, [], [0], [None, 99, None, 0], ["a"] * 4, {"a": 1}):
        assert measured(nonsense) == space
    assert named_actions(STEER, folder.parent) == STEER
    (folder.parent / "eval.json").write_text("{")
    assert named_actions(space, folder.parent) == space
