"""Files of other programs as a store: frames, order, lengths, the step an action belongs to, what is said of the rest.

See ``foreign.py`` for what frames and actions say of themselves.
"""

import json

import h5py
import numpy as np
import pyarrow as pa
import pytest
from foreign import check, encoded, frames, taken
from PIL import Image

from reverie import config
from reverie.data.sources import source_at
from reverie.data.sources.pictures import decoded
from reverie.errors import ReverieError
from reverie.recorded import source_of


def pictures(folder, images, name="{}.png"):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(number))


# -- folders of pictures ---------------------------------------------------------------------------------------------


def test_folders_of_pictures_in_natural_order_with_actions_beside_them(tmp_path, store):
    root = tmp_path / "game"
    pictures(root / "ep2", frames(12))
    pictures(root / "ep10", frames(11, 1), "shot-{}.png")
    rows = [f"{t},{a},{int(t == 3)},{int(t == 10)}" for t, a in enumerate(taken(11))]
    (root / "ep2" / "actions.csv").write_text("frame,action,reward,terminal\n" + "\n".join(rows))
    lines = [json.dumps({"action": int(a), "reward": 0.0}) for a in taken(11)]
    (root / "ep10.jsonl").write_text("\n".join(lines))
    found = store("images", root)
    check(found, [12, 11], [taken(11), taken(10)], [[4], []], [[11], []])
    assert found.spec.actions.kind == "discrete" and found.sources == ["ep2", "ep10"]
    check(store("images", root, "--alignment", "to"), [12, 11], [[*taken(11)[1:], -2], taken(11)[1:]])
    assert type(source_at(root)).__name__ == "ImagesConfig"


def test_keys_held_and_vectors_are_columns_with_names(tmp_path, store):
    for name, header, row, kind in [
        ("keys", "key.left,key.fire", "{},1", "binary"),
        ("vector", "action.x,action.y", "{}.5,-0.25", "continuous"),
    ]:
        pictures(tmp_path / name, frames(6))
        rows = [row.format(t % 2) for t in range(5)]
        (tmp_path / name / "steps.csv").write_text("\n".join([header, *rows]))
        found = store("images", tmp_path / name)
        assert found.spec.actions.kind == kind
        scale = 1 if kind == "binary" else 0.5
        check(found, [6], [[[t % 2 + (0 if kind == "binary" else 0.5), 1 if scale == 1 else -0.25] for t in range(5)]])
    assert found.spec.actions.names == ("x -", "x +", "y -", "y +")
    pictures(tmp_path / "held", frames(4))
    held = [["w"], ["w", "space"], [], ["space"]]
    (tmp_path / "held" / "a.jsonl").write_text("\n".join(json.dumps({"keys": keys}) for keys in held))
    found = store("images", tmp_path / "held")
    assert found.spec.actions.names == ("space", "w")
    check(found, [4], [[[0, 1], [1, 1], [0, 0]]])


def test_a_damaged_picture_ends_an_episode_and_the_next_begins_after_it(tmp_path, store, caplog):
    pictures(tmp_path / "ep", frames(9))
    (tmp_path / "ep" / "4.png").write_bytes((tmp_path / "ep" / "4.png").read_bytes()[:60])
    (tmp_path / "ep" / "actions.csv").write_text("action\n" + "\n".join(map(str, taken(9))))
    found = store("images", tmp_path / "ep")
    check(found, [4, 4], [taken(9)[:3], taken(9)[5:8]], shown=[[0, 1, 2, 3], [5, 6, 7, 8]])
    assert "1 of 9 pictures damaged" in caplog.text and any("1 of 9 pictures" in note for note in found.notes)
    (tmp_path / "ep" / "actions.csv").write_text("action\n1\n2\n")
    assert store("images", tmp_path / "ep").spec.actions.kind == "none"
    assert "has 2 rows for 9 frames" in caplog.text


def test_size_and_pictures_of_every_kind(tmp_path, store):
    pictures(tmp_path / "a", frames(3))
    found = store("images", tmp_path / "a", "--size", "8", "12", "--fps", "20")
    assert found.spec.frame == (8, 12, 3) and found.spec.fps == 20
    folder = tmp_path / "b"
    folder.mkdir()
    colour = frames(4)
    Image.fromarray(colour[0]).convert("RGBA").save(folder / "0.png")
    Image.fromarray(colour[1, ..., 0]).save(folder / "1.png")
    Image.fromarray(colour[2]).quantize().save(folder / "2.png")
    Image.fromarray(colour[3].repeat(2, 0).repeat(2, 1)).save(folder / "3.png")
    window = store("images", folder).read(0, 0, 4)["frames"]
    assert window[:, 1, 1, 0].tolist() == [0, 1, 2, 3] and window[1, 0, 0].tolist() == [1, 1, 1]


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    data = (tmp_path / "bomb.png").read_bytes()
    assert len(data) < 20_000
    with pytest.raises(ReverieError, match="9000 x 9000: at most"):
        decoded(data)


# -- arrays ----------------------------------------------------------------------------------------------------------


def test_equal_lengths_are_at_unless_said_or_marked(tmp_path, store, caplog):
    root = tmp_path / "plain"
    root.mkdir()
    np.savez(root / "ep1.npz", frames=frames(6), actions=taken(6), rewards=np.eye(6)[2], done=np.eye(6)[5])
    check(store("arrays", root), [6], [taken(5)], [[3]], [[]])
    assert "--alignment to" in caplog.text and "1 recordings led to a frame that is not in the files" in caplog.text
    check(store("arrays", root, "--alignment", "to"), [6], [taken(6)[1:]], [[2]], [[5]])
    led = np.concatenate([[0], taken(5)])
    crafter = {
        "image": frames(6),
        "action": led,
        "reward": np.eye(6)[5],
        "discount": [0, 1, 1, 1, 1, 0],
        "done": [0] * 6,
    }
    np.savez(tmp_path / "20260101T000000-ach0-len5.npz", **crafter)
    check(store("arrays", tmp_path / "20260101T000000-ach0-len5.npz"), [6], [taken(5)], [[5]], [[5]])


def test_one_file_of_many_episodes_is_cut_by_its_flags_or_lengths(tmp_path, store):
    whole = np.concatenate([frames(4), frames(5, 1)])
    acts = np.concatenate([taken(4), taken(5)])
    over = np.zeros(9, bool)
    over[[3, 8]] = True
    want = [taken(3), taken(4)]
    first = np.isin(np.arange(9), [0, 4])
    for name, more in {
        "done": {"dones": over},
        "timeouts": {"terminals": np.zeros(9, bool), "timeouts": over},
        "first": {"is_first": first},
        "lengths": {"episode_lengths": np.array([4, 5])},
        "ends": {"episode_ends": np.array([4, 9])},
    }.items():
        np.savez(tmp_path / f"{name}.npz", observations=whole.transpose(0, 3, 1, 2), actions=acts, **more)
        check(store("arrays", tmp_path / f"{name}.npz"), [4, 5], want)
    follows = np.concatenate([frames(5)[1:], frames(6, 1)[1:]])
    flat = {"observations": whole, "next_observations": follows, "actions": acts, "rewards": over, "terminals": over}
    np.savez(tmp_path / "next.npz", **flat)
    check(store("arrays", tmp_path / "next.npz"), [5, 6], [taken(4), taken(5)], [[4], [5]], [[4], [5]])
    stacked = np.stack([frames(5), frames(5, 1)])
    np.savez(tmp_path / "stacked.npz", frames=stacked, actions=np.stack([taken(5)] * 2), lengths_of=[5, 5])
    check(store("arrays", tmp_path / "stacked.npz"), [5, 5], [taken(4)] * 2)


def test_npy_files_belong_together_by_name(tmp_path, store):
    root = tmp_path / "npy"
    root.mkdir()
    for episode in range(2):
        np.save(root / f"ep{episode}_frames.npy", frames(5, episode))
        np.save(root / f"ep{episode}_actions.npy", taken(5))
    check(store("arrays", root), [5, 5], [taken(4)] * 2)


@pytest.mark.parametrize(
    "rows, kind, same",
    [
        (np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1]], "discrete", False),
        (np.array([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]]), "binary", True),
        (np.array([[0, 2], [1, 1], [3, 0], [1, 0], [0, 1]]), "multi", True),
        (np.array([[0.5, -3], [1, 1], [3, 0], [1, 0], [0, 1]]), "continuous", True),
        (np.array([[0.5], [0.1], [0.2], [1], [0]], np.float64), "continuous", True),
        (np.array([True, False, True, True, False]), "discrete", True),
    ],
)
def test_every_kind_of_action(tmp_path, store, rows, kind, same):
    root = tmp_path / "files"
    root.mkdir()
    np.savez(root / "a.npz", video=frames(6), act=rows)
    np.savez(root / "b.npz", video=frames(1, 1), act=rows[:0])  # no step in it
    found = store("arrays", root)
    assert found.spec.actions.kind == kind
    rows = rows if same else rows.argmax(1)
    check(found, [6, 1], [rows, rows[:0]])


def test_odd_numbers_cost_actions_and_not_frames(tmp_path, store, caplog):
    rows = np.array([[0.5, 0.5], [np.nan, 1], [1e30, 0], [0.25, 0], [0, 1]])
    np.savez(tmp_path / "a.npz", image=frames(6), action=rows, info=np.array([{"a": 1}], object))
    found = store("arrays", tmp_path / "a.npz")
    labels = found.spec.actions.is_unlabelled(found.read(0, 0, 6)["actions"])
    assert labels.tolist() == [False, False, True, True, False, False]
    assert "1 actions are not finite" in caplog.text and "info is not numbers: not read" in caplog.text


def test_names_can_be_said_and_wrong_ones_are_answered(tmp_path, store, capsys):
    arrays = {"cam_left": frames(5), "cam_right": frames(5, 1), "u": taken(4), "action": taken(4) * 0}
    np.savez(tmp_path / "a.npz", **arrays)
    check(store("arrays", tmp_path / "a.npz", "--camera", "cam_right", "--actions", "u"), [5], [taken(4)])
    both = store("arrays", tmp_path / "a.npz", "--camera", "left,right")
    assert both.spec.frame == (16, 48, 3)
    store("arrays", tmp_path / "a.npz", "--camera", "cam_middle", status=2)
    assert "there is no camera 'cam_middle'. Did you mean 'cam_" in capsys.readouterr().err


# -- HDF5 and Minari -------------------------------------------------------------------------------------------------


def test_hdf5_of_every_layout(tmp_path, store, caplog):
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        for number in (2, 10):
            group = file.create_group(f"data/demo_{number}")
            group["actions"], group["dones"] = taken(4) / 20, np.array([0, 0, 1, 1])
            group["obs/agentview_rgb"], group["rewards"] = frames(4, number), np.eye(4)[3]
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 10}})
        file["mask/train"] = np.array([b"demo_2"])
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    found = store("hdf5", tmp_path / "demo.hdf5")
    check(found, [4, 4], [taken(3)[:, None] / 20] * 2, [[], []], [[3], [3]])
    assert found.spec.fps == 10 and "2 recordings led to a frame" in caplog.text
    assert [found.read(i, 0, 1)["frames"][0, 1, 1, 1] for i in (0, 1)] == [2, 10]
    with h5py.File(tmp_path / "aloha.h5", "w") as file:
        data = [np.frombuffer(encoded(frame), np.uint8) for frame in frames(5)]
        longest = max(map(len, data))
        file["observations/images/top"] = np.stack([np.pad(row, (0, longest - len(row))) for row in data])
        file["action"], file["observations/qpos"] = taken(5) / 20, np.zeros((5, 14))
    check(store("hdf5", tmp_path / "aloha.h5"), [5], [taken(4)[:, None] / 20])


def test_what_an_hdf5_file_says_of_other_files_is_not_read(tmp_path, store, caplog):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["frames"], file["actions"] = frames(5), taken(5)
    bad = tmp_path / "bad"
    bad.mkdir()
    with h5py.File(bad / "a.h5", "w") as file:
        file["actions"] = taken(5)
        layout = h5py.VirtualLayout((5, 16, 24, 3), np.uint8)
        layout[:] = h5py.VirtualSource(str(secret), "frames", (5, 16, 24, 3))
        file.create_virtual_dataset("frames", layout)
        file["linked"] = h5py.ExternalLink(str(secret), "/frames")
    with h5py.File(bad / "huge.h5", "w") as file:
        file["actions"] = taken(5)
        file.create_dataset("frames", (5, 40000, 40000, 3), np.uint8, chunks=(1, 64, 64, 3))
    with h5py.File(bad / "good.h5", "w") as file:
        file["frames"], file["actions"] = frames(5), taken(5)
        file.create_dataset("texts", (5,), "S9", external=[("gone", 0, 45)])  # to read it would be an error
    check(store("hdf5", bad), [5], [taken(4)])
    assert "skipped a.h5: it holds no pictures" in caplog.text and "more than the" in caplog.text


def space(kind, **more):
    return json.dumps({"type": kind, **more})


@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
def test_minari_in_every_storage(tmp_path, store, form):
    data = tmp_path / "game" / "pixels-v0" / "data"
    data.mkdir(parents=True)
    box = {"type": "Box", "dtype": "uint8", "shape": [16, 24, 3], "low": 0, "high": 255}
    observed = space("Dict", subspaces={"image": box, "where": space("Box", shape=[2])})
    about = {"data_format": form, "jpeg_encoding": False, "observation_space": observed, "total_episodes": 2}
    about["action_space"] = '{"type": "Discrete", "dtype": "int64", "start": 10, "n": 9}'
    (data / "metadata.json").write_text(json.dumps(about))
    if form == "hdf5":
        with h5py.File(data / "main_data.hdf5", "w") as file:
            for number in range(2):
                group = file.create_group(f"episode_{number}")
                group["observations/image"], group["actions"] = frames(6, number), taken(5)
                group["observations/where"], group["rewards"] = np.zeros((6, 2)), np.eye(5)[4]
                group["terminations"], group["truncations"] = np.eye(5, dtype=bool)[4], np.zeros(5, bool)
    else:
        for number in range(2):
            flat = pa.array(frames(6, number).reshape(-1))
            image = pa.FixedSizeListArray.from_arrays(flat, 16 * 24 * 3)
            where = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(12)), 2)
            padded = {
                "actions": [*taken(5), 0],
                "rewards": [*np.eye(5)[4], 0],
                "terminations": [False] * 4 + [True, False],
            }
            columns = {"observations": pa.StructArray.from_arrays([image, where], ["image", "where"]), **padded}
            folder = data / str(number)
            folder.mkdir()
            batch = pa.RecordBatch.from_pydict({name: pa.array(value) for name, value in columns.items()})
            if form == "parquet":
                import pyarrow.parquet as pq

                pq.write_table(pa.Table.from_batches([batch]), folder / "part-0.parquet")
            else:
                with (
                    pa.OSFile(str(folder / "part-0.arrow"), "wb") as sink,
                    pa.ipc.new_file(sink, batch.schema) as writer,
                ):
                    writer.write_batch(batch)
    found = store("minari", tmp_path / "game")
    assert found.spec.actions.size == 9
    check(found, [6, 6], [taken(5) - 10] * 2, [[5], [5]], [[5], [5]])


# -- DreamerV3 -------------------------------------------------------------------------------------------------------


def chunks(folder, rows, sizes, worker="A", time=0):
    """Write rows as chunks of a worker, each naming the one after it."""
    folder.mkdir(exist_ok=True)
    at = 0
    for number, size in enumerate(sizes):
        part = {key: value[at : at + size] for key, value in rows.items()}
        name = f"20260101T00000{number + time}F000000-{worker}{number}-{worker}{number + 1}-{size}.npz"
        np.savez_compressed(folder / name, **part)
        at += size


def replay(lengths):
    rows = {key: [] for key in ("image", "action", "reward", "is_first", "is_last", "is_terminal")}
    for episode, length in enumerate(lengths):
        last = np.eye(length, dtype=bool)[-1]
        rows["image"].append(frames(length, episode))
        rows["action"].append(np.where(last, 0, taken(length)))
        rows["reward"].append(last.astype(np.float32))
        rows["is_first"].append(last[::-1])
        rows["is_last"].append(last)
        rows["is_terminal"].append(last & (episode % 2 == 0))
    return {key: np.concatenate(value) for key, value in rows.items()}


def test_a_replay_is_put_together_from_chunks_of_several_workers(tmp_path, store, caplog):
    root = tmp_path / "replay"
    chunks(root, replay([9, 8]), [7, 7, 3], "A")
    chunks(root, replay([6]), [4, 2], "B", time=1)
    check(store("dreamerv3", root), [9, 8, 6], [taken(8), taken(7), taken(5)], [[8], [7], [5]], [[8], [], [5]])
    (root / "20260101T000001F000000-A1-A2-7.npz").write_bytes(b"PK no")
    found = store("dreamerv3", root)
    assert sorted(found.lengths.tolist()) == [3, 6, 7] and "skipped 20260101T000001F000000-A1-A2-7.npz" in caplog.text
    assert "begins in the middle of an episode" in caplog.text


# -- the door --------------------------------------------------------------------------------------------------------


def test_one_door_knows_each_and_refuses_what_could_be_two_things(tmp_path):
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "x.npz", image=frames(3))
    with h5py.File(tmp_path / "a" / "x.h5", "w") as file:
        file["frames"], file["actions"] = frames(5), taken(5)
    assert type(source_at(tmp_path / "a" / "x.npz")).__name__ == "ArraysConfig"
    assert type(source_at(tmp_path / "a" / "x.h5")).__name__ == "HDF5Config"
    (tmp_path / "b").mkdir()
    chunks(tmp_path / "b", replay([5]), [5])
    assert type(source_at(tmp_path / "b")).__name__ == "DreamerV3Config"
    np.savez(tmp_path / "b" / "x.npz", image=frames(3))
    np.savez(tmp_path / "b" / "y.npz", image=frames(3))
    with pytest.raises(ReverieError, match="could be read in several ways.*reverie data arrays OUT.*dreamerv3"):
        source_at(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.md").write_text("nothing")
    with pytest.raises(ReverieError, match="holds no videos .found: 1 .md"):
        source_at(tmp_path / "c")


def test_learning_takes_every_format_and_brings_large_frames_to_a_small_size(tmp_path, capsys):
    np.savez(tmp_path / "large.npz", image=frames(9, size=(80, 120)), action=taken(8))
    np.savez(tmp_path / "small.npz", image=frames(9, size=(16, 24)), action=taken(8))
    assert source_of(str(tmp_path / "large.npz"), tmp_path / "run").spec().frame == (64, 64, 3)
    assert "frames of 80 x 120 are brought to 64 x 64" in capsys.readouterr().err
    assert source_of(str(tmp_path / "small.npz"), tmp_path / "run").spec().frame == (16, 24, 3)
    made = {"frames": frames(9), "lengths": [9], "actions": np.concatenate([[-1], taken(8)])}
    np.savez(tmp_path / "ours.npz", **made)
    assert source_of(str(tmp_path / "ours.npz"), tmp_path / "run") is None  # a dataset already


FOREIGN = """
import dataclasses
from reverie.data.sources.arrays import ArraysConfig

@dataclasses.dataclass(frozen=True, kw_only=True)
class TapeConfig(ArraysConfig):
    "Tapes of another package."

    @classmethod
    def of(cls, path, inside):
        return cls(path=str(path)) if path.suffix == ".tape" else None

    def look(self, inside):
        found = super().look([])
        import numpy as np
        from reverie.data.sources.recordings import Recording
        found.recordings.append(Recording("tape", 3, lambda: np.zeros((3, 16, 16, 3), np.uint8)))
        return found
"""


def test_a_source_of_another_package_is_found_and_its_worlds_load(tmp_path, monkeypatch, store, capsys):
    site = tmp_path / "site"
    (site / "tapes-1.0.dist-info").mkdir(parents=True)
    (site / "tapes.py").write_text(FOREIGN)
    (site / "tapes-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tapes\nVersion: 1.0\n")
    points = "[reverie.sources]\ntape = tapes:TapeConfig\nbroken = tapes.nowhere:X\n"
    (site / "tapes-1.0.dist-info" / "entry_points.txt").write_text(points)
    with pytest.raises(ReverieError, match="is not a config"):
        config.from_json({"class": "tapes:TapeConfig", "path": "x"})
    monkeypatch.syspath_prepend(str(site))
    (tmp_path / "a.tape").write_text("x")
    made = source_at(tmp_path / "a.tape")
    assert config.from_json(config.to_json(made)) == made
    assert store("tape", tmp_path / "a.tape").lengths.tolist() == [3]
