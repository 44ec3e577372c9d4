"""From files to a world that can be played, as a user goes: learn, learn again, eval, step into it."""

import dataclasses
import fcntl
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import QUICK, shrunk
from test_videos import write

import reverie
from reverie import budget, cli
from reverie import pipeline as module
from reverie.data.arrays import ArrayDataset
from reverie.data.sources.square import SquareConfig
from reverie.data.sources.videos import VideosConfig
from reverie.data.store import write_store
from reverie.errors import ReverieError
from reverie.pipeline import train
from reverie.presets.fitting import fitting
from reverie.presets.recipe import Recipe
from reverie.training import checkpoint
from reverie.training.engine import Interrupted
from reverie.training.record import read_record
from reverie.world_folder import initial_frames

STAGES = ("tokenizer", "lam", "dynamics")


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Worlds that are trained here are evaluated in short; ``eval`` of one of them is in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluate_run", partial(module.evaluate_run, **QUICK))
        yield


def films(folder: Path, count: int = 3, frames: int = 20) -> Path:
    """Write videos of a bright square that wanders, 32 x 32 pixels."""
    folder.mkdir()
    for index in range(count):
        rng, place, pictures = np.random.default_rng(index), np.array([12, 12]), []
        for _ in range(frames):
            place = np.clip(place + rng.integers(-4, 5, 2), 0, 24)
            pictures.append(np.full((32, 32, 3), 40, np.uint8))
            pictures[-1][place[0] : place[0] + 8, place[1] : place[1] + 8] = (250, 220, 60)
        write(folder / f"{index}.mkv", pictures, 10)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Recipe, Path]:
    """A world learned from three videos."""
    place = tmp_path_factory.mktemp("learn")
    source = VideosConfig(path=str(films(place / "clips")), size=(32, 32))
    recipe = shrunk(fitting(source.spec(), source, 1.0), source.spec())
    return recipe, train(recipe, place / "world")


def stamps(world: Path) -> dict[str, int]:
    return {str(p.relative_to(world)): p.stat().st_mtime_ns for p in world.glob("*/checkpoints/*/seal.json")}


def test_videos_become_a_world_that_is_played(made):
    _, out = made
    world = reverie.load(out)
    assert world.config.actions.kind == "latent"
    session = reverie.Session(world, seed=1)
    session.reset(*initial_frames(out)[0])
    pictures = [session.step(action) for action in range(3)]
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"data", "eval", *STAGES}
    assert len(ArrayDataset.load(out / "starts.npz").lengths)


def test_its_numbers_are_those_of_a_world_without_a_simulator(made):
    numbers = json.loads((made[1] / "eval.json").read_text("utf-8"))
    assert numbers["action_source"] == "latent"
    assert numbers["swap_accuracy"] is None
    for curve in ("psnr", "ssim", "copy_last_psnr", "floor_psnr"):
        assert len(numbers[curve]) == 4 and np.isfinite(numbers[curve]).all()
    for number in ("delta_psnr_4", "code_usage", "top1", "top16"):
        assert np.isfinite(numbers[number]), number
    assert list((made[1] / "eval").glob("*.png")) and list((made[1] / "eval").glob("*.gif"))


def test_what_is_done_is_not_done_again(made, capfd):
    recipe, out = made
    before, numbers = stamps(out), (out / "eval.json").stat().st_mtime_ns
    assert {name.partition("/")[0] for name in before} == set(STAGES)
    train(recipe, out)
    assert stamps(out) == before and (out / "eval.json").stat().st_mtime_ns == numbers
    assert capfd.readouterr().out.count("already trained") == 3


def test_what_was_cut_short_goes_on(made, tmp_path):
    recipe, done = made
    out = Path(shutil.copytree(done, tmp_path / "world", symlinks=True))
    shutil.rmtree(out / "dynamics")
    shutil.rmtree(out / "lam/checkpoints/4")
    (out / "eval.json").unlink()
    before = stamps(out)
    train(recipe, out)
    after = stamps(out)
    assert before.items() <= after.items() and len(after) > len(before)
    assert checkpoint.steps(out / "lam")[-1] == checkpoint.steps(out / "dynamics")[-1] == 4
    assert (out / "eval.json").is_file()
    whole, resumed = (json.loads((place / "eval.json").read_text("utf-8")) for place in (done, out))
    assert whole["psnr"] == resumed["psnr"], "a world that was cut short is another one"


def whole(world: Path) -> dict[str, bytes]:
    """Every file of a world by its name, but for what has been begun to take its place."""
    files = {path.relative_to(world): path for path in sorted(world.rglob("*")) if path.is_file()}
    return {str(name): file.read_bytes() for name, file in files.items() if name.parts[0] != ".next"}


def with_dynamics(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, dynamics=dataclasses.replace(recipe.dynamics, **changes))


def test_a_refused_command_leaves_a_world_as_it_is(made, tmp_path, monkeypatch):
    recipe, done = made
    out = Path(shutil.copytree(done, tmp_path / "world", symlinks=True))
    before = whole(out)
    monkeypatch.setitem(sys.modules, "wandb", None)
    typo = dataclasses.replace(recipe.dynamics.objective, tokenizer="../tokenizr")
    longer = dataclasses.replace(recipe.tokenizer, steps=8)
    for asked, fresh, says in [
        (with_dynamics(recipe, objective=typo), True, "there is nothing at"),
        (with_dynamics(recipe, steps=8, loggers=("wandb",)), False, "needs the package wandb"),
        (with_dynamics(recipe, batch=0), True, "batch must be at least 1"),
        (with_dynamics(recipe, batch=4), False, r"holds another run \(batch 2 -> 4\).*--fresh"),
        (
            dataclasses.replace(recipe, tokenizer=longer),
            False,
            "tokenizer' cannot be trained further: lam and dynamics",
        ),
        (dataclasses.replace(recipe, source=SquareConfig(count=4)), True, "made from other data"),
    ]:
        with pytest.raises(ReverieError, match=says):
            train(asked, out, fresh=fresh)
        assert whole(out) == before
    for stage in ("dynamics", "."):
        with (out / stage / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(ReverieError, match="another process is at work in"):
                train(recipe, out, fresh=True)
        (out / stage / ".lock").unlink(missing_ok=True)
        assert whole(out) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_a_world_stays_until_its_successor_is_measured(made, tmp_path, monkeypatch, fresh):
    """Begun anew, nothing trained is left then, and what is not Reverie's stays."""
    recipe, done = made
    out = Path(shutil.copytree(done, tmp_path / "world", symlinks=True))
    (out / "dynamics" / "notes.txt").write_text("mine")
    (out / "report.html").write_text("of what was trained")
    before, sealed, longer = whole(out), stamps(out), with_dynamics(recipe, steps=8)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_run", killed)
        with pytest.raises(KeyboardInterrupt):
            train(longer, out, fresh=fresh)
    assert whole(out) == before
    reverie.load(out)
    monkeypatch.setattr(module, "fit", killed)  # all is trained already
    train(longer, out)
    assert [checkpoint.steps(out / stage)[-1] for stage in STAGES] == [4, 4, 8]
    after = whole(out)
    assert not fresh or all(sealed.get(seal, 0) < made for seal, made in stamps(out).items())
    assert not list(out.rglob(".next")) and not list(out.rglob(".old")) and not (out / "report.html").exists()
    assert (out / "dynamics" / "notes.txt").exists() and (out / "data" / "manifest.json").exists()
    assert json.loads(after["world.json"])["dynamics"]["steps"] == 8
    assert after["eval.json"] != before["eval.json"] and not list(out.glob(".*"))
    assert (after["tokenizer/metrics.jsonl"] == before["tokenizer/metrics.jsonl"]) and reverie.load(out)


def test_videos_may_move_and_go_and_new_ones_are_named(made, tmp_path, capsys):
    recipe, done = made
    out = Path(shutil.copytree(done, tmp_path / "world", symlinks=True))
    moved, before = Path(shutil.copytree(recipe.source.path, tmp_path / "moved")), whole(out)
    shutil.copy(films(tmp_path / "other", 4) / "3.mkv", moved)
    (moved / "0.mkv").rename(moved / "renamed.mkv")
    (moved / "2.mkv").unlink()
    train(dataclasses.replace(recipe, source=dataclasses.replace(recipe.source, path=str(moved))), out)
    assert "1 new video is not in this world (3.mkv): choose another --out" in capsys.readouterr().err
    train(dataclasses.replace(recipe, source=dataclasses.replace(recipe.source, path=str(tmp_path / "gone"))), out)
    assert whole(out) == before
    for file in moved.glob("*.mkv"):
        if file.name != "3.mkv":
            file.unlink()
    with pytest.raises(ReverieError, match="made from other data"):
        train(dataclasses.replace(recipe, source=dataclasses.replace(recipe.source, path=str(moved))), out)


def test_other_data_do_not_go_into_the_same_world(made, tmp_path):
    recipe, out = made
    with pytest.raises(ReverieError, match="made from .*choose another"):
        train(dataclasses.replace(recipe, source=SquareConfig(count=4)), out)


def test_eval_prints_one_object(made, capsys):
    assert cli.main(["eval", str(made[1]), "--json", "--horizon", "6", "--clips", "2"]) == 0
    out, err = capsys.readouterr()
    numbers = json.loads(out)
    assert out.count("\n") == 1 and numbers["action_source"] == "latent"
    assert len(numbers["psnr"]) == len(numbers["ssim_ci"]) == 6 and numbers["clips"] == 2
    assert "psnr" in err


def test_a_dataset_that_is_there_already_is_read_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "evaluate_run", lambda *_, **__: None)  # not what is asked here
    source, path = SquareConfig(count=4, frames=12), tmp_path / "store"
    write_store(path, source.spec(), source.episodes())
    recipe = shrunk(fitting(source.spec(), str(path), 1.0), source.spec())
    out = train(recipe, tmp_path / "world")
    world: Any = reverie.load(out)
    assert world.config.actions == source.spec().actions
    assert world.lam is None and not (out / "lam").exists()


def test_learn_in_no_time_and_interrupted(tmp_path, monkeypatch, capsys):
    """``learn`` itself: every stage is timed, then does its fewest steps; stopped on the way, it goes on from there."""
    clips, out, kept = films(tmp_path / "clips"), tmp_path / "world", budget.fit
    monkeypatch.setattr(module, "fitting", lambda spec, *args: shrunk(fitting(spec, *args), spec))

    def stopped(run, folder, **options):
        if folder.name == ".trial-dynamics":
            raise Interrupted(143)
        return kept(run, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(budget, "fit", stopped)
        with pytest.raises(SystemExit):
            module.learn(str(clips), out, minutes=0.0001)
    assert not list(out.glob(".*")), "the trial is gone"
    before = stamps(out)
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_run", lambda place, **_: (place / "eval.json").write_text("{}"))
        assert cli.main(["learn", str(clips), "--out", str(out), "--minutes", "0.0001"]) == 0
    assert before and before.items() <= stamps(out).items()
    assert [checkpoint.steps(out / stage)[-1] for stage in STAGES] == [module.TRIAL] * 3
    before, noted = stamps(out), (out / "world.json").read_bytes()
    shutil.rmtree(clips)
    assert cli.main(["learn", str(clips), "--out", str(out), "--minutes", "0.00005"]) == 0
    assert stamps(out) == before and (out / "world.json").read_bytes() == noted
    assert "more --minutes train it further" in capsys.readouterr().out
    assert cli.main(["learn", str(clips), "--out", str(out), "--minutes", "0.0002"]) == 0
    assert [checkpoint.steps(out / stage)[-1] for stage in STAGES] == [module.TRIAL, module.TRIAL, 2 * module.TRIAL]
    noted = json.loads((out / "world.json").read_text("utf-8"))
    assert (noted["dynamics"]["steps"], noted["minutes"]) == (2 * module.TRIAL, 0.0002)
    assert not list(out.glob(".*"))
    assert json.loads((out / "eval.json").read_text("utf-8"))["action_source"] == "latent"


@pytest.fixture
def general(made, monkeypatch):
    """The small world, as the one that comes with the package to start from."""
    monkeypatch.setattr(module, "starts", lambda: {"general": made[1]})
    monkeypatch.setattr(module, "fitting", lambda spec, *args: shrunk(fitting(spec, *args), spec))
    monkeypatch.setattr(module, "evaluate_run", lambda place, **_: (place / "eval.json").write_text("{}"))
    return made[1]


def test_learning_starts_with_the_weights_that_are_better(general, tmp_path, capsys):
    """A world keeps what it began with, however often it is asked for; --fresh asks again."""
    source, store, out = SquareConfig(count=6, frames=12), tmp_path / "store", tmp_path / "world"
    write_store(store, source.spec(), source.episodes())
    words = ["learn", str(store), "--out", str(out), "--minutes", "0.0001"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    psnr = [float(each) for each in re.findall(r"([\d.]+) dB from", said)]
    best = psnr.index(max(psnr))
    assert len(psnr) == 2 and "dB from nothing" in said
    begun = ("tokenizer", "dynamics")
    assert [bool(read_record(out / stage).run.start_from) for stage in begun] == [best == 0] * 2
    assert bool(json.loads((out / "world.json").read_text("utf-8"))["tokenizer"]["start_from"]) == (best == 0)
    before = stamps(out)
    assert cli.main(words) == 0 and stamps(out) == before
    assert "dB from" not in capsys.readouterr().out
    assert cli.main([*words, "--fresh"]) == 0
    assert "dB from nothing" in capsys.readouterr().out and not before.items() & stamps(out).items()
    assert not list(out.glob(".*"))
    reverie.load(out)
    clips = films(tmp_path / "clips", 4)
    assert cli.main(["learn", str(clips), "--out", str(tmp_path / "latent"), "--minutes", "0.0001"]) == 0
    assert "dB from" not in capsys.readouterr().out, "no actions are recorded"


def test_another_game_starts_with_what_does_not_depend_on_its_actions(general, tmp_path, capsys):
    source, store = SquareConfig(count=6, frames=12), tmp_path / "store"
    write_store(store, source.spec(), source.episodes())
    words = ["learn", str(store), "--minutes", "0.0001", "--pretrained"]
    assert cli.main([*words, str(general), "--out", str(tmp_path / "world")]) == 0
    report = json.loads((tmp_path / "world" / "dynamics" / "start.json").read_text("utf-8"))
    assert [*report["of other actions"]] == ["dynamics.actions.table"] and not report["new"]
    assert "weights are from" in capsys.readouterr().out
    assert reverie.load(tmp_path / "world").config.actions == source.spec().actions
    assert cli.main([*words, "nowhere", "--out", str(tmp_path / "other")]) == 2
    assert cli.main([*words, str(general / "tokenizer"), "--out", str(tmp_path / "other")]) == 2
    last = capsys.readouterr().err.splitlines()
    assert cli.main(["learn", str(store), "--minutes", "0.0001", "--out", str(tmp_path / "world")]) == 0, "it is done"
    assert cli.main([*words, str(general), "--out", str(tmp_path / "world"), "--fresh"]) == 0, "in a folder deeper"
    shutil.rmtree(tmp_path / "world" / "dynamics")
    assert cli.main([*words, "none", "--out", str(tmp_path / "world")]) == 2
    assert "give the same --pretrained, or start over with --fresh" in capsys.readouterr().err
    assert "there is nothing at" in last[-2] and "is no world to start from" in last[-1]
    assert not (tmp_path / "other").exists()
