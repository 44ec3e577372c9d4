"""What users get wrong: each case prepares the folder it is in and returns the words typed there."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
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


@case("a.mp4: it is no video")
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
        case(f"in {word.rpartition(' ')[2]} minutes: give a number above 0")(typed)


impossible_times()


@case("--minutes: invalid .* 'long'")
def learn_for_long(world):
    return "learn store --minutes long --out run"


@case("longest episode has 1 frames: a world is learned from at least 2")
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


@case("written by a newer Reverie .data format 99, this one reads 1.; update Reverie first")
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


@case("data.npz' is not a dataset that Reverie wrote, or it is damaged")
def show_a_damaged_npz(world):
    scratch(ArrayDataset.from_episodes(SPEC, episodes()).save("data.npz"))
    return "data show data.npz"


@case("data.npz' is not a dataset that Reverie wrote, or it is damaged")
def show_a_pickle(world):
    with open("data.npz", "wb") as file:
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    return "data show data.npz"


@case("data.npz' is not a dataset that Reverie wrote, or it is damaged")
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


@case("does not know '--dynamics.stesp'. Did you mean '--dynamics.steps'")
def train_with_an_unknown_flag(world):
    return "train toy-maskgit --dynamics.stesp 3 --out run"


@case("--dynamics.steps: .*'many'. 'reverie train toy-maskgit --help' lists every flag")
def train_with_a_wrong_value(world):
    return "train toy-maskgit --dynamics.steps many --out run"


@case("there is no command 'trian'. Did you mean 'train'")
def a_command_misspelt(world):
    return "trian toy-maskgit"


@case("nothing at '.*/mien'. Did you mean 'mine'")
def eval_a_run_misspelt(world):
    copy(world)
    return "eval mien"


@case("'mine/tokenizer' is a VQVAE, not a world: its report is in")
def eval_a_tokenizer(world):
    return f"eval {copy(world)}/tokenizer"


@case("run.json' cannot be read .*damaged")
def eval_a_damaged_run(world):
    (copy(world) / "dynamics/run.json").write_text('{"format": 1, "run": {"cl')
    return "eval mine"


@case("made by Reverie .*newer than this one: upgrade")
def eval_a_run_of_a_newer_version(world):
    file = copy(world) / "dynamics/run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    return "eval mine"


@case("is not a config of this version of Reverie")
def eval_a_run_that_names_foreign_code(world):
    file = copy(world) / "dynamics/run.json"
    file.write_text(file.read_text().replace("reverie.training.engine:Run", "subprocess:Popen"))
    return "eval mine"


@case("nothing to load from '.*/mine/dynamics': it has no checkpoint yet")
def eval_without_checkpoints(world):
    shutil.rmtree(copy(world) / "dynamics/checkpoints")
    return "eval mine"


@case(
    "nothing to load from '.*/mine/dynamics': none of its checkpoints can be read", note="checkpoint of step .*damaged"
)
def eval_with_every_checkpoint_damaged(world):
    for file in weights_of(copy(world) / "dynamics"):
        scratch(file)
    return "eval mine"


@case("nothing at '.*/mine/tokenizer'")
def eval_without_the_tokenizer(world):
    shutil.rmtree(copy(world) / "tokenizer")
    return "eval mine"


@case("no dataset at '.*/mine/data'")
def eval_without_the_data(world):
    shutil.rmtree(copy(world) / "data")
    return "eval mine"


@case("record 0 of .*val-00000.array_record' cannot be read|val-00000.array_record' is damaged")
def eval_with_damaged_records(world):
    scratch(copy(world) / "data/val-00000.array_record")
    return "eval mine"


@case("dreams frames of .8, 16, 3., the dataset has .16, 8, 3.")
def eval_on_frames_of_another_shape(world):
    mine = copy(world)
    shutil.rmtree(mine / "data")
    spec = replace(SPEC, frame=(16, 8, 3))
    turned = [replace(e, frames=np.ascontiguousarray(e.frames.swapaxes(1, 2))) for e in episodes()]
    write_store(mine / "data", spec, turned, val=0.25)
    return "eval mine"


@case("disagrees with the manifest: .*fetch or write")
def eval_with_records_of_another_shape_and_as_many_bytes(world):
    mine = copy(world)
    told = json.loads((mine / "data/manifest.json").read_text())
    shutil.rmtree(mine / "data")
    spec = replace(SPEC, frame=(16, 8, 3))
    turned = [replace(e, frames=np.ascontiguousarray(e.frames.swapaxes(1, 2))) for e in episodes()]
    write_store(mine / "data", spec, turned, val=0.25)
    manifest(mine / "data", spec=told["spec"], arrays=told["arrays"])
    return "eval mine"


@case("held-out episodes of '.*' are too short to dream on from: record longer ones")
def eval_on_episodes_shorter_than_the_context(world):
    mine = copy(world)
    shutil.rmtree(mine / "data")
    write_store(mine / "data", SPEC, episodes(length=3), val=0.25)
    return "eval mine"


@case("longest held-out episode of '.*' has room for 9 dreamed frames after 3 real ones, not for 64: .*--horizon 9")
def eval_farther_than_episodes_go(world):
    return f"eval {copy(world)} --horizon 64"


@case("on 1 clip and 1 dreamed frame at least, not 0 and 16")
def eval_on_no_clips(world):
    return f"eval {copy(world)} --clips 0"


@case("on 1 clip and 1 dreamed frame at least, not 64 and -2")
def eval_backwards(world):
    return f"eval {copy(world)} --horizon -2"


@case("--horizon: invalid int value: 'far'")
def eval_far(world):
    return f"eval {copy(world)} --horizon far"


@case("features are named MODULE:FUNCTION, not 'i3d'")
def eval_with_features_of_no_function(world):
    return f"eval {copy(world)} --features i3d"


@case("the module 'my_features' with features cannot be imported: No module named 'my_features'")
def eval_with_features_of_no_module(world):
    return f"eval {copy(world)} --features my_features:i3d"


@case("'my_features_b' has no function 'i3b'. Did you mean 'i3d'")
def eval_with_features_misspelt(world):
    Path("my_features_b.py").write_text("def i3d(clips): return clips")
    return f"eval {copy(world)} --features my_features_b:i3b"


@case("the module 'my_features_c' with features cannot be imported: ")
def eval_with_features_that_are_no_python(world):
    Path("my_features_c.py").write_text("def i3d(clips) return clips")
    return f"eval {copy(world)} --features my_features_c:i3d"


@case("nothing at '.*/nowhere'")
def play_nothing(world):
    return "play nowhere --no-browser"


@case("only a world can be played, and this is a VQVAE: load a world's folder")
def play_a_tokenizer(world):
    return f"play {copy(world)}/tokenizer --no-browser --port 0"


@case("no port 70000: choose 0 to 65535")
def play_at_a_port_that_is_none(world):
    return f"play {copy(world)} --port 70000 --no-browser"


@case("say --expose if you want that")
def play_for_everyone_by_accident(world):
    return f"play {copy(world)} --host 0.0.0.0 --port 0 --no-browser"


@case("'.*there' exists already: choose another place for the copy")
def export_over_something(world):
    Path("there").mkdir()
    return f"export {copy(world)} there"


@case("nothing at '.*/nowhere'")
def export_nothing(world):
    return "export nowhere there"


@case("holds no trained model: there is no run.json in it")
def export_a_folder_that_is_no_world(world):
    Path("folder").mkdir()
    return "export folder there"


@case("file.txt")
def export_into_a_file(world):
    Path("file.txt").write_text("mine")
    return f"export {copy(world)} file.txt/there"
