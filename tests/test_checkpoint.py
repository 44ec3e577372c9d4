"""What is saved can be loaded from its path alone, on other devices, after damage; or says in one line why not."""

import json
import resource
import shutil
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_objective import ToyObjective, toy_dataset, toy_run

from reverie.checksums import check_manifest
from reverie.errors import ReverieError
from reverie.training import checkpoint, sharding
from reverie.training.checkpoint import Writer, load
from reverie.training.engine import fit
from reverie.training.export import export

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


def test_training_goes_on_from_the_checkpoint_before_the_damaged_one(run, trained):
    damage(run, 4, "cut")
    fit(toy_run(4, report_every=0, save_every=1, keep=3), run, dataset=DATA)
    assert checkpoint.steps(run)[-1] == 4
    for (name, a), b in zip(leaves(load(trained)).items(), leaves(load(run)).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert (run / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


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


def test_a_checkpoint_is_sealed_as_soon_as_it_has_its_name(tmp_path):
    item = {"weights": {"w": jax.device_put(np.arange(5.0), HERE)}}
    with Writer(tmp_path, keep=5) as writer:
        for step in range(1, 5):
            writer.save(step, item)
            at = tmp_path / "checkpoints" / str(step)
            while not at.exists():
                time.sleep(1e-4)
            assert check_manifest(at)["step"] == step, "whoever kills it now leaves a protected checkpoint"
    assert checkpoint.steps(tmp_path) == [1, 2, 3, 4]


def test_later_checkpoints_stay_until_a_new_one_is_as_late(tmp_path):
    def values(number):
        return {"weights": {"w": jax.device_put(np.full(3, number, np.float32), HERE)}}

    def newest():
        step, found = checkpoint.restore(tmp_path, lambda *_: HERE, ("weights",))
        return step, float(found["weights"]["w"][0])

    with Writer(tmp_path, keep=2) as writer:
        assert all(writer.save(step, values(step)) for step in (6, 8))
    with Writer(tmp_path, keep=2, start=6, end=16) as writer:
        assert not writer.save(7, values(70)) and writer.wait() == [6, 8]
        assert newest() == (8, 8), "what there was is not worse for having gone on from before it"
        assert writer.save(8, values(80))
        while not (tmp_path / "checkpoints" / "8.new").exists():
            time.sleep(1e-4)
        assert newest() == (8, 80), "the new one counts from the moment it is complete"
        assert writer.wait() == [6, 8] and newest() == (8, 80)
        assert writer.save(10, values(100))
    assert checkpoint.steps(tmp_path) == [8, 10]
    with Writer(tmp_path, keep=2, start=8, end=9) as writer:  # a shorter run: its own end replaces the later one
        assert writer.save(9, values(90))
    assert checkpoint.steps(tmp_path) == [8, 9] and newest() == (9, 90)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"8", "9"}


def test_a_kill_while_names_change_loses_nothing(tmp_path):
    item = {"weights": {"w": jax.device_put(np.arange(5.0), HERE)}}
    with Writer(tmp_path, keep=2) as writer:
        writer.save(3, item)
    root = tmp_path / "checkpoints"
    shutil.copytree(root / "3", root / "3.old")  # the old one is out of the way, the new one has no name yet
    (root / "3").rename(root / "3.new")
    (root / "5.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.steps(tmp_path) == [3]
    assert checkpoint.restore(tmp_path, lambda *_: HERE, ("weights",))[0] == 3
    with Writer(tmp_path, start=3):
        pass
    assert [path.name for path in root.iterdir()] == ["3"]


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


@pytest.mark.parametrize("layout", ["data", "fsdp", "data=2,fsdp"])
def test_weights_move_between_four_two_and_one_devices(tmp_path, layout):
    rng = np.random.default_rng(0)
    truth = {
        "large.kernel": rng.normal(size=(2, 128, 256)).astype(np.float32),
        "small": rng.normal(size=(3,)).astype(np.float32),
        "half": np.asarray(jnp.asarray(rng.normal(size=(128, 256)), jnp.bfloat16)),
        "count": np.int32(7),
    }
    for step, count in enumerate((4, 2, 1, 4)):
        here = layout if count == 4 else layout.rpartition(",")[2]
        place = partial(sharding.sharding, sharding.make_mesh(here, jax.devices()[:count]))
        if step == 0:
            arrays = {name: jax.device_put(array, place(name, array.shape)) for name, array in truth.items()}
        else:
            at, found = checkpoint.restore(tmp_path, place, ("weights",))
            assert at == step - 1
            arrays = found["weights"]
        for name, array in arrays.items():
            assert array.sharding.is_equivalent_to(place(name, array.shape), array.ndim)
            np.testing.assert_array_equal(np.asarray(array), truth[name])
        with Writer(tmp_path, keep=4) as writer:
            writer.save(step, {"weights": arrays})


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


def test_a_full_disk_is_one_line_and_spares_the_last_checkpoint(tmp_path, capfd):
    rng = np.random.default_rng(0)
    item = {"weights": {"w": jax.device_put(rng.normal(size=(256, 256)).astype(np.float32), HERE)}}
    with Writer(tmp_path, keep=2) as writer:
        writer.save(1, item)
        writer.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file may grow larger, as on a full disk
        try:
            with pytest.raises(ReverieError, match=r"cannot save to .* The checkpoint of step 1 is intact") as error:
                writer.save(2, item)
                writer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(error.value)
    assert capfd.readouterr().err == "", "the one line is all one reads"
    step, found = checkpoint.restore(tmp_path, lambda *_: HERE, ("weights",))
    assert step == 1
    np.testing.assert_array_equal(found["weights"]["w"], item["weights"]["w"])
