"""What an export carries: what is needed to play, written anew, and nothing else of the machine it was made on."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from golden import unpack

import reverie
from reverie import cli
from reverie.bounded import read_json
from reverie.checksums import check_manifest, read_signed, write_json
from reverie.data.arrays import ArrayDataset
from reverie.errors import ReverieError
from reverie.library import place
from reverie.training.checkpoint import load, steps
from reverie.training.export import _without_places, export
from reverie.training.record import read_record, write_record
from reverie.world import WorldModel
from reverie.world_folder import initial_frames

SECRET = "a line that stays here"


@pytest.fixture
def world(tmp_path):
    """A world whose every file that may name a place does so."""
    world = unpack(tmp_path / "home of a user" / "world")
    clips = str(tmp_path / "home of a user" / "clips")
    for stage in ("tokenizer", "lam", "dynamics"):
        record = read_record(world / stage)
        spec = replace(record.spec, source=clips)
        write_record(world / stage, replace(record, spec=spec, run=replace(record.run, data=clips)))
    starts = ArrayDataset.load(world / "starts.npz")
    (world / "starts.npz").unlink()
    ArrayDataset(replace(starts.spec, source=clips), starts.lengths, starts.arrays).save(world / "starts.npz")
    recipe = read_json(world / "world.json")
    recipe["source"] = {"class": "reverie.data.sources.videos:VideosConfig", "path": clips}
    recipe["about"] = "made for /home/someone/a.mp4, 30 minutes"
    (world / "world.json").write_text(json.dumps(recipe))
    write_json(world / "eval.json", {"psnr": 1.0, "dataset": clips})
    return world


def everything(folder) -> bytes:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not [file for file in folder.rglob("*") if file.is_symlink()]
    return b"".join(file.read_bytes() for file in files) + "\n".join(map(str, files)).encode()


def test_no_place_and_no_foreign_file_leaves(world, tmp_path):
    (tmp_path / "secret.json").write_text(json.dumps({"secret": SECRET}))
    (tmp_path / "secret.npz").write_text(SECRET)
    (world / "more.json").symlink_to(tmp_path / "secret.json")
    (world / "more.npz").symlink_to(tmp_path / "secret.npz")
    (world / "notes.json").write_text(SECRET)
    (world / "tokenizer" / "notes.txt").write_text(SECRET)
    (world / "tokenizer" / "checkpoints" / "notes.txt").write_text(SECRET)
    out = export(world, tmp_path / "out")
    carried = everything(out)
    assert SECRET.encode() not in carried and b"home of a user" not in carried
    assert b"/home/someone" not in carried
    assert str(tmp_path).encode() not in carried.replace(str(out).encode(), b"")
    assert {path.name for path in out.iterdir()} == {
        "tokenizer", "lam", "dynamics", "world.json", "eval.json", "starts.npz"
    }  # fmt: skip
    assert read_signed(out / "eval.json", required=True) == {"psnr": 1.0, "dataset": "clips"}
    for stage in ("tokenizer", "lam", "dynamics"):
        (step,) = steps(out / stage)
        about = check_manifest(out / stage / "checkpoints" / str(step))
        assert about and about["step"] == step and about["items"] == ["weights"]
    shutil.move(out, tmp_path / "elsewhere")
    assert isinstance(load(tmp_path / "elsewhere"), WorldModel) and initial_frames(tmp_path / "elsewhere")


def test_a_line_says_what_a_copy_is_good_for(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for source, says in ((world, "reverie play"), (world / "tokenizer", "reverie.load")):
        for name in (f"{source.name}-copy", f"{source.name}.zip"):
            assert cli.main(["export", str(source), str(out := tmp_path / name)]) == 0
            said = capsys.readouterr().out
            assert said.startswith(f"{out}: ") and says in said and load(place(out))


def test_plain_weights_are_readable_as_their_folder_is_and_need_the_file_beside_them(world, tmp_path):
    file = tmp_path / "w.safetensors"
    assert cli.main(["export", str(world), "--weights", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666
    file.with_suffix(".json").unlink()
    with pytest.raises(ReverieError, match=r"needs 'w\.json' beside it"):
        load(file)


def test_a_checkpoint_is_loaded_by_its_step(world):
    (step,) = steps(world / "dynamics")[-1:]
    assert isinstance(reverie.load(world, step=step), WorldModel)
    with pytest.raises(ReverieError, match=str(step + 1)):
        reverie.load(world, step=step + 1)


def size(folder) -> int:
    return sum(file.stat().st_size for file in folder.rglob("checkpoints/*/weights/**/*") if file.is_file())


def test_a_copy_of_16_bits_is_smaller_and_loads_as_the_rounded_world(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    full, half = tmp_path / "full", tmp_path / "half.zip"
    assert cli.main(["export", str(world), str(full)]) == 0
    assert cli.main(["export", str(world), str(half), "--bits", "16"]) == 0
    assert re.search(r"PSNR over \d+ frames of \d+ starts: \S+ dB in full, \S+ dB rounded", capsys.readouterr().out)
    kept, rounded = (nnx.to_flat_state(nnx.state(load(each))) for each in (full, place(half)))
    halved = 0
    for (path, variable), (_, other) in zip(kept, rounded, strict=True):
        before, after = np.asarray(variable[...]), np.asarray(other[...])
        if isinstance(variable, nnx.Param) and before.ndim > 1 and path[0] == "dynamics":  # the others choose codes
            halved += before.size
            before = before.astype(np.float16).astype(np.float32)
        assert before.dtype == after.dtype and np.array_equal(before, after), path
    assert size(full) - size(place(half)) > halved > 0  # bytes; all weights are compressed


@pytest.mark.parametrize(
    ("bits", "also", "what"),
    [
        ("8", ["out"], "has 32 or 16"),
        ("16", ["--weights", "w.safetensors"], "have 32 bits"),
        ("32", ["w.safetensors"], "'--weights w.safetensors' writes plain weights"),
        ("32", ["w.tar"], "an archive ends in .zip, not in .tar"),
    ],
)
def test_fewer_bits_than_a_copy_can_have_are_refused(world, bits, also, what, capsys):
    assert cli.main(["export", str(world), *also, "--bits", bits]) == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize("name", ["world.json", "eval.json", "starts.npz"])
def test_a_link_beside_the_stages_is_left_out_with_a_line(world, tmp_path, name, capsys):
    (world / name).replace(tmp_path / "secret")
    (world / name).symlink_to(tmp_path / "secret")
    assert not (export(world, tmp_path / "out") / name).exists()
    assert f"{name}' is a link and is left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dynamics", "dynamics/run.json", "lam/checkpoints", "lam/checkpoints/4"])
def test_a_link_in_a_stage_is_refused(world, tmp_path, name):
    (world / name).replace(tmp_path / "secret")
    (world / name).symlink_to(tmp_path / "secret", target_is_directory=(tmp_path / "secret").is_dir())
    with pytest.raises(ReverieError, match="is a link: an export follows none") as error:
        export(world, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/my clips/a.mp4", "a.mp4"),
        ("/home/me/clips/", "clips"),
        ("~/clips", "clips"),
        ("C:\\Users\\me\\clips", "clips"),
        ("file:///home/me/x.npz", "x.npz"),
        ("of /home/me/a.mp4, and C:\\Users\\me\\b.mp4", "of a.mp4, and b.mp4"),
        ("../tokenizer", "../tokenizer"),
        ("data", "data"),
        ("/", "/"),
        ("steps/s, 1/2", "steps/s, 1/2"),
        ("reverie.training.engine:Run", "reverie.training.engine:Run"),
    ],
)
def test_of_a_path_the_last_name_leaves(text, left):
    assert _without_places({"a": [text]}) == {"a": [left]}
