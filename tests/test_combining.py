"""Stores out of stores: merge, append, subset, and the parts of an array job."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageSequence

from reverie import cli
from reverie.actions import ActionSpace
from reverie.data.combining import merge
from reverie.data.copying import opened
from reverie.data.episode import Episode, Spec
from reverie.data.sources.platformer import PlatformerConfig
from reverie.data.sources.square import SquareConfig
from reverie.data.splits import labelled
from reverie.data.store import open_dataset, write_store
from reverie.data.writing import write_source
from reverie.errors import ReverieError

SPEC = Spec((4, 6, 3), ActionSpace("discrete", 5), 10.0, "made up")


def episode_of(seed, length=20, source="", reward=0.0, task=""):
    rng = np.random.default_rng(seed)
    return Episode(
        frames=rng.integers(0, 256, (length, 4, 6, 3)).astype(np.uint8),
        actions=np.array([-1, *rng.integers(0, 5, length - 1)], np.int32),
        rewards=np.full(length, reward, np.float32),
        ends=np.zeros(length, np.bool_),
        source=source or f"clip {seed}",
        task=task,
    )


def stored(path, train, val=(), spec=SPEC, **about):
    return write_store(path, spec, {"train": train, **({"val": val} if val else {})}, **about)


def files(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def sources(path, split="train"):
    return open_dataset(path, split, checksums=True).sources  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def two(tmp_path):
    one = stored(tmp_path / "a", [episode_of(0), episode_of(1, 37)], [episode_of(2)], licence="CC0", notes=["said"])
    other = stored(tmp_path / "b", [episode_of(3, task="jump")], [episode_of(4)], licence="MIT", notes=["said", "more"])
    return one, other


def test_merge_keeps_episodes_splits_tasks_notes_and_licences(two, tmp_path, capsys):
    out = tmp_path / "both"
    assert cli.main(["data", "merge", str(out), *map(str, two)]) == 0
    train = opened(out).splits["train"]
    assert sources(out) == ["clip 0", "clip 1", "clip 3"] and sources(out, "val") == ["clip 2", "clip 4"]
    assert train.tasks == ["", "", "jump"] and train.notes == ["said", "more"] and train.licence == "CC0; MIT"
    for index, seed in enumerate([0, 1, 3]):
        made = episode_of(seed, int(train.lengths[index]))
        window = train.read(index, 0, len(made.frames))
        assert all(np.array_equal(window[name], array) for name, array in made.arrays().items())
    before = files(out)
    assert cli.main(["data", "merge", str(out), *map(str, two)]) == 0  # again
    assert files(out) == before and "there already" in capsys.readouterr().out
    assert cli.main(["data", "merge", str(out), str(two[0]), str(two[0])]) == 2  # something else
    assert files(out) == before and "exists already" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "both"]


def test_merge_never_puts_an_episode_or_a_recording_on_both_sides(tmp_path):
    a = stored(tmp_path / "a", [episode_of(0), episode_of(1), episode_of(8, source="level 5")], [episode_of(2)])
    b = stored(tmp_path / "b", [episode_of(2), episode_of(3)], [episode_of(1), episode_of(9, source="level 5")])
    out = tmp_path / "out"
    merge(out, [a, b])
    assert sources(out) == ["clip 0", "clip 3"]
    assert sources(out, "val") == ["level 5", "clip 2", "clip 1", "level 5"]
    notes = opened(out).any.notes
    assert notes == [
        "2 episodes were copies of others: each is kept once",
        "1 episodes joined another split, where their recordings are already (level 5)",
    ]


def test_merge_of_simulators_keeps_the_game_and_drops_states_of_others(tmp_path):
    a, b = (write_source(tmp_path / str(seed), SquareConfig(count=4, frames=5, seed=seed)) for seed in (0, 1))
    merge(tmp_path / "same", [a, b])
    assert open_dataset(tmp_path / "same").spec.simulator == SquareConfig(count=4, frames=5, seed=0)
    keys = write_source(tmp_path / "keys", SquareConfig(count=4, frames=5, actions="binary"))
    with pytest.raises(ReverieError, match="binary actions.*not discrete actions.*import both from one folder"):
        merge(tmp_path / "no", [a, keys])
    other = write_source(tmp_path / "other", PlatformerConfig(count=2, frames=5))
    with pytest.raises(ReverieError, match="no --size, so only stores of the same game"):
        merge(tmp_path / "no", [a, other])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec((6, 4, 3), SPEC.actions, 10.0, "x"), "write '.*' again with --size 4 6"),
        (Spec((4, 6, 3), SPEC.actions, 20.0, "x"), "20 frames per second, not 10.*--fps 10"),
        (Spec((4, 6, 3), ActionSpace("discrete", 6), 10.0, "x"), "6, counted from 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(tmp_path, two, spec, message):
    made = episode_of(7)
    made.frames = made.frames.reshape(-1, *spec.frame)
    other = stored(tmp_path / "other", [made], spec=spec)
    with pytest.raises(ReverieError, match=message) as error:
        merge(tmp_path / "out", [two[0], other])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_append_adds_files_and_is_idempotent(two, tmp_path, capsys):
    one, other = two
    before = files(one)
    assert cli.main(["data", "append", str(one), str(other)]) == 0
    assert sources(one) == ["clip 0", "clip 1", "clip 3"] and sources(one, "val") == ["clip 2", "clip 4"]
    after = files(one)
    assert all(after[name] == content for name, content in before.items() if name != "manifest.json")
    assert cli.main(["data", "append", str(one), str(other)]) == 0
    assert files(one) == after and "there already" in capsys.readouterr().out
    # what is trained on already stays so: a recording joins the side that it is on
    third = stored(tmp_path / "c", [episode_of(5)], [episode_of(6, source="clip 0"), episode_of(1, 37)])
    assert cli.main(["data", "append", str(one), str(third)]) == 0
    assert sources(one) == ["clip 0", "clip 1", "clip 3", "clip 5", "clip 0"]
    assert cli.main(["data", "append", str(one)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_append_takes_recordings_as_they_are(tmp_path, capsys):
    plain = stored(tmp_path / "plain", [episode_of(0)])
    (tmp_path / "more").mkdir()
    np.savez(tmp_path / "more" / "run.npz", image=np.full((9, 8, 12, 3), 7, np.uint8), action=np.arange(9) % 5)
    assert cli.main(["data", "append", str(plain), str(tmp_path / "more"), "--val", "0"]) == 0
    window = open_dataset(plain).read(1, 0, 9)
    assert window["frames"].shape == (9, 4, 6, 3) and (window["frames"] == 7).all()
    assert window["actions"].tolist() == [-1, 0, 1, 2, 3, 4, 0, 1, 2]
    square = write_source(tmp_path / "square", SquareConfig(count=2, frames=5), val=0)
    assert cli.main(["data", "append", str(plain), str(tmp_path / "more"), "--val", "0"]) == 0
    assert f"every episode of '{tmp_path / 'more'}' is there already" in capsys.readouterr().out
    assert cli.main(["data", "append", str(square), str(plain)]) == 2
    assert "--size 32 32" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more", "plain", "square"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--split", "train"], {"train": [0, 1, 2, 3, 4, 5]}),
        (["--episodes", "0:2,4"], {"train": [0, 1, 4], "val": [6, 7]}),
        (["--every", "3"], {"train": [0, 3], "val": [6]}),
        (["--best", "0.5"], {"train": [3, 4, 5], "val": [7]}),
        (["--task", "odd", "--source", "clip"], {"train": [1, 3, 5], "val": [7]}),
        (["--shortest", "24"], {"train": [4, 5], "val": [6, 7]}),
    ],
)
def test_subset(tmp_path, flags, expected):
    every = [episode_of(n, 20 + n, reward=n, task="odd" if n % 2 else "") for n in range(8)]
    whole = stored(tmp_path / "whole", every[:6], every[6:])
    assert cli.main(["data", "subset", str(whole), *flags, str(tmp_path / "part")]) == 0
    found = opened(tmp_path / "part")
    assert {split: [int(s.split()[1]) for s in part.sources] for split, part in found.splits.items()} == expected
    assert cli.main(["data", "subset", str(whole), str(tmp_path / "none"), "--source", "nothing"]) == 2


def test_a_share_of_the_training_episodes_keeps_its_actions(tmp_path):
    whole = stored(tmp_path / "whole", [episode_of(n, 40) for n in range(10)], [episode_of(10), episode_of(11)])
    known: set[int] = set()
    for share in ("0", "0.3", "0.6"):
        assert cli.main(["data", "subset", str(whole), str(tmp_path / share), "--labels", share]) == 0
        found, of = opened(tmp_path / share).splits, opened(whole).splits
        assert labelled(found["val"]) == [True, True], "held-out actions say what a world has learned"
        assert sum(labelled(found["train"])) == round(10 * float(share))
        for split, part in found.items():
            for episode, length in enumerate(part.lengths.tolist()):
                hidden, shown = part.read(episode, 0, length), of[split].read(episode, 0, length)
                if split == "train" and not labelled(part, [episode])[0]:
                    assert hidden["actions"].tolist() == [-1] + [-2] * (length - 1)
                    del hidden["actions"]
                assert all(np.array_equal(array, shown[name]) for name, array in hidden.items())
        now = {episode for episode, each in enumerate(labelled(found["train"])) if each}
        assert known <= now, "what is known at a small share is known at a larger one"
        known = now
    assert cli.main(["data", "subset", str(whole), str(tmp_path / "none"), "--labels", "1.1"]) == 2


@pytest.mark.parametrize("val", [0.0, 0.2])
def test_parts_of_an_array_job_make_the_store_of_one_job(tmp_path, val):
    flags = ["--count", "7", "--frames", "5", "--val", str(val)]
    assert cli.main(["data", "square", str(tmp_path / "one"), *flags]) == 0
    for part in range(3):
        assert cli.main(["data", "square", str(tmp_path / f"part{part}"), *flags, "--shard", f"{part}/3"]) == 0
    parts = [str(tmp_path / f"part{part}") for part in (2, 0, 1)]
    with pytest.raises(ReverieError, match="array job: join the parts"):
        open_dataset(parts[0])
    assert cli.main(["data", "merge", str(tmp_path / "two"), *parts[:2]]) == 2
    for _ in range(2):
        assert cli.main(["data", "merge", str(tmp_path / "all"), *parts]) == 0
    assert files(tmp_path / "all") == files(tmp_path / "one")


def test_a_part_says_what_is_wrong(tmp_path, capsys):
    for flag, message in (("3/3", "not a part of a whole"), ("x", "not a part of a whole")):
        assert cli.main(["data", "square", "out", "--shard", flag]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["data", "mixture", "out", "--stores", "a", "--shard", "0/2"]) == 2
    assert "cannot be divided" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_killed_merge_goes_on_from_its_complete_files(tmp_path):
    stored(tmp_path / "a", [episode_of(seed, 400) for seed in range(4)])
    stored(tmp_path / "b", [episode_of(seed, 400) for seed in range(4, 12)], [episode_of(20)])
    code = (
        "import time; from pathlib import Path; from reverie.data import combining, filling, store\n"
        "stored = store.StoreDataset.stored; calls = []\n"
        "def slow(self, *a, **k):\n"
        "    calls.append(a); time.sleep(PAUSE); return stored(self, *a, **k)\n"
        "store.StoreDataset.stored = slow\n"
        "about = filling.About\n"
        "combining.About = lambda *a, **k: about(*a, **k, file_bytes=20000)\n"
        "combining.merge(Path('OUT'), [Path('a'), Path('b')]); print(len(calls))"
    )

    def command(out, pause):
        return [sys.executable, "-c", code.replace("PAUSE", str(pause)).replace("OUT", out)]

    whole = subprocess.run(command("whole", 0), cwd=tmp_path, capture_output=True, text=True, check=True)
    process = subprocess.Popen(command("out", 0.004), cwd=tmp_path)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob(".out.*.part/*.array_record"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    again = subprocess.run(command("out", 0), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(again.stdout.split()[-1]) < int(whole.stdout.split()[-1]) - 40  # what was complete was not read again
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".out*"))


def test_show_draws_sheets_and_gifs_with_actions(two, tmp_path, capsys):
    assert cli.main(["data", "show", str(two[0]), "--out", "pictures", "--episodes", "2"]) == 0
    assert "5 files" in capsys.readouterr().out.splitlines()[-1]
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["train-00000.gif", "train-00001.gif", "train.png", "val-00000.gif", "val.png"]
    with Image.open(tmp_path / "pictures" / "train-00001.gif") as gif:
        assert len(list(ImageSequence.Iterator(gif))) == 37
        assert gif.size[0] == 6 * 16 and gif.size[1] > 4 * 16  # the action is below


@pytest.mark.parametrize(
    ("space", "action", "name"),
    [
        (ActionSpace("discrete", 2, ("left", "right")), 1, "right"),
        (ActionSpace("discrete", 2), 1, "1"),
        (ActionSpace("discrete", 2), -1, ""),
        (ActionSpace(), -2, "?"),
        (ActionSpace("binary", 2, ("left", "fire")), [1, 1], "left + fire"),
        (ActionSpace("binary", 2, ("left", "fire")), [0, 0], "nothing"),
        (ActionSpace("multi", 2, ("none", "jump", "a", "b"), sizes=(2, 2)), [0, 1], "b"),
        (ActionSpace("continuous", 2, low=(-1.0, -1.0), high=(1.0, 1.0)), [0.5, -1.0], "+0.50 -1.00"),
    ],
)
def test_an_action_has_a_name(space, action, name):
    assert space.name_of(np.array(action, space.dtype)) == name
