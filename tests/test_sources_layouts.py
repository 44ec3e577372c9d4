"""Arrays, HDF5 and pictures as programs lay them out: where episodes begin, which array is what, where actions lie.

See ``foreign.py`` for what frames and actions say of themselves.
"""

import sys

import h5py
import numpy as np
import pytest
from foreign import check, encoded, frames, taken
from PIL import Image
from test_sources_records import shard

from reverie.data.sources import roles, tables
from reverie.data.sources.boundaries import is_list, of_list
from reverie.data.sources.lerobot import LeRobotConfig
from reverie.data.sources.minari import MinariConfig
from reverie.data.sources.pictures import rgb
from reverie.data.sources.rlds import RLDSConfig
from reverie.errors import ReverieError

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
        data, meta = ("data/", "meta/") if len(BOUNDS[name]) < len(whole) else ("", "")  # a list, or an entry a row
        file[f"{data}images"], file[f"{data}actions"], file[f"{meta}{name}"] = whole, acts, BOUNDS[name]
    check(store("hdf5", tmp_path / "a.h5"), LENGTHS, want)


@pytest.mark.parametrize(("source", "name"), [
    (MinariConfig, "main_data.hdf5"), (LeRobotConfig, "meta/info.json"), (RLDSConfig, "x.tfrecord-0"),
])  # fmt: skip
def test_of_several_datasets_one_is_to_be_chosen_and_none_is_named(tmp_path, source, name):
    for place in (tmp_path / "one" / name, tmp_path / "two" / name):
        place.parent.mkdir(parents=True)
        place.touch()
    with pytest.raises(ReverieError, match=r"holds 2 datasets; choose one: \S*one, \S*two\."):
        source(path=str(tmp_path)).spec()
    place.rename(tmp_path / "other.txt")
    (tmp_path / "one" / name).unlink()
    with pytest.raises(ReverieError, match="no file is one that .* reads; 'reverie learn"):
        source(path=str(tmp_path)).spec()


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


def test_stacked_episodes_and_pictures_as_bytes_in_hdf5(tmp_path, store):
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


def test_a_fourth_channel_is_transparency_or_the_newest_of_a_stack():
    shown = frames(5)
    mask = np.where(np.arange(24) < 9 + np.arange(5)[:, None, None], 255, 0) * np.ones((5, 16, 24))
    assert np.array_equal(rgb(np.concatenate([shown, mask[..., None]], -1).astype(np.uint8)), shown)
    grey = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 4)).astype(np.uint8)
    assert np.array_equal(rgb(grey), np.repeat(grey[..., 3:], 3, -1))


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


def test_rewards_and_ends_are_found_by_longer_names_but_not_by_their_letters(tmp_path, store, caplog):
    over = np.isin(np.arange(9), [3, 8])
    arrays = {"obs": np.concatenate([frames(4), frames(5, 1)]), "actions": np.concatenate([taken(4), taken(5)])}
    arrays |= {"env_reward": np.arange(9) == 1, "episode_done": over, "terminal_voltage": np.full(9, 2.5)}
    np.savez(tmp_path / "a.npz", **arrays, gripper_end=np.ones(9), hand_r=np.ones(9), next_done=~over)
    check(store("arrays", tmp_path / "a.npz"), [4, 5], [taken(3), taken(4)], [[2], []], [[], []])
    assert "'env_reward' counts as the rewards" in caplog.text and "'episode_done' counts as the dones" in caplog.text


@pytest.mark.parametrize("name, package", [("hdf5", "h5py"), ("lerobot", "pyarrow")])
def test_a_missing_package_is_one_line_that_names_the_extra(tmp_path, store, monkeypatch, capsys, name, package):
    for file in ("data/a.h5", "data/b.h5", "data/a.parquet", "data/b.parquet", "meta/info.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text('{"features": {"c": {"dtype": "video"}}}')
    monkeypatch.setitem(sys.modules, package, None)
    store(name, tmp_path, status=2)
    assert capsys.readouterr().err.count(f"needs {package}: pip install 'reverie-worlds[") == 1


def test_an_action_of_several_arrays_in_a_replay(tmp_path, store, caplog):
    rows = {"image": frames(5), "move": taken(5) / 20, "jump": np.arange(5) % 2, "is_first": np.eye(5)[0]}
    np.savez(tmp_path / "20260101T000000F000000-A-B-5.npz", **rows)
    check(store("dreamerv3", tmp_path, "--actions", "move,jump"), [5], [np.stack([taken(4) / 20, np.arange(4) % 2], 1)])
    assert store("dreamerv3", tmp_path).spec.actions.kind == "none"
    assert "--actions names another (move, jump" in caplog.text


# -- tables beside pictures ------------------------------------------------------------------------------------------


def laid(root, tree):
    """Write folders of pictures and tables."""
    for name, content in tree.items():
        path = root / name
        (path if isinstance(content, np.ndarray) else path.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            for number, frame in enumerate(content):
                (path / f"f{number}.png").write_bytes(encoded(frame))


def table(rows, mark=","):
    return "\n".join(mark.join(map(str, row)) for row in rows)


PAIRS = [(f"f{t}.png", action) for t, action in enumerate(taken(4))]
LAYOUTS = {
    "above the pictures": {"e0/rgb": frames(4), "e0/actions.csv": table([("action",), *[(a,) for a in taken(4)]])},
    "in a folder of its own": {"rgb/e0": frames(4), "labels/e0.csv": table([("action",), *[(a,) for a in taken(4)]])},
    "by name, in any order": {"e0": frames(4), "e0/actions.csv": table([("file", "action"), *reversed(PAIRS)])},
    "semicolons": {"e0": frames(4), "e0/actions.csv": table([("frame", "action"), *enumerate(taken(4))], ";")},
    "tabs": {"e0": frames(4), "e0/actions.tsv": table([("frame", "action"), *enumerate(taken(4))], "\t")},
    "a list": {"e0": frames(4), "e0/actions.json": str(taken(4).tolist())},
    "lists by name": {"e0": frames(4), "e0_actions.json": f'{{"fps": 3, "actions": {taken(4).tolist()}}}'},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_actions_are_found_wherever_they_lie_beside_pictures(tmp_path, store, name):
    laid(tmp_path / "game", LAYOUTS[name])
    check(store("images", tmp_path / "game"), [4], [taken(3)])


def test_one_table_of_paths_serves_all_folders_and_what_is_not_read_is_named(tmp_path, store, caplog, monkeypatch):
    read, cells = [], tables.cells
    monkeypatch.setattr(tables, "cells", lambda path: read.append(path.name) or cells(path))
    rows = [(f"e{e}/f{t}.png", action) for e, n in enumerate((4, 5)) for t, action in enumerate(taken(n))]
    tree = {"e0": frames(4), "e1": frames(5, 1), "labels.csv": table([("path", "action"), *rows[::-1]]), "x.csv": "1"}
    laid(tmp_path / "game", tree)
    check(store("images", tmp_path / "game"), [4, 5], [taken(3), taken(4)])
    assert "x.csv is not read" in caplog.text and "labels.csv is not read" not in caplog.text
    assert read == ["labels.csv"]  # once, not once for each folder
    laid(tmp_path / "game", {"e0/actions.csv": table([("frame", "action"), ("other0.png", 1), ("other1.png", 2)])})
    assert store("images", tmp_path / "game").spec.actions.kind == "discrete"
    assert "e0 is used without actions: its column 'frame' does not name these pictures" in caplog.text


def test_pictures_in_the_current_folder_have_its_name_and_its_actions(tmp_path, store, monkeypatch):
    laid(tmp_path / "game", {".": frames(4), "actions.csv": table([("action",), *[(a,) for a in taken(4)]])})
    monkeypatch.chdir(tmp_path / "game")
    found = store("images", ".")
    check(found, [4], [taken(3)])
    assert found.sources == ["game"]


def test_folders_between_the_pictures_of_another_do_not_divide_it(tmp_path, store):
    laid(tmp_path / "game", {"e0": frames(9), "e0/f4x": frames(3, 1)})
    check(store("images", tmp_path / "game"), [9, 3])


def test_a_folder_for_each_camera(tmp_path, store, capsys):
    actions = table([("action",), *[(a,) for a in taken(4)]])
    tree = {f"e{e}/{side}": frames(4, e + 5 * (side == "right")) for e in (0, 1) for side in ("left", "right")}
    laid(tmp_path / "game", tree | {"e0/actions.csv": actions, "e2/left": frames(4)})
    found = store("images", tmp_path / "game", "--camera", "left,right")
    assert found.spec.frame == (16, 48, 3) and found.lengths.tolist() == [4, 4] and found.sources == ["e0", "e1"]
    window = found.read(0, 0, 4)
    assert window["actions"][1:].tolist() == taken(3).tolist()
    assert (window["frames"][:, 1, 1, :2] == [[t, 0] for t in range(4)]).all() and window["frames"][0, 1, 25, 1] == 5
    assert store("images", tmp_path / "game", "--camera", "left").lengths.tolist() == [4, 4, 4]
    store("images", tmp_path / "game", "--camera", "middle", status=2)
    assert "camera 'middle'; there are left, right" in capsys.readouterr().err


def test_pictures_named_by_decimal_seconds_are_in_order_of_time(tmp_path, store):
    (tmp_path / "e0").mkdir()
    for second, frame in zip(("0.0", "0.1", "0.25", "0.5", "1.0", "1.125"), frames(6), strict=True):
        (tmp_path / "e0" / f"{second}.png").write_bytes(encoded(frame))
    check(store("images", tmp_path), [6])


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_samples_of_one_picture_each_are_the_frames_of_episodes(tmp_path, store, caplog, ending):
    members = {}
    for episode, length in enumerate((12, 5)):
        for t, frame in enumerate(frames(length, episode)):
            members[f"e{episode}/{t}.png"] = encoded(frame)
            members[f"e{episode}/{t}.json"] = f'{{"action": {taken(12)[t]}, "reward": {t == 3:d}}}'.encode()
    shard(tmp_path / f"a.{ending}", dict(list(members.items())[::-2] + list(members.items())[-2::-2]))
    found = store("webdataset", tmp_path / f"a.{ending}")
    assert sorted(found.lengths.tolist()) == [5, 12] and "the frames of 2 episodes" in caplog.text
    for index, length in enumerate(found.lengths.tolist()):
        window = found.read(index, 0, length)
        assert window["frames"][:, 1, 1, 0].tolist() == list(range(length))
        assert window["actions"][1:].tolist() == taken(length - 1).tolist()
        assert np.flatnonzero(window["rewards"]).tolist() == [4]


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_an_animation_is_not_taken_for_one_picture(tmp_path, store, capsys, ending):
    first, *others = (Image.fromarray(frame * 80) for frame in frames(3))
    first.save(tmp_path / f"0.{ending}", save_all=True, append_images=others)
    others[0].save(tmp_path / "1.png")
    store("images", tmp_path, status=2)
    assert "an animation of 3: make a video or a GIF of it" in capsys.readouterr().err
