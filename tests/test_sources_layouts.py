"""Arrays and HDF5 as programs lay them out: where episodes begin, which array is what, numbers of every type.

See ``foreign.py`` for what frames and actions say of themselves.
"""

import h5py
import numpy as np
import pytest
from foreign import check, encoded, frames, taken

from reverie.data.sources import roles
from reverie.data.sources.boundaries import is_list, of_list
from reverie.data.sources.pictures import rgb

LENGTHS = [4, 1, 6]
ROWS = np.concatenate([np.arange(length) for length in LENGTHS])
BOUNDS = {
    "traj_lengths": [4, 1, 6],
    "lengths_of_episodes": [4, 1, 6],
    "episode_ends": [4, 5, 11],
    "last_row_of_episode_ends": [3, 4, 10],
    "episode_starts": [0, 4, 5],
    "episode_offsets": [0, 4, 5, 11],
    "episode_index": [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2],
    "traj_id": [7, 7, 7, 7, 3, 5, 5, 5, 5, 5, 5],
    "episode_start": [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
    "frame_index": ROWS.tolist(),
    "not_done": [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0],
}


@pytest.mark.parametrize("name", BOUNDS)
def test_episodes_begin_where_any_array_says(tmp_path, store, name):
    whole = np.concatenate([frames(length, number) for number, length in enumerate(LENGTHS)])
    acts, want = np.concatenate(list(map(taken, LENGTHS))), [taken(length - 1) for length in LENGTHS]
    np.savez(tmp_path / "a.npz", images=whole, actions=acts, **{name: BOUNDS[name]})
    check(store("arrays", tmp_path / "a.npz"), LENGTHS, want)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/images"], file["data/actions"] = whole, acts
        lists = len(BOUNDS[name]) < 11
        file[f"meta/{name}" if lists else f"{name}"] = BOUNDS[name]
        if not lists:
            file.move("data/images", "images"), file.move("data/actions", "actions")
    check(store("hdf5", tmp_path / "a.h5"), LENGTHS, want)


@pytest.mark.parametrize("seed", range(20))
def test_a_list_of_random_episodes_gives_their_starts_back_and_another_does_not(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, rng.integers(2, 12))
    ends, rows = np.cumsum(lengths), int(lengths.sum())
    lists = {"ep_len": lengths, "ends": ends, "ep_ends": ends - 1, "starts": ends - lengths, "ep_ptr": np.r_[0, ends]}
    for name, values in lists.items():
        assert is_list(name, values.shape, "i8")
        found = of_list(name, values, rows)
        assert [row for row in found or [] if 0 < row < rows] == ends[:-1].tolist(), name
        assert name == "starts" or of_list(name, values, rows + 3) is None or name == "ep_ptr"
    assert not is_list("camera_index", (3,), "i8") and not is_list("friend", (3,), "i8")


def test_stacked_episodes_and_pictures_as_bytes_in_hdf5(tmp_path, store, caplog):
    with h5py.File(tmp_path / "stack.h5", "w") as file:
        file["frames"], file["actions"] = np.stack([frames(6), frames(6, 1)]), np.stack([taken(6)] * 2)
        file["lengths"] = [6, 4]
    check(store("hdf5", tmp_path / "stack.h5"), [6, 4], [taken(5), taken(3)])
    with h5py.File(tmp_path / "bytes.h5", "w") as file:
        group = file.create_group("data/demo_0")
        group["rgb"] = np.array([encoded(frame) for frame in frames(5)])  # of a fixed length, filled up with zeros
        group["action/arm"], group["action/grip"] = taken(5) / 20, taken(5) / 40
        group.attrs["language_instruction"] = "lift it"
    found = store("hdf5", tmp_path / "bytes.h5")
    check(found, [5], [np.stack([taken(4) / 20, taken(4) / 40], 1)])
    assert found.tasks == ["lift it"]


@pytest.mark.parametrize("kind", ["uint16", "int64", "bool", "float32", "float16", "signed"])
def test_pictures_of_numbers_of_every_type(kind):
    shown = frames(3)
    if kind == "bool":
        shown = (shown > 1).astype(np.uint8) * 255
    made = {
        "uint16": shown.astype(np.uint16) * 257,
        "bool": shown > 0,
        "signed": (shown / 127.5 - 1).astype(np.float32),
        "int64": shown.astype(np.int64),
    }.get(kind, (shown / 255).astype("float16" if kind == "float16" else "float32"))
    assert np.array_equal(rgb(made), shown) and np.array_equal(rgb(made.transpose(0, 3, 1, 2)), shown)


def test_the_array_of_actions_is_found_by_its_name_or_asked_for(tmp_path, store, caplog):
    arrays = {
        "rgb_static": frames(5),
        "robot_obs": np.zeros((5, 15)),
        "action_mask": np.ones(5),
        "prev_action": taken(5),
    }
    np.savez(tmp_path / "a.npz", **arrays, rel_action=taken(5))
    check(store("arrays", tmp_path / "a.npz"), [5], [taken(4)])
    assert "'rel_action' counts as the actions" in caplog.text
    np.savez(tmp_path / "b.npz", **arrays, u=taken(5))
    assert store("arrays", tmp_path / "b.npz").spec.actions.kind == "none"
    assert "which of robot_obs, action_mask, prev_action, u holds the actions is not clear" in caplog.text
    assert roles.chosen("image", ["obs/image", "obs/wrist_image"], "camera") == "obs/image"


def test_an_action_of_several_arrays_in_a_replay(tmp_path, store, caplog):
    rows = {"image": frames(5), "move": taken(5) / 20, "jump": np.arange(5) % 2, "is_first": np.eye(5)[0]}
    np.savez(tmp_path / "20260101T000000F000000-A-B-5.npz", **rows)
    check(store("dreamerv3", tmp_path, "--actions", "move,jump"), [5], [np.stack([taken(4) / 20, np.arange(4) % 2], 1)])
    assert store("dreamerv3", tmp_path).spec.actions.kind == "none"
    assert "--actions names another (move, jump" in caplog.text
