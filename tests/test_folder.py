"""No command that is refused, fails or is killed leaves the folder of a run worse than it found it."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from test_resume import DATA, same, state
from toy_objective import ToyObjective, toy_run

from reverie.config import replace
from reverie.errors import ReverieError
from reverie.training import checkpoint, folder
from reverie.training.checkpoint import load
from reverie.training.engine import fit

SHORT, LONG = toy_run(8, save_every=4), toy_run(16, save_every=4)


def content(out: Path) -> dict[str, bytes]:
    """Every file of a run by its name, but for what has been begun to take its place."""
    files = {path.relative_to(out): path for path in sorted(out.rglob("*")) if path.is_file()}
    mine = {name: file for name, file in files.items() if name.parts[0] != ".next" and name.name != ".lock"}
    return {str(name): file.read_bytes() for name, file in mine.items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return fit(LONG, tmp_path_factory.mktemp("straight") / "run", dataset=DATA, progress=False)


@pytest.fixture
def out(tmp_path):
    return fit(SHORT, tmp_path / "run", dataset=DATA, progress=False)


def test_a_refused_command_changes_nothing(out, tmp_path, monkeypatch):
    before = content(out)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for run, fresh, says in [
        (replace(LONG, loggers=("wandb",)), False, "needs the package wandb"),
        (replace(LONG, loggers=("wandb",)), True, "needs the package wandb"),
        (replace(LONG, **{"objective.frozen": ("nothing",)}), True, "cannot be frozen"),
        (replace(LONG, **{"objective.other": "../missing"}), True, "there is nothing at"),
        (replace(LONG, batch=0), True, "batch must be at least 1"),
        (replace(LONG, length=99), True, "no episode is long enough"),
        (replace(LONG, batch=16), False, "holds another run"),
    ]:
        with pytest.raises(ReverieError, match=says):
            fit(run, out, dataset=DATA, progress=False, fresh=fresh)
        assert content(out) == before and not (out / ".next").exists()
    with pytest.raises(ReverieError, match="needs the package wandb"):
        fit(replace(LONG, loggers=("wandb",)), tmp_path / "new", dataset=DATA)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_a_logger_that_refuses_leaves_a_finished_run_as_it_was(tmp_path, monkeypatch, schedule):
    """The package is there, but old, or no user is logged in: met only when it is used."""
    (tmp_path / "wandb.py").write_text("def init(**_):\n    raise RuntimeError('api_key not configured\\nlog in')\n")
    (tmp_path / "tensorboardX.py").write_text("import numpy\nnumpy.float_\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("wandb", "tensorboardX"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    short, long = (replace(run, **{"optimizer.schedule": schedule}) for run in (SHORT, LONG))
    out = fit(short, tmp_path / "run", dataset=DATA, progress=False)
    before = content(out)
    for logger, says in [("wandb", r"cannot begin: api_key not configured\.$"), ("tensorboard", "does not work")]:
        with pytest.raises(ReverieError, match=says) as error:
            fit(replace(long, loggers=(logger,)), out, dataset=DATA, progress=False)
        assert "\n" not in str(error.value)
        left = content(out)
        left.pop("wandb-id", None)
        assert left == before and load(out) is not None


@pytest.mark.parametrize("fresh", [False, True])
def test_what_was_there_stays_until_its_successor_is_complete(out, straight, monkeypatch, fresh):
    before, seen = content(out), []
    writer = checkpoint.Writer.save

    def save(self, step, items):
        saved = writer(self, step, items)
        self.wait()
        assert content(out) == before
        load(out)
        seen.append(step)
        if step == 12 and len(seen) < 4:
            raise KeyboardInterrupt
        return saved

    monkeypatch.setattr(checkpoint.Writer, "save", save)
    with pytest.raises(KeyboardInterrupt):
        fit(LONG, out, dataset=DATA, progress=False, fresh=fresh)
    assert content(out) == before and checkpoint.steps(out) == [6, 8]
    fit(LONG, out, dataset=DATA, progress=False)
    assert seen[-1] == 16 and seen.count(12) == 1, "it goes on from where it was killed"
    same(straight, out)
    assert {path.name for path in out.iterdir() if path.name[0] == "."} == set()


def test_asked_again_for_what_is_there_what_was_begun_is_forgotten(out, monkeypatch):
    before = content(out)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Writer, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(LONG, out, dataset=DATA, progress=False)
    assert (out / ".next").exists()
    fit(SHORT, out, dataset=DATA, progress=False)
    assert not (out / ".next").exists()
    assert content(out).keys() == before.keys() and state(out)[0] == 8


def test_a_replacement_cut_short_at_any_rename_is_finished_by_whoever_comes_next(tmp_path, monkeypatch):
    """From the second rename on, which gives ``.commit`` its name; before it, nothing has changed."""
    rename = os.replace
    for cut in range(100):
        out, left = tmp_path / f"{cut}", iter(range(cut))
        for place, text in ((out, "old"), (out / "a", "old"), (out / "gone", "old")):
            place.mkdir(exist_ok=True)
            for name in ("run.json", "metrics.jsonl", "notes.txt"):
                (place / name).write_text(text)
        new = folder.begin(out, lambda item: False)
        for place in (new, new / "a"):
            place.mkdir(exist_ok=True)
            for name in ("run.json", "metrics.jsonl", "timing.jsonl"):
                (place / name).write_text("new")

        def replace(*args, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            rename(*args)

        with monkeypatch.context() as patch, folder.owned(out):
            patch.setattr(os, "replace", replace)
            try:
                folder.commit(out)
                done = True
            except KeyboardInterrupt:
                done = False
        folder.settled(out)
        before = dict.fromkeys(("run.json", "metrics.jsonl", "notes.txt"), "old")
        after = dict.fromkeys(("run.json", "metrics.jsonl", "timing.jsonl"), "new") | {"notes.txt": "old"}
        for place in (out, out / "a"):
            found = {path.name: path.read_text() for path in place.iterdir() if path.is_file()}
            assert found == (after if cut > 1 else before), cut
        assert {path.name for path in (out / "gone").iterdir()} == ({"notes.txt"} if cut > 1 else before.keys())
        if done:
            return
    raise AssertionError("it never ended")


def test_a_damaged_plan_of_a_replacement_is_one_line(tmp_path):
    (tmp_path / ".commit").mkdir()
    (tmp_path / ".commit" / ".plan").write_text('{"moved": []}')
    with pytest.raises(ReverieError, match="checksum is missing"), folder.owned(tmp_path):
        pass


def test_leftovers_of_kills_are_removed_by_the_next_command(out):
    left = [out / ".run.json.77", out / "metrics.77", out / "cache" / ".train.77", out / ".old" / "checkpoints"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if path.suffix != ".77" else path.write_text("half")
    fit(SHORT, out, dataset=DATA, progress=False)
    assert not [path for path in left if path.exists()]


def test_weights_that_the_last_update_broke_are_not_saved(tmp_path):
    run = replace(toy_run(3), **{"optimizer.rate": 3.4e38, "optimizer.warmup": 0, "optimizer.weight_decay": 1.0})
    with pytest.raises(ReverieError, match=r"not finite.*there is no checkpoint yet"):
        fit(replace(run, steps=1), tmp_path / "run", dataset=DATA, progress=False)
    assert not checkpoint.steps(tmp_path / "run")


def test_a_run_of_another_objective_begun_anew_replaces_all(out):
    fit(toy_run(2, ToyObjective(width=8)), out, dataset=DATA, fresh=True, progress=False)
    assert load(out).out.kernel.shape[0] == 8 and checkpoint.steps(out) == [2]
    assert np.all([line.count('"step"') for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()])
