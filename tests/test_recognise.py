"""What is in a folder is said: data in formats of others, action files that are not read, links, hidden files."""

import logging
import re

import numpy as np
import pytest
from filming import coded, config, write

from reverie.actions import UNLABELLED
from reverie.cli import main
from reverie.data import counted, writing
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.videos import VideosConfig
from reverie.data.splits import divided
from reverie.data.store import open_dataset
from reverie.errors import ReverieError
from reverie.pipeline import recipes_for
from reverie.presets.fitting import fitting


def film(path, frames=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, [coded(i) for i in range(frames)], 10)


LAYOUTS = {
    "LeRobot": ["meta/info.json", "data/chunk-000/episode_000.parquet", "videos/chunk-000/top/episode_000.mp4"],
    "LeRobot in a folder": ["x/meta/info.json", "x/data/a.parquet", "x/videos/a.mp4"],
    "Minari": ["proof/data/main_data.hdf5", "proof/data/metadata.json"],
    "RLDS": ["1.0.0/features.json", "1.0.0/dataset_info.json", "1.0.0/p-train.tfrecord-00000-of-00001"],
    "HDF5": ["low_and_image.hdf5"],
    "webdataset": ["play-000000.tar"],
    "ArrayRecord": ["train/data_0000.array_record"],
    "ViZDoom": ["episode_0.lmp"],
    "npy": ["frames.npy"],
    "VPT": ["a.mp4"],
    "Zarr in a file": ["replay.zarr.zip"],
}
FOLDERS = {  # of which one file alone does not tell what it belongs to
    "VPT in folders": ["videos/b.mp4"],
    "LeRobot without meta": ["data/file-000.parquet", "videos/observation.images.top/chunk-000/file-000.mp4"],
    "HDF5 of ALOHA": ["episode_0.hdf5", "episode_0_video.mp4"],
    "HDF5 of DROID": ["a/trajectory.h5", "a/recordings/MP4/1.mp4", "a/recordings/MP4/2.mp4"],
    "HDF5 and a preview": ["image_v141.hdf5", "playback.mp4"],
    "npz": ["episode_0.npz", "episode_1.npz"],
    "npz of MineRL": ["x/rendered.npz", "x/recording.mp4", "y/rendered.npz", "y/recording.mp4"],
    "Zarr": ["pusht.zarr/data/img/0.0.0.0"],
    "Zarr, version 3": ["zarr.json", "img/c/0/0"],
    "MCAP": ["a.mcap", "a.mkv"],
    "Arrow": ["0/data-00000-of-00001.arrow"],
}


UNREAD = ("ViZDoom", "Zarr in a file", "Zarr", "Zarr, version 3", "MCAP", "Arrow")


@pytest.mark.parametrize("name", [*LAYOUTS, *FOLDERS])
def test_a_known_format_is_refused_in_one_line_that_names_it(tmp_path, name):
    layout = [tmp_path / path for path in (LAYOUTS | FOLDERS)[name]]
    for path in layout:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}") if path.suffix not in (".mp4", ".mkv") else film(path)
    row = '{"mouse": {"dx": 1.0}, "keyboard": {"keys": []}, "tick": 0}\n'
    (tmp_path / "a.jsonl").write_text(row if name.startswith("VPT") else "1\n")
    places = [tmp_path, *(layout[-1:] if name in LAYOUTS else ())]
    for place in places:
        with pytest.raises(ReverieError, match=name.partition(" ")[0]) as error:
            VideosConfig(path=str(place)).spec()
        assert "\n" not in str(error.value)
        assert ("write_store" if name in UNREAD else "reverie data ") in str(error.value)


def test_text_is_no_film_of_a_terminal(tmp_path):
    (tmp_path / "notes.txt").write_text("line\n" * 400)
    with pytest.raises(ReverieError, match="notes.txt: it is text"):
        VideosConfig(path=str(tmp_path / "notes.txt")).spec()


def test_videos_beside_other_things_are_videos(tmp_path):
    film(tmp_path / "a.mp4")
    for name in ("old.tar", "x.npz", "meta/info.json", "features.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert len(list(config(tmp_path).episodes())) == 1


def test_links_are_followed_once_and_hidden_files_left_alone(tmp_path):
    film(tmp_path / "elsewhere" / "a.mp4")
    film(tmp_path / "clips" / ".trash" / "b.mp4")
    film(tmp_path / "clips" / ".c.mp4")
    (tmp_path / "clips" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "clips", target_is_directory=True)
    assert [episode.source for episode in config(tmp_path / "clips").episodes()] == ["link/a.mp4"]


def test_action_files_that_are_not_read_are_named_and_those_that_are_counted(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for name in ("a", "b", "c", "d"):
        film(tmp_path / f"{name}.mp4")
    (tmp_path / "a.csv").write_text("\n".join(["1"] * 20))
    odd = [
        "b.CSV",
        "b_actions.npy",
        "c.mp4.csv",
        "c.json",
        "d.txt",
        "actions.parquet",
        "e.jsonl",
        "meta/d.json",
        "policy.pkl",
    ]
    (tmp_path / "meta").mkdir()
    for name in [*odd, "readme.txt", "settings.json"]:
        (tmp_path / name).write_text("1")
    episodes = list(config(tmp_path).episodes())
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(line.partition(" is not read")[0] for line in lines if " is not read" in line) == sorted(odd)
    assert lines[-1] == "1 of 4 videos had actions"
    assert [(episode.actions[1:] != UNLABELLED).all() for episode in episodes] == [True, False, False, False]


def test_latent_actions_where_few_recordings_have_some(tmp_path, caplog):
    for name in "abcde":
        film(tmp_path / f"{name}.mp4")
    stores = {}
    for labelled in ("", "a", "abcde"):
        for name in labelled:
            (tmp_path / f"{name}.csv").write_text("\n".join(["1", "0"] * 10))
        source = config(tmp_path)
        stores[labelled] = ArrayDataset.from_episodes(source.spec(), source.episodes())
        path = stores[labelled].save(tmp_path / f"store{len(labelled)}.npz")
        for made in (source, str(path)):
            recipe = fitting(source.spec(), made, 10)
            assert (recipe.lam is not None) == (labelled != "abcde"), (labelled, made)
    assert np.mean(stores["a"].arrays["actions"] == UNLABELLED) > 0.5
    caplog.clear()
    recipes_for(str(tmp_path / "store1.npz"), tmp_path / "world", 10)
    assert caplog.text.count("less than 50 % of the recordings have actions") == 1
    caplog.clear()
    recipes_for(str(tmp_path / "store5.npz"), tmp_path / "world", 10)
    assert "less than" not in caplog.text


def test_any_program_can_write_a_dataset(tmp_path):
    frames, path = np.zeros((7, 8, 8, 3), np.uint8), tmp_path / "mine.npz"
    np.savez(path, frames=frames, lengths=[4, 3], actions=[-1, 0, 2, 1, -1, 2, 2], fps=8)
    dataset = open_dataset(path, "train")
    assert dataset.spec.fps == 8 and dataset.spec.actions.size == 3 and dataset.lengths.tolist() == [4]
    assert dataset.read(0, 0, 4)["actions"].tolist() == [-1, 0, 2, 1]
    np.savez(path, frames=frames, lengths=[4, 3])
    assert open_dataset(path, "train").read(0, 0, 4)["actions"].tolist() == [-1, -2, -2, -2]
    right = {"frames": frames, "lengths": [4, 3], "actions": [-1, 0, 2, 1, -1, 2, 2]}
    for wrong, word in [
        ({"lengths": [4, 4]}, "needs one whole number for each"),
        ({"actions": [0, 0, 2, 1, -1, 2, 2]}, "must begin with action START"),
        ({"actions": [0.5] * 7}, "needs one whole number for each"),
        ({"actions": 3}, "needs one whole number for each"),
        ({"actions": np.zeros((7, 2), int)}, "needs one whole number for each"),
        ({"actions": [-1, 2**32 + 1, 2, 1, -1, 2, 2]}, "they must be -2 to"),
        ({"actions": np.array([2**64 - 1] + [1] * 6, np.uint64)}, "they must be -2 to"),
        ({"frames": frames.transpose(0, 3, 1, 2)}, "colours last"),
        ({"frames": np.zeros((7, 8, 8, 4), np.uint8)}, "colours last"),
        ({"frames": frames[:0], "lengths": [], "actions": []}, "it needs"),
        ({"rewards": ["a"] * 7}, "one finite number"),
        ({"ends": "no"}, "one finite number"),
        ({"rewards": [np.nan] * 7}, "one finite number"),
        *(({"fps": fps}, "needs one number above 0") for fps in ([15, 15], np.nan, 0, "15 Hz")),
        ({"lengths": None}, "is not a dataset: it needs 'frames'"),
        ({"frames": None}, "and has lengths, actions"),
    ]:
        np.savez(path, **{name: array for name, array in (right | wrong).items() if array is not None})
        with pytest.raises(ReverieError, match=word):
            open_dataset(path, "train")


def test_how_far_writing_has_come_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(counted, "LOGGED", -1.0)
    film(tmp_path / "clips" / "a.mp4")
    film(tmp_path / "clips" / "b.mp4")
    writing.write_source(tmp_path / "data", config(tmp_path / "clips"))
    *said, codec = [re.sub(r"\d:\d\d", "0:00", line) for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "━━━━━━╌╌╌╌╌╌  50%, 0:00 left, 1 episodes, 20 frames, at a.mp4",
        "━━━━━━━━━━━━ 100%, 0:00 left, 2 episodes, 40 frames, at b.mp4",
    ]
    assert codec.startswith("codec: zstd (raw 1.0 times smaller, ")


@pytest.mark.parametrize("known", [1, 2, 5, 11])
def test_labels_are_in_training_always_and_held_out_where_there_are_two(known):
    names = [f"film {i}" for i in range(12)]
    for order in range(6):
        labels = [(i * 5 + order) % 12 < known for i in range(12)]
        pieces = divided(names, [40] * 12, 0.1, labels)
        share = {s: [labels[p.episode] for p in pieces if p.split == s] for s in ("train", "val")}
        assert any(share["train"]) and (any(share["val"]) or known < 2) and len(share["val"]) <= 3
    assert {piece.split for piece in divided(["a", "b"], [40, 40], 0.1, [True, False])} == {"train", "val"}


def test_show_says_how_many_have_actions_and_needs_no_val_split(tmp_path, capsys):
    for name in "abc":
        film(tmp_path / "clips" / f"{name}.mp4")
    (tmp_path / "clips" / "b.csv").write_text("\n".join(["1"] * 20))
    writing.write_source(tmp_path / "data", config(tmp_path / "clips"), val=0)
    assert main(["data", "show", str(tmp_path / "data")]) == 0
    assert "train: 3 episodes, 60 frames, 33% of the episodes with actions" in capsys.readouterr().out
