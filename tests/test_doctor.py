"""The doctor finds every planted fault, and none in clean data."""

import json
from dataclasses import replace

import numpy as np
import pytest

from reverie import cli
from reverie.actions import ActionSpace
from reverie.data.copying import opened
from reverie.data.doctor.faults import examine
from reverie.data.episode import Episode, Spec
from reverie.data.sources.platformer import PlatformerConfig
from reverie.data.sources.square import SquareConfig
from reverie.data.store import open_dataset, write_store

SPEC = Spec((32, 32, 3), ActionSpace("discrete", 4), 15.0, "discs")
MOVES = ((0, -2), (0, 2), (-2, 0), (2, 0))


def episode_of(seed, length=64):
    """A disc that actions push over a textured ground; every action is held for a while."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(0, 60, (8, 8, 1)), np.ones((4, 4, 1))) + np.array([150, 90, 30])
    place, action = rng.integers(8, 24, 2), int(rng.integers(4))
    y, x = np.mgrid[:32, :32]
    frames, actions = [], []
    for t in range(length):
        if t and rng.random() < 0.4:
            action = int(rng.integers(4))
        if t:
            place = (place + MOVES[action]) % 32
        away = np.hypot((x - place[0] + 16) % 32 - 16, (y - place[1] + 16) % 32 - 16)
        frames.append(np.where(away[..., None] < 5, np.array([230, 210, 60]), ground).clip(0, 255).astype(np.uint8))
        actions.append(action if t else -1)
    zeros = np.zeros(length)
    actions = np.array(actions, np.int32)
    return Episode(np.stack(frames), actions, zeros.astype(np.float32), zeros > 0, source=f"level {seed}")


CLEAN = [episode_of(seed) for seed in range(14)]


def changed(index=3, **arrays):
    return [replace(one, **arrays) if at == index else one for at, one in enumerate(CLEAN)]


def noisy(frames):
    noise = np.random.default_rng(9).integers(-3, 4, frames.shape)
    return np.clip(frames.astype(int) + noise + 5, 0, 255).astype(np.uint8)


def repeated(frames):
    return frames[np.arange(len(frames)) * 4 // 5]


def letterboxed(frames):
    frames[:, :5], frames[:, -5:] = 0, 0
    return frames


def shifted_back(one):
    """Actions stored beside the frame they were taken at."""
    return replace(one, actions=np.concatenate([[-1], one.actions[2:], one.actions[-1:]]).astype(np.int32))


def scenes(frames):
    frames[30:] = 255 - CLEAN[7].frames[30:]
    return frames


def only(value):
    return [replace(one, actions=np.where(one.actions < 0, -1, value).astype(np.int32)) for one in CLEAN]


def mostly_up():
    rare = [np.where((one.actions > 0) & (np.arange(64) % 31 > 0), 0, one.actions) for one in CLEAN]
    return [replace(one, actions=actions.astype(np.int32)) for one, actions in zip(CLEAN, rare, strict=True)]


OF_EPISODES = {
    "frozen": (1, lambda frames: np.repeat(frames[:1], 64, 0)),
    "black": (3, lambda frames: frames // 40),
    "cuts": (4, scenes),
    "rate": (6, repeated),
    "swapped colours": (8, lambda frames: frames[..., ::-1].copy()),
    "mixed sizes": (9, letterboxed),
}
OF_ALL = {
    "misaligned": (lambda: [shifted_back(one) for one in CLEAN], "stored 1 frames too early"),
    "constant actions": (lambda: only(2), "every action is the same in all episodes"),
    "unused actions": (
        lambda: [replace(one, actions=np.where(one.actions == 3, 0, one.actions)) for one in CLEAN],
        "1 of 4 actions never occur (action 3)",
    ),
    "imbalance": (mostly_up, "97% of all actions are 'action 0'"),
}


def faults(path):
    return {fault.fault: fault for fault in examine(opened(path))}


def test_every_planted_fault_of_an_episode_is_found_there_and_nowhere_else(tmp_path):
    episodes = list(CLEAN)
    for at, change in OF_EPISODES.values():
        episodes[at] = replace(CLEAN[at], frames=change(CLEAN[at].frames.copy()))
    episodes += [replace(CLEAN[2], source="again"), replace(CLEAN[5], source="anew", frames=noisy(CLEAN[5].frames))]
    found = faults(write_store(tmp_path / "store", SPEC, episodes, val=0))
    places = {name: [episode for _, episode in fault.episodes] for name, fault in found.items()}
    expected = {name: [at] for name, (at, _) in OF_EPISODES.items()}
    assert places.pop("misaligned", [6]) == [6]  # repeated frames leave actions behind
    assert places == expected | {"duplicates": [14], "near duplicates": [15]}
    assert all("\n" not in fault.text for fault in found.values())


@pytest.mark.parametrize("fault", OF_ALL)
def test_every_planted_fault_of_all_actions_is_found_for_what_it_is_and_no_other(tmp_path, fault):
    episodes, text = OF_ALL[fault]
    (found,) = examine(opened(write_store(tmp_path / "store", SPEC, episodes(), val=0)))
    assert (found.fault, found.episodes, found.aside) == (fault, (), ()) and text in found.text


@pytest.mark.parametrize(
    "source",
    [
        SquareConfig(count=24),
        SquareConfig(count=16, actions="continuous"),
        SquareConfig(count=16, actions="binary", play="mixed"),
        PlatformerConfig(tile=4, tiles=6, count=16, frames=32),
        None,
    ],
    ids=["square", "continuous", "binary", "platformer", "discs"],
)
def test_clean_data_have_no_fault(tmp_path, source):
    spec, episodes = (source.spec(), source.episodes()) if source else (SPEC, CLEAN)
    assert [fault.text for fault in examine(opened(write_store(tmp_path / "store", spec, episodes)))] == []


@pytest.fixture
def ill(tmp_path):
    """A store with a frozen and a damaged episode in training, and a copy in the held-out split."""
    train = changed(1, frames=np.repeat(CLEAN[1].frames[:1], 64, 0))
    path = write_store(
        tmp_path / "ill", SPEC, {"train": train, "val": [replace(CLEAN[5], source="seen"), episode_of(40)]}
    )
    file = path / "train-00000.array_record"
    data = bytearray(file.read_bytes())
    data[len(bytes(data).rstrip(b"\0")) // 2] ^= 255
    file.write_bytes(data)
    return path


def test_the_command_reports_sets_aside_and_puts_back(ill, capsys):
    assert cli.main(["data", "doctor", str(ill), "--json"]) == 0
    found = {fault["fault"]: fault for fault in json.loads(capsys.readouterr().out)["faults"]}
    assert set(found) == {"damaged", "frozen", "leak"}
    assert found["frozen"]["episodes"] == [["train", 1]] and found["leak"]["episodes"] == [["val", 0]]
    assert "record" in found["damaged"]["text"] and len(found["damaged"]["episodes"]) == 1
    before = {file.name: file.read_bytes() for file in ill.iterdir()}
    frames = open_dataset(ill).read(12, 0, 64)["frames"]
    assert cli.main(["data", "doctor", str(ill), "--quarantine", "--html"]) == 0
    assert "3 episodes set aside" in capsys.readouterr().out
    page = (ill / "doctor.html").read_text()
    assert page.count("<img") >= 2 and "stand still" in page
    well = open_dataset(ill)
    assert len(well.lengths) == 11 and np.array_equal(well.read(10, 0, 64)["frames"], frames)
    assert cli.main(["data", "doctor", str(ill), "--json"]) == 0
    assert {fault["fault"] for fault in json.loads(capsys.readouterr().out)["faults"]} == {"damaged"}  # the file itself
    assert cli.main(["data", "doctor", str(ill), "--release"]) == 0
    assert {file.name: file.read_bytes() for file in ill.iterdir() if file.name != "doctor.html"} == before


def test_appending_and_copying_leave_the_quarantine_as_it_is(ill, tmp_path):
    cli.main(["data", "doctor", str(ill), "--quarantine"])
    more = write_store(tmp_path / "more", SPEC, [episode_of(50)], val=0)
    assert cli.main(["data", "append", str(ill), str(more)]) == 0
    assert len(open_dataset(ill).lengths) == 12 and len(opened(ill).splits["train"].aside) == 3
    assert cli.main(["data", "subset", str(ill), str(tmp_path / "part"), "--split", "train"]) == 0
    assert len(open_dataset(tmp_path / "part", checksums=True).lengths) == 12


def test_a_dataset_in_one_file_stays_as_it_is_whatever_its_name(tmp_path, capsys):
    whole = write_store(tmp_path / "whole.npz", SPEC, CLEAN)
    (tmp_path / "link").symlink_to(whole)
    before = whole.read_bytes()
    for path in (str(whole), str(tmp_path / "link")):
        for flag in ("--quarantine", "--release"):
            assert cli.main(["data", "doctor", path, flag]) == 2
            assert "nothing can be set aside" in capsys.readouterr().err
        assert cli.main(["data", "append", path, str(whole)]) == 2
        assert "is one file" in capsys.readouterr().err
    assert whole.read_bytes() == before


def test_a_split_is_never_emptied(tmp_path, capsys):
    black = [replace(one, frames=one.frames // 40) for one in CLEAN[:3]]
    path = write_store(tmp_path / "black", SPEC, black, val=0)
    assert cli.main(["data", "doctor", str(path), "--quarantine"]) == 2
    assert "nothing was set aside" in capsys.readouterr().err and len(open_dataset(path).lengths) == 3
