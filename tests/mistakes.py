"""What users get wrong: each case prepares the folder it is in and returns the words typed there."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from test_videos import coded, write

from reverie.actions import START, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.data.store import write_store

SPEC = Spec((8, 16, 3), ActionSpace("discrete", 3), 10.0, "noise")
CASES: dict[str, tuple[Callable[[Path], str], str, str]] = {}


def case(says: str, note: str = ""):
    """Register what a user does: prepares the folder it is in, returns the words; ``note``: a line before the last."""

    def register(prepare: Callable[[Path], str]) -> Callable[[Path], str]:
        CASES[prepare.__name__] = prepare, says, note
        return prepare

    return register


def episodes(count: int = 4, length: int = 12, seed: int = 0) -> list[Episode]:
    rng, none, made = np.random.default_rng(seed), np.zeros(length, np.float32), []
    for _ in range(count):
        actions = rng.integers(0, 3, length, np.int32)
        actions[0] = START
        made.append(Episode(rng.integers(0, 256, (length, *SPEC.frame), np.uint8), actions, none, none > 0))
    return made


def stored(name: str = "store") -> Path:
    return write_store(name, SPEC, episodes(), val=0.25)


def manifest(store: Path, **changes) -> None:
    data = json.loads((store / "manifest.json").read_text())
    del data["checksum"]  # written by hand: as an earlier version would write it
    (store / "manifest.json").write_text(json.dumps(data | changes))


def copy(world: Path) -> Path:
    return Path(shutil.copytree(world, "mine"))


def scratch(file: Path) -> None:
    """Turn the bits of a file's middle, and keep its size."""
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - byte for byte in data[middle : middle + 64])
    file.write_bytes(data)


def weights_of(run: Path, step: int | str = "*") -> list[Path]:
    return [file for file in run.glob(f"checkpoints/{step}/weights/**/*") if file.is_file() and file.stat().st_size]


@case("'.*clips' holds no videos .found: nothing.; bring files such as .mp4")
def learn_from_an_empty_folder(world):
    Path("clips").mkdir()
    return "learn clips --out run"


@case("holds no videos .found: 1 .txt.; bring")
def learn_from_a_folder_without_videos(world):
    Path("clips").mkdir()
    Path("clips/notes.txt").write_text("buy milk")
    return "learn clips --out run"


@case("a.mp4: it is not a video")
def learn_from_text_named_video(world):
    Path("clips").mkdir()
    Path("clips/a.mp4").write_text("these are words " * 100)
    return "learn clips --out run"


@case("a.mp4: the file is empty")
def learn_from_an_empty_video(world):
    Path("clips").mkdir()
    Path("clips/a.mp4").touch()
    return "learn clips --out run"


@case("a single frame")
def learn_from_a_single_frame(world):
    write(Path("a.mp4"), [coded(1)])
    return "learn a.mp4 --out run"


@case("no piece of the videos .* is 16 frames long at 10 frames per second; bring longer videos")
def learn_from_what_is_left_of_a_video(world):
    video = write(Path("a.mkv"), [coded(i) for i in range(24)], 10)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 3])
    return "learn a.mkv --out run"


@case("no folder, video or source 'platfromer'. Did you mean 'platformer'")
def learn_from_a_source_misspelt(world):
    return "learn platfromer --out run"


@case("no folder, video or source 'clips/of/mine'")
def learn_from_nowhere(world):
    return "learn clips/of/mine --out run"


def impossible_times():
    words = ["learn store --minutes 0", "learn store --minutes -5", "learn store --minutes nan"]
    for word in [*words, "demo --no-play --minutes 0", "train toy-maskgit --minutes -1"]:

        def typed(world, word=word):
            stored()
            return f"{word} --out run"

        typed.__name__ = word.replace(" ", "_")
        case(f"must be a number above 0, not {word.rpartition(' ')[2]}")(typed)


impossible_times()


@case("--minutes: 'long' is not a number")
def learn_for_long(world):
    return "learn store --minutes long --out run"


@case("longest episode has 1 frames: training needs at least 2")
def learn_from_episodes_of_a_frame(world):
    write_store("store", SPEC, episodes(length=1))
    return "learn store --minutes 1 --out run"


@case("'.*file.txt'")
def learn_into_a_file(world):
    stored()
    Path("file.txt").write_text("mine")
    return "learn store --minutes 1 --out file.txt"


@case("made from other data.*choose another --out")
def learn_from_other_data_into_the_same_world(world):
    write_store("other", SPEC, episodes(seed=1))
    mine = copy(world)
    (mine / "world.json").write_text(json.dumps({"source": "/somewhere/else"}))
    return "learn other --minutes 1 --out mine"


@case("no dataset at 'stoer'. Did you mean 'store'")
def show_data_misspelt(world):
    stored()
    return "data show stoer"


@case("'folder' is not a dataset: it has no manifest.json")
def show_a_folder_that_is_no_dataset(world):
    Path("folder").mkdir()
    return "data show folder"


@case("manifest.json' is damaged .*fetch or write the dataset again")
def show_data_with_a_damaged_manifest(world):
    (stored() / "manifest.json").write_text('{"format": "reverie-store", "sch')
    return "data show store"


@case("written by a newer Reverie .data format 99, this one reads 2.; update Reverie first")
def show_data_of_a_newer_version(world):
    manifest(stored(), schema=99)
    return "data show store"


@case("array_record' has .* bytes instead of .*fetch or write")
def show_data_cut_short(world):
    file = next(stored().glob("train*.array_record"))
    os.truncate(file, file.stat().st_size // 2)
    return "data show store"


@case("array_record' is missing; fetch or write")
def show_data_with_a_file_lost(world):
    next(stored().glob("val*.array_record")).unlink()
    return "data show store"


@case("^(?!.*data.npz.*data.npz).*data.npz' is not a .npz file, or it is damaged")
def show_a_damaged_npz(world):
    scratch(ArrayDataset.from_episodes(SPEC, episodes()).save("data.npz"))
    return "data show data.npz"


@case("^(?!.*data.npz.*data.npz).*data.npz' is not a .npz file, or it is damaged")
def show_a_pickle(world):
    with open("data.npz", "wb") as file:
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    return "data show data.npz"


@case("data.npz' holds no recording that can be used")
def learn_from_pickles_in_an_npz(world):
    np.savez("data.npz", reverie=np.array([{"a": 1}], object))
    return "learn data.npz --out run"


@case("'store' exists already; choose another name, or remove it first")
def record_over_something(world):
    stored()
    return "data square store --count 2 --frames 4"


@case("file.txt")
def record_into_a_file(world):
    Path("file.txt").write_text("mine")
    return "data square file.txt/store --count 2 --frames 4"


@case("does not know '--coumt'. Did you mean '--count'")
def record_with_an_unknown_flag(world):
    return "data square store --coumt 2"


@case("val = 1.5 must be a fraction below 1")
def record_with_more_held_out_than_there_is(world):
    return "data square store --count 2 --frames 4 --val 1.5"


@case("no preset 'toy-maskgti'. Did you mean 'toy-maskgit'")
def train_a_preset_misspelt(world):
    return "train toy-maskgti --out run"


@case("does not know '--dynamics.stesp'. Did you mean '--dynamics.steps'?")
def train_with_an_unknown_flag(world):
    return "train toy-maskgit --dynamics.stesp 3 --out run"


@case("--dynamics.steps: 'many' is not a whole number. 'reverie train toy-maskgit --help-all' lists every flag")
def train_with_a_wrong_value(world):
    return "train toy-maskgit --dynamics.steps many --out run"


@case("there is no command 'trian'. Did you mean 'train'")
def a_command_misspelt(world):
    return "trian toy-maskgit"
