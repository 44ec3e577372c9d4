"""What users get wrong with worlds that are there: to measure, play and export them (see ``mistakes``)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from mistakes import SPEC, case, copy, episodes, manifest, scratch, weights_of

from reverie.data.store import write_store


@case("nothing at '.*/mien'. Did you mean 'mine'")
def eval_a_run_misspelt(world):
    copy(world)
    return "eval mien"


def worlds_that_are_not_there():
    commands = ["eval X", "eval X --env", "play X --no-browser", "card X", "atlas X", "show X", "show X --tree"]
    commands += ["show mine X", "compare mine X", "compare X mine", "export X out", "export X out.zip"]
    for command in [*commands, "export X --web out.html", "export X --weights out.safetensors"]:

        def typed(world, command=command):
            copy(world)
            return command.replace("X", "runs/mien")

        typed.__name__ = command.replace(" ", "_")
        case("there is nothing at '/[^']*/runs/mien'.$")(typed)


worlds_that_are_not_there()


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
    data = json.loads(file.read_text().replace("reverie.training.engine:Run", "subprocess:Popen"))
    del data["checksum"]  # as written by an earlier version
    file.write_text(json.dumps(data | {"format": 1}))
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


@case("'mine' came without its data: name a store or .npz of the same kind with --data")
def eval_without_the_data(world):
    shutil.rmtree(copy(world) / "data")
    return "eval mine"


@case("record 0 of .*val-00000.array_record' cannot be read|val-00000.array_record' is damaged")
def eval_with_damaged_records(world):
    scratch(copy(world) / "data/val-00000.array_record")
    return "eval mine"


@case("generates frames of .8, 16, 3., the dataset has .16, 8, 3.")
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
    noted = json.loads((mine / "data/manifest.json").read_text())
    shutil.rmtree(mine / "data")
    spec = replace(SPEC, frame=(16, 8, 3))
    turned = [replace(e, frames=np.ascontiguousarray(e.frames.swapaxes(1, 2))) for e in episodes()]
    write_store(mine / "data", spec, turned, val=0.25)
    manifest(mine / "data", spec=noted["spec"], arrays=noted["arrays"])
    return "eval mine"


@case(
    "held-out episode of '.*' has 3 frames, of which .* takes 3: record longer ones",
    "the split 'train' is used",
)
def eval_on_episodes_shorter_than_the_context(world):
    mine = copy(world)
    shutil.rmtree(mine / "data")
    write_store(mine / "data", SPEC, episodes(length=3), val=0.25)
    return "eval mine"


@case("longest held-out episode of '.*' has 9 frames after 3 real ones, not 64: .*--horizon 9")
def eval_farther_than_episodes_go(world):
    return f"eval {copy(world)} --horizon 64"


@case("needs 1 clip and 1 generated frame or more, not 0 and 16")
def eval_on_no_clips(world):
    return f"eval {copy(world)} --clips 0"


@case("needs 1 clip and 1 generated frame or more, not 64 and -2")
def eval_backwards(world):
    return f"eval {copy(world)} --horizon -2"


@case("--horizon: 'far' is not a whole number")
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


@case("--allow-host takes a name such as play.example.org, without scheme or port, not 'https://play.example'")
def play_behind_an_address_that_is_no_name(world):
    return f"play {copy(world)} --allow-host https://play.example --port 0 --no-browser"


@case("at least one player needs a seat, not 0")
def play_for_no_player(world):
    return f"play {copy(world)} --players 0 --port 0 --no-browser"


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
