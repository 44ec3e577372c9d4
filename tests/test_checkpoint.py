"""What is saved can be loaded from its path alone, on other devices, after damage; or says in one line why not."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import state
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie.checksums import checked, crc, write_json
from reverie.errors import Damaged, ReverieError
from reverie.training import checkpoint, plain
from reverie.training.blueprint import Blueprint
from reverie.training.checkpoint import load
from reverie.training.engine import fit
from reverie.training.export import export, export_weights
from reverie.training.partial import take

DATA = toy_dataset()
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps with checkpoints at 2, 3 and 4."""
    return fit(toy_run(4, report_every=0, save_every=1, keep=3), tmp_path_factory.mktemp("runs") / "toy", dataset=DATA)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def leaves(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in checkpoint.named(jax.tree.map(jnp.asarray, model)).items()}


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


def damage(run, step, how):
    """Cut, remove or garble the largest file of a checkpoint's weights."""
    found = [file for file in (run / "checkpoints" / str(step) / "weights").rglob("*") if file.is_file()]
    file = max(found, key=lambda file: file.stat().st_size)
    raw = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    elif how == "gone":
        file.unlink()
    else:
        raw[len(raw) // 2] ^= 4  # one bit, in the middle of some weight
        file.write_bytes(raw)


@pytest.mark.parametrize("how", ["cut", "gone", "one bit"])
def test_a_damaged_checkpoint_is_passed_over_with_a_line(run, capsys, how):
    damage(run, 4, how)
    model = load(run)
    assert int(model.calls[...]) == 3
    assert "The checkpoint of step 4" in capsys.readouterr().err
    for step in (2, 3):
        damage(run, step, how)
    with pytest.raises(ReverieError, match="none of its checkpoints can be read"):
        load(run)


@pytest.mark.parametrize("gone", [{2}, {3}, {2, 3}, {4}, {2, 4}, {3, 4}, {2, 3, 4}], ids=str)
def test_the_newest_checkpoint_is_missed_and_no_older_one(run, gone, capsys):
    for step in gone:
        shutil.rmtree(run / "checkpoints" / str(step))
    if len(gone) == 3:
        with pytest.raises(ReverieError, match="its checkpoint of step 4 is missing"):
            load(run)
    else:
        left = max({2, 3, 4} - gone)
        assert int(load(run).calls[...]) == left
        said = f"The checkpoint of step 4 in '{run}' is missing; the newest left is of step {left}.\n"
        assert capsys.readouterr().err == said * (4 in gone)


@pytest.mark.parametrize("gone", [(), (4,), (2, 3, 4)], ids=["damaged", "newest deleted", "all deleted"])
def test_training_goes_on_from_the_checkpoint_before_the_damaged_one(run, trained, gone, capsys):
    damage(run, 4, "cut")
    for step in gone:
        shutil.rmtree(run / "checkpoints" / str(step))
    fit(toy_run(4, report_every=0, save_every=1, keep=3), run, dataset=DATA)
    said = {0: "is damaged (", 1: "is missing; the newest left is of step 3.", 3: "is missing: training starts over."}
    assert f"The checkpoint of step 4 in '{run}' {said[len(gone)]}" in capsys.readouterr().err
    assert checkpoint.steps(run)[-1] == 4
    for (name, a), b in zip(leaves(load(trained)).items(), leaves(load(run)).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert (run / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    assert not capsys.readouterr().err


def swap(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


FOREIGN = {
    "no averaged weights": lambda root: shutil.rmtree(root / "4" / "ema"),
    "no optimizer": lambda root: shutil.rmtree(root / "4" / "optimizer"),
    "no weights": lambda root: shutil.rmtree(root / "4" / "weights"),
    "another step": lambda root: swap(root / "4", root / "2"),
    "another step's weights": lambda root: swap(root / "4" / "weights", root / "2" / "weights"),
    "items exchanged": lambda root: swap(root / "4" / "ema", root / "4" / "weights"),
    "a file more": lambda root: (root / "4" / "ema" / "more").touch(),
    "no manifest": lambda root: (root / "4" / "seal.json").unlink(),
    "no manifest and no metadata": lambda root: [
        (root / "4" / name).unlink() for name in ("seal.json", "_CHECKPOINT_METADATA")
    ],
    "another manifest": lambda root: shutil.copy(root / "3" / "seal.json", root / "4" / "seal.json"),
    "a manifest of another step": lambda root: swap(root / "4" / "seal.json", root / "2" / "seal.json"),
    "an empty folder": lambda root: (shutil.rmtree(root / "4"), (root / "4").mkdir()),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_missing_or_foreign_content_is_damage_and_is_passed_over(run, trained, what, capsys):
    FOREIGN[what](run / "checkpoints")
    step, found = checkpoint.restore(run, lambda *_: HERE, ("weights", "ema", "optimizer"))
    assert step == 3 and "The checkpoint of step 4" in capsys.readouterr().err
    (trained_step, truth) = checkpoint.restore(trained, lambda *_: HERE, ("weights", "ema", "optimizer"), newest=3)
    assert trained_step == 3
    for item, weights in truth.items():
        assert weights and found[item].keys() == weights.keys()
        for name, leaf in weights.items():
            np.testing.assert_array_equal(found[item][name], leaf)
    assert not checkpoint.is_done(run, checkpoint.read_record(run).run)


@pytest.mark.parametrize(
    "error", [OSError(116, "Stale file handle"), MemoryError(), RuntimeError("RESOURCE_EXHAUSTED")]
)
def test_an_error_that_passes_is_raised_and_nothing_changes(run, monkeypatch, error, capsys):
    before = files(run)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_read", fail)
        with pytest.raises((OSError, MemoryError, ReverieError)) as caught:
            fit(toy_run(4, report_every=0, save_every=1, keep=3), run, dataset=DATA)
    assert caught.value is error or ("step 4" in str(caught.value) and "nothing was changed" in str(caught.value))
    with monkeypatch.context() as patch:
        patch.setattr("reverie.checksums.crc", fail)
        with pytest.raises(type(error)):
            load(run)
    assert "damaged" not in capsys.readouterr().err and files(run) == before
    assert int(load(run).calls[...]) == 4


def test_no_flipped_bit_of_a_record_loads_another_config(run):
    good = (run / "run.json").read_bytes()
    truth = checkpoint.read_record(run)
    rng, refused = np.random.default_rng(0), 0
    for bit in rng.choice(8 * len(good), 400, replace=False).tolist():
        broken = bytearray(good)
        broken[bit // 8] ^= 1 << bit % 8
        (run / "run.json").write_bytes(broken)
        try:
            assert checkpoint.read_record(run) == truth
        except ReverieError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300
    data = json.loads(good)
    del data["run"]["batch"]
    (run / "run.json").write_text(json.dumps(data))
    with pytest.raises(ReverieError, match="checksum differs"):
        checkpoint.read_record(run)
    del data["checksum"]
    (run / "run.json").write_text(json.dumps(data))
    with pytest.raises(ReverieError, match="checksum is missing"):
        checkpoint.read_record(run)


def test_a_wrong_path_is_one_line_and_creates_nothing(run, tmp_path):
    before = files(tmp_path)
    for path, says in [
        (tmp_path / "rum", "Did you mean 'run'"),
        (tmp_path / "no" / "where", "there is nothing at"),
        (tmp_path, "It has stages: run; name one of them"),
        (run / "checkpoints", "holds no trained model"),
        (run / "run.json", "holds no trained model"),
    ]:
        with pytest.raises(ReverieError, match=says) as error:
            load(path)
        assert "\n" not in str(error.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(format=99), "newer than this one"),
        (lambda data: data["run"].update({"class": "os:system"}), "not a config of this version"),
        (lambda data: data["run"]["objective"].update(width=8), "does not fit this version of the code"),
        (lambda data: data["run"]["objective"].update(colour=8), "has no field 'colour'"),
        (lambda data: data.pop("spec"), "damaged"),
    ],
)
def test_a_record_that_cannot_be_used_is_one_line(run, change, says):
    data = json.loads((run / "run.json").read_text())
    del data["checksum"]
    data["format"] = 1
    change(data)
    (run / "run.json").write_text(json.dumps(data))
    with pytest.raises(ReverieError, match=says) as error:
        load(run)
    assert "\n" not in str(error.value)


def test_a_world_folder_is_its_dynamics(run, tmp_path):
    world = tmp_path / "world"
    world.mkdir()
    run.rename(world / "dynamics")
    assert type(load(world)) is type(load(world / "dynamics"))


def test_an_export_is_small_loads_the_same_and_names_no_place(run, tmp_path):
    slim = export(run, tmp_path / "slim")
    for (name, a), b in zip(leaves(load(run)).items(), leaves(load(slim)).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert not {"metrics.jsonl", "optimizer", "ema"} & {file.name for file in slim.rglob("*")}
    assert not [file for file in slim.rglob("*") if file.is_file() and str(tmp_path).encode() in file.read_bytes()]
    size = sum(file.stat().st_size for file in slim.rglob("*") if file.is_file())
    assert size < sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / 3
    with pytest.raises(ReverieError, match="exists already"):
        export(run, slim)
    with pytest.raises(ReverieError, match="holds weights only"):
        fit(toy_run(4), slim, dataset=DATA)
    world = tmp_path / "world"
    world.mkdir()
    run.rename(world / "dynamics")
    (world / "world.json").write_text("{}")
    assert load(export(world, tmp_path / "shared")).calls[...] == 4
    assert (tmp_path / "shared" / "world.json").exists()


def test_no_folder_no_export(tmp_path):
    with pytest.raises(ReverieError, match="there is nothing at"):
        export(tmp_path / "nowhere", tmp_path / "slim")
    assert not files(tmp_path)


def test_a_run_goes_on_on_other_devices(tmp_path, devices):
    run = toy_run(2, ToyObjective(width=128), mesh="fsdp", report_every=0)
    longer = toy_run(4, ToyObjective(width=128), mesh="fsdp", report_every=0)
    devices(2)
    straight = fit(longer, tmp_path / "straight", dataset=DATA)
    moved = fit(run, tmp_path / "moved", dataset=DATA)
    devices(4)
    fit(longer, moved, dataset=DATA)
    for (name, a), b in zip(leaves(load(straight)).items(), leaves(load(moved)).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)


def test_a_disk_without_room_is_reported_beforehand(run, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "4")
    full = type(shutil.disk_usage(run))(total=100, used=90, free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(ReverieError, match=r"the disk is full: .* The checkpoint of step 3 is intact"):
        fit(toy_run(4, report_every=0, save_every=1, keep=3), run, dataset=DATA)
    assert int(load(run).calls[...]) == 3


def test_the_best_report_is_kept_and_loads_by_its_step(tmp_path, capsys):
    """Of a number that only rises, the least is the first; also after a restart, which reads it from the log."""
    run = toy_run(8, keep=1, save_every=100, report_every=2, keep_best="min:psnr")
    out = fit(run, tmp_path / "run", dataset=DATA)
    assert checkpoint.steps(out) == [2, 6, 8] and int(load(out, step=2).calls[...]) == 2
    with pytest.raises(ReverieError, match="has no checkpoint of step 3, but of 2, 6, 8"):
        load(out, step=3)
    for step in (6, 8):
        shutil.rmtree(out / "checkpoints" / str(step))
    fit(run, out, dataset=DATA)
    assert checkpoint.steps(out) == [2, 6, 8]
    fit(toy_run(2, keep_best="pnsr"), tmp_path / "wrong", dataset=DATA)
    assert "no number 'pnsr' for keep_best. Did you mean 'psnr'?" in capsys.readouterr().err
    with pytest.raises(ReverieError, match="set report_every"):
        fit(toy_run(2, keep_best="psnr", report_every=0), tmp_path / "none", dataset=DATA)


def test_a_run_starts_with_the_weights_of_another_that_fit(tmp_path, trained, capsys):
    shutil.copytree(trained, tmp_path / "toy")
    run = toy_run(1, ToyObjective(frozen=()), report_every=0, start_from="../toy")
    out = fit(run, tmp_path / "run", dataset=DATA)
    said = "8 of 10 weights are from '{}', step 4; 2 new (projection.linear.bias, projection.linear.kernel)"
    assert said.format(tmp_path / "toy") in capsys.readouterr().out
    (_, old), (_, new) = (checkpoint.restore(place, lambda *_: HERE, ("weights", "ema")) for place in (trained, out))
    assert int(new["weights"]["calls"]) == 5, "statistics go on"
    for name, averaged in old["ema"].items():  # the first update has a rate of zero
        np.testing.assert_array_equal(new["weights"][name], averaged, err_msg=name)
    report = checked(json.loads((out / "start.json").read_text()), "it")
    assert report["taken"]["out.kernel"] == [16, 48] and [*report["new"].values()] == [[16], [48, 16]]


def test_a_run_starts_with_plain_weights_too(tmp_path, trained):
    file = export_weights(trained, tmp_path / "plain.safetensors")
    whole = plain.read(file)
    plain.write(file, whole._replace(weights={name: 2 * array for name, array in whole.weights.items()}))
    blueprint = Blueprint(ToyObjective(), DATA.spec, 0, tmp_path)
    (ours, theirs) = (take(str(source), tmp_path, blueprint, lambda *_: HERE) for source in (trained, file))
    assert [*theirs.weights] == [*ours.weights] and theirs.report["run"] == file.name
    for name, array in ours.weights.items():
        np.testing.assert_array_equal(theirs.weights[name], 2 * array, err_msg=name)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Damaged, match="is not what was written"):
        take(str(file), tmp_path, blueprint, lambda *_: HERE)


def test_weights_that_do_not_fit_are_listed_with_their_shapes(tmp_path, trained):
    def taken(width):
        blueprint = Blueprint(ToyObjective(width=width), DATA.spec, 0, tmp_path)
        return take(str(trained), tmp_path, blueprint, lambda *_: HERE)

    narrow = taken(8)
    assert {*narrow.weights} == {"calls", "out.bias"} and not narrow.report["new"] and not narrow.report["not used"]
    assert narrow.report["another shape"]["out.kernel"] == [(16, 48), (8, 48)]
    assert len(taken(16).weights) == 8
    for start, says in [
        ("../nowhere", "there is nothing at"),
        ("reverie:platfrom/tokenizer", "no weights 'reverie:platfrom/tokenizer' come with Reverie.*'platformer'"),
        ("reverie:platformer/../dynamics", "no weights"),
    ]:
        with pytest.raises(ReverieError, match=says):
            fit(toy_run(1, start_from=start), tmp_path / "run", dataset=DATA)
        assert not (tmp_path / "run").exists()


def test_plain_weights_load_as_the_same_model_wherever_they_lie(tmp_path):
    """Of a run on top of another run, neither of which is there any more."""
    fit(toy_run(2, ToyObjective(frozen=()), report_every=0), tmp_path / "runs" / "first", dataset=DATA)
    run = fit(toy_run(2, ToyObjective(other="../first"), report_every=0), tmp_path / "runs" / "second", dataset=DATA)
    truth = state(load(run))
    with pytest.raises(ReverieError, match="cannot write"):
        export_weights(run, tmp_path / "nowhere" / "toy.safetensors")
    file = export_weights(run, tmp_path / "toy.safetensors")
    with pytest.raises(ReverieError, match="exists already"):
        export_weights(run, file)
    text = (tmp_path / "toy.json").read_text("utf-8")
    assert str(tmp_path) not in text and len(json.loads(text)["others"]) == 1
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(tmp_path / "runs")
    for name in ("toy.safetensors", "toy.json"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = tmp_path / "elsewhere" / "toy.safetensors"
    found = state(load(moved))
    assert found.keys() == truth.keys() and any(name.startswith("projection") for name in found)
    for name, array in truth.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    good = moved.read_bytes()
    for broken in (good[:-1], good[:100] + bytes([good[100] ^ 1]) + good[101:], b""):
        moved.write_bytes(broken)
        with pytest.raises(ReverieError, match="not what was written"):
            load(moved)
    moved.write_bytes(good)
    hostile(moved)


def hostile(file):
    """Headers that are made to be wrong, with right checksums: an error of one line, and no memory is taken."""
    about = checked(json.loads(plain.beside(file).read_text()), "it")
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    for header in ({"x": entry}, {"x": {**entry, "dtype": "O"}}, {"x": {**entry, "data_offsets": [0, 8]}}, {}):
        raw = json.dumps(header).encode()
        file.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8 if header else 0))
        write_json(plain.beside(file), {**about, "bytes": file.stat().st_size, "crc": crc(file)})
        with pytest.raises(ReverieError, match="not a file of plain weights|does not fit this version") as error:
            load(file)
        assert "\n" not in str(error.value)
