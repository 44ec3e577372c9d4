"""Layouts that programs vary: the same episodes, written in every way, come out the same. See ``foreign.py``."""

import io
import json
import subprocess
import sys
import tarfile

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from filming import coded, write
from foreign import check, encoded, frames, taken
from test_sources_records import lerobot, npy, numbers, shard
from test_sources_vpt import line

from reverie.actions import ActionSpace
from reverie.data.sources import tables
from reverie.data.sources.pictures import is_picture, rgb

LENGTHS = (5, 1, 3)


def rows(**values):
    return json.dumps(values).encode()


# How a sample names its frame: t of episode e, the n-th of all; its key and its members.
MOMENTS = {
    "folders": lambda e, t, n, a: (f"ep{e}/{t}", {"json": rows(action=a, reward=t)}),
    "underscores": lambda e, t, n, a: (
        f"ep{e}_{t:04d}",
        {"action.npy": npy(np.int64(a)), "reward.txt": str(t).encode()},
    ),
    "numbers": lambda e, t, n, a: (f"{n:06d}", {"json": rows(episode=e, step=t, action=a, reward=t)}),
    "names": lambda e, t, n, a: (f"{n}", {"json": rows(episode_id=f"e{e}", frame_index=t, reward=t), "cls": b"%d" % a}),
    "cameras": lambda e, t, n, a: (f"e{e}/{t}", {"side.png": encoded(frames(1)[0]), "json": rows(action=a, reward=t)}),
}


@pytest.mark.parametrize("form", MOMENTS)
def test_frames_in_any_order_in_several_tars_are_episodes(tmp_path, store, form):
    made = []
    for episode, length in enumerate(LENGTHS):
        for t, frame in enumerate(frames(length, episode)):
            key, more = MOMENTS[form](episode, t, len(made), int(taken(length)[t]))
            camera = "front.png" if form == "cameras" else "png"
            made.append({f"{key}.{end}": data for end, data in {camera: encoded(frame), **more}.items()})
    order = np.random.default_rng(len(form)).permutation(len(made))
    for number, part in enumerate(np.array_split(order, 3)):
        shard(tmp_path / "tars" / f"{number}.tar", {name: data for one in part for name, data in made[one].items()})
    found = store("webdataset", tmp_path / "tars", *(("--camera", "front") if form == "cameras" else ()))
    check(found, list(LENGTHS), [taken(n - 1) for n in LENGTHS], [list(range(2, n)) for n in LENGTHS])


SAMPLES = {
    "keys.jsonl": b'{"keys": ["left"]}\n{"keys": ["left", "up"]}\n{"keys": []}\n{"keys": null}',
    "a.csv": b"key.left,key.up\n1,0\n1,1\n0,0\n0,0",
    "a.json": rows(steps=[{"action": [1, 0]}, {"action": [1, 1]}, {"action": [0, 0]}]),
    "b.json": rows(actions=[[True, False], [True, True], [False, False]]),
}


@pytest.mark.parametrize("member", SAMPLES)
def test_components_of_actions_in_tables_of_a_sample(tmp_path, store, member):
    shard(
        tmp_path / "a.tar", {"e.frames.npy": npy(frames(4)), f"e.{member}": SAMPLES[member], "e.x.pyd": b"\x80\x04N."}
    )
    found = store("webdataset", tmp_path / "a.tar")
    check(found, [4], [[[1, 0], [1, 1], [0, 0]]])
    assert found.spec.actions.kind == "binary" and "that end in .x.pyd are not read" in " ".join(found.notes)


def test_a_sample_may_lie_in_two_tars_and_each_tar_may_count_its_own(tmp_path, store):
    shard(tmp_path / "twins" / "a.tar", {"e.frames.npy": npy(frames(4))})
    shard(tmp_path / "twins" / "b.tar", {"e.actions.npy": npy(taken(3))})
    check(store("webdataset", tmp_path / "twins"), [4], [taken(3)])
    for number in range(2):
        own = {f"{t:04d}.png": encoded(frame) for t, frame in enumerate(frames(3, number))}
        shard(tmp_path / "own" / f"{number}.tar", own | {"0001.json": b"{broken"})
    check(store("webdataset", tmp_path / "own"), [3, 3])


@pytest.mark.parametrize("kind", ["u1", "u2", "i8", "f2", "f4", "f8"])
def test_grey_pictures_without_a_channel_may_hold_any_numbers(tmp_path, store, kind):
    shown = frames(4)[..., 0] * 50
    made = (shown / 255).astype(kind) if kind[0] == "f" else shown.astype(kind) * (257 if kind == "u2" else 1)
    assert (rgb(made) == shown[..., None]).all() and is_picture(made.shape, kind, named=True)
    assert not is_picture(made.shape, kind, named=False) and not is_picture((4, 9, 9), "f4", named=True)
    if kind == "f4":
        np.savez(tmp_path / "a.npz", frames=made, action=taken(3))
        assert (store("arrays", tmp_path / "a.npz").read(0, 0, 4)["frames"] == shown[..., None]).all()


def test_lerobots_rows_in_any_order_and_actions_of_another_name(tmp_path, store):
    root = lerobot(tmp_path / "arm", [7, 5], "v3.0")
    file, info = root / "data" / "chunk-000" / "file-000.parquet", root / "meta" / "info.json"
    table = pq.read_table(file).rename_columns({"action": "actions"})
    pq.write_table(table.take(np.random.default_rng(0).permutation(12)), file)
    info.write_text(info.read_text().replace('"action"', '"actions"'))
    found = store("lerobot", root)
    assert numbers(found) == [list(range(7)), list(range(7, 12))]
    assert np.allclose(found.read(0, 0, 7)["actions"][1:, 0], taken(6) / 20)


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobots_rows_without_times_count_at_its_rate(tmp_path, store, caplog, numbered, version):
    root = lerobot(tmp_path / "arm", [7, 5], version)
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file).drop_columns(["timestamp"])
        if numbered:  # then rows may come in any order
            index = table["episode_index"].to_numpy()
            places = np.concatenate([np.arange((index == one).sum()) for one in np.unique(index)])
            table = table.append_column("frame_index", [places]).take(np.random.default_rng(0).permutation(len(index)))
        pq.write_table(table, file)
    found = store("lerobot", root)
    assert numbers(found) == [list(range(7)), list(range(7, 12))]
    assert np.allclose(found.read(0, 0, 7)["actions"][1:, 0], taken(6) / 20)
    assert "no column 'timestamp': their rows count at" in caplog.text


def test_lines_about_files_have_no_prefix(tmp_path):
    (tmp_path / "in").mkdir()
    for t, frame in enumerate(frames(3)):
        (tmp_path / "in" / f"{t}.png").write_bytes(encoded(frame))
    code = (
        "import logging, sys; from reverie import cli; from reverie.data.sources.images import ImagesConfig as C\n"
        "look = C.look\n"
        "def noisy(self, inside):\n"
        "    logging.info('as other packages do, which gives the root logger a handler')\n"
        "    return look(self, inside)\n"
        "C.look = noisy\n"
        "sys.exit(cli.main(['data', 'images', 'out', '--path', 'in', '--val', '0']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = ended.stderr.splitlines()
    assert [line for line in lines if line.startswith("frames per second are not in the files")]
    assert not [line for line in lines if "WARNING" in line] and len(lines) == len(set(lines))


@pytest.mark.parametrize("name", ["terminal", "done"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "samples", "npz"])
def test_a_flag_that_only_the_last_steps_name_ends_nothing_before(tmp_path, store, form, name):
    flags = [{}] * 5 + [{name: False}, {name: True}]
    if form == "csv":
        text = [
            f"frame,action,{name}",
            *(f"{t},{t % 3},{'01'[flag[name]] if flag else ''}" for t, flag in enumerate(flags)),
        ]
    else:
        text = [json.dumps({"frame": t, "action": t % 3, **flag}) for t, flag in enumerate(flags)]
    (tmp_path / "in" / "ep").mkdir(parents=True)
    if form == "samples":
        moments = [{"json": line.encode(), "png": encoded(one)} for one, line in zip(frames(7), text, strict=True)]
        members = {f"ep/{t}.{end}": data for t, own in enumerate(moments) for end, data in own.items()}
        shard(tmp_path / "in" / "0.tar", members)
    elif form == "npz":
        sparse = np.array([float(flag.get(name, "nan")) for flag in flags])
        np.savez(tmp_path / "in" / "a.npz", frames=frames(7), actions=np.arange(7) % 3, **{name: sparse})
    else:
        (tmp_path / "in" / "ep" / f"actions.{form}").write_text("\n".join(text))
        for t, frame in enumerate(frames(7)):
            (tmp_path / "in" / "ep" / f"{t}.png").write_bytes(encoded(frame))
    source = {"samples": "webdataset", "npz": "arrays"}.get(form, "images")
    found = store(source, tmp_path / "in", "--alignment", "to")
    assert found.lengths.tolist() == [7]
    assert found.read(0, 0, 7)["ends"].tolist() == [False] * 6 + [True]
    assert found.read(0, 0, 7)["actions"].tolist() == [-1, 1, 2, 0, 1, 2, 0]


def test_a_sample_with_several_files_of_a_kind_says_where_names_end(tmp_path, store, caplog):
    def packed(first):
        buffer = io.BytesIO()
        np.savez(buffer, frames=frames(3, first), actions=taken(3))
        return buffer.getvalue()

    shard(tmp_path / "in" / "0.tar", {f"run.{number}.npz": packed(number) for number in range(2)})
    assert len(store("webdataset", tmp_path / "in").lengths) == 1
    assert "sample 'run' has 2 .npz files" in caplog.text and "its first dot" in caplog.text


def test_vpts_lines_without_a_slot_and_a_table_without_a_video(tmp_path, store, caplog):
    write(tmp_path / "a.mp4", [coded(t) for t in range(4)], 20)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("\n".join(line(hotbar=slot) for slot in (2, None, 2, 0)))
    space = store("vpt", tmp_path).spec.actions
    assert isinstance(space, ActionSpace) and "lines cannot be read" not in caplog.text
    assert "skipped b.jsonl: it has no .mp4 beside it" in caplog.text


def test_columns_that_no_name_makes_actions_are_named(tmp_path, store, caplog):
    (tmp_path / "e0").mkdir()
    for t, frame in enumerate(frames(3)):
        (tmp_path / "e0" / f"{t}.png").write_bytes(encoded(frame))
    (tmp_path / "e0" / "actions.csv").write_text("steer,gas\n1,2\n3,4")
    assert store("images", tmp_path).spec.actions.kind == "none"
    assert "which of steer, gas in e0/actions.csv are actions is not clear; --actions names them" in caplog.text
    check(store("images", tmp_path, "--actions", "steer,gas"), [3], [[[1, 2], [3, 4]]])
    assert tables.is_component("action0") and not tables.is_component("actions")


def test_a_folder_is_no_environment(tmp_path, store, capsys):
    store("gymnasium", tmp_path, status=2)
    assert "is not the id of an environment; 'reverie learn' finds out how files are read" in capsys.readouterr().err


ARRAYS = {
    "obs_next": {"obs": frames(4), "obs_next": frames(5)[1:], "act": taken(4), "done": [0, 0, 0, 1]},
    "bytes": {"image": np.array([encoded(frame) for frame in frames(5)]), "act": taken(4), "done": [0, 0, 0, 1]},
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_the_moment_after_and_encoded_pictures(tmp_path, store, name):
    np.savez(tmp_path / "a.npz", **ARRAYS[name], fps=30, instruction="push")
    found = store("arrays", tmp_path / "a.npz")
    check(found, [5], [taken(4)], ends=[[4]])
    assert found.tasks == ["push"] and found.spec.fps == 30


def test_episodes_with_names_and_files_of_the_moment_after(tmp_path, store, capsys):
    both = np.concatenate([frames(3), frames(2, 1)])
    np.savez(tmp_path / "a.npz", obs=both, act=[*taken(3), *taken(2)], episode_id=["a", "a", "a", "b", "b"])
    check(store("arrays", tmp_path / "a.npz"), [3, 2], [taken(2), taken(1)])
    (tmp_path / "files").mkdir()
    for key, array in {"frames": frames(4), "next_frames": frames(5)[1:], "actions": taken(4)}.items():
        np.save(tmp_path / "files" / f"e0_{key}.npy", array)
    check(store("arrays", tmp_path / "files"), [5], [taken(4)])
    np.savez(tmp_path / "b.npz", obs=np.zeros((3, 16, 24, 6), np.uint8))
    store("arrays", tmp_path / "b.npz", status=2)
    assert "no pictures of 1, 3 or 4 channels (it has obs (3, 16, 24, 6))" in capsys.readouterr().err


def test_of_folders_named_like_cameras_the_first_is_read_unless_more_are_wanted(tmp_path, store, caplog):
    for episode in range(2):
        for camera in ("wrist_cam", "front_cam", "depth"):
            (tmp_path / f"e{episode}" / camera).mkdir(parents=True)
            for t, frame in enumerate(frames(3, episode if camera == "front_cam" else 9)):
                (tmp_path / f"e{episode}" / camera / f"{t}.png").write_bytes(encoded(frame))
        (tmp_path / f"e{episode}" / "actions.csv").write_text("action\n10\n11")
    check(store("images", tmp_path), [3, 3], [taken(2)] * 2)
    assert "of 3 cameras, front_cam is read; --camera takes another" in caplog.text
    assert store("images", tmp_path, "--camera", "all").spec.frame == (16, 72, 3)


TABLES = {
    "numbers": ("actions.csv", "episode,frame,action,reward", "{e},{t},{a},{t}"),
    "names": ("actions.csv", "episode,step,action,reward", "ep_{e},{t},{a},{t}"),
    "lines": ("actions.jsonl", "", '{{"episode_index": {e}, "action": {a}, "reward": {t}}}'),
}


@pytest.mark.parametrize("name", TABLES)
def test_one_table_of_several_folders_tells_them_apart(tmp_path, store, caplog, name):
    file, head, row = TABLES[name]
    for episode in range(2):
        (tmp_path / f"ep_{episode}").mkdir()
        for t, frame in enumerate(frames(4, episode)):
            (tmp_path / f"ep_{episode}" / f"{t}.png").write_bytes(encoded(frame))
    of = {"numbers": (1, 0), "names": (0, 1), "lines": (1, 0)}[name]
    lines = [row.format(e=e, t=t, a=taken(4)[t] - e) for e in of for t in range(4)]
    (tmp_path / file).write_text("\n".join([head, *lines] if head else lines))
    check(store("images", tmp_path), [4, 4], [taken(3), taken(3) - 1], [[2, 3]] * 2)
    if name == "numbers":
        (tmp_path / file).write_text("frame,action\n0,1\n0,2\n1,1")
        assert store("images", tmp_path).spec.actions.kind == "none" and "names some frames twice" in caplog.text


@pytest.mark.parametrize("none", [-1, np.nan])
def test_a_first_action_that_stands_for_none_says_that_actions_led_to_frames(tmp_path, store, caplog, none):
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", frames=frames(4, number), action=np.array([none, *taken(3)]))
    check(store("arrays", tmp_path), [4, 4], [taken(3)] * 2)
    assert "stands for none" in caplog.text
    np.savez(tmp_path / "empty.npz", frames=frames(0), action=np.zeros(0, int))
    assert store("arrays", tmp_path, "--alignment", "at").read(0, 0, 4)["actions"][1] < 1
    check(store("arrays", tmp_path), [4, 4], [taken(3)] * 2)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_packed_tars_and_what_no_file_is_for(tmp_path, store, capsys, packing):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / f"a.tar.{packing}"
    with tarfile.open(file, f"w:{packing}") as archive:
        for name, data in {"a.frames.npy": npy(frames(4)), "a.actions.npy": npy(taken(3))}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    check(store("webdataset", tmp_path / "in"), [4], [taken(3)])
    store("vpt", tmp_path / "in", status=2)
    assert f"no file is one that 'vpt' reads; 'reverie learn {tmp_path / 'in'}' finds" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["{}/{}", "{}_{}", "ep{1}/{0}", "episode_{1}_{0}"])
def test_arrays_with_numbers_in_their_names_are_episodes(tmp_path, store, pattern):
    made = {
        pattern.format(name, episode): array
        for episode, length in enumerate((5, 4))
        for name, array in {"frames": frames(length, episode), "actions": taken(length - 1)}.items()
    }
    np.savez(tmp_path / "a.npz", **made)
    check(store("arrays", tmp_path / "a.npz"), [5, 4], [taken(4), taken(3)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in made.items():
            file[name] = array
    check(store("hdf5", tmp_path / "a.h5"), [5, 4], [taken(4), taken(3)])
    if pattern == "{}/{}":
        for name, array in made.items():
            (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "files" / f"{name}.npy", array)
        check(store("arrays", tmp_path / "files"), [5, 4], [taken(4), taken(3)])
        np.savez(tmp_path / "b.npz", cam_0=frames(5), cam_1=frames(5, 1), action_0=taken(4), action_1=taken(4))
        assert store("arrays", tmp_path / "b.npz").lengths.tolist() == [5]  # two cameras of one episode
