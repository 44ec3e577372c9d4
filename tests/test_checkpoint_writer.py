"""Checkpoints as they are written: complete at every moment, in place of which others, and on which devices."""

import os
import resource
import shutil
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.checksums import check_manifest
from reverie.errors import ReverieError
from reverie.training import checkpoint, sharding
from reverie.training.checkpoint import Writer

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_a_checkpoint_is_sealed_as_soon_as_it_has_its_name(tmp_path):
    item = {"weights": {"w": jax.device_put(np.arange(5.0), HERE)}}
    with Writer(tmp_path, keep=5) as writer:
        for step in range(1, 5):
            writer.save(step, item)
            at = tmp_path / "checkpoints" / str(step)
            while not at.exists():
                time.sleep(1e-4)
            assert (check_manifest(at) or {})["step"] == step, "whoever kills it now leaves a protected checkpoint"
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
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"8", "8.saved", "9", "9.saved"}


def test_at_no_instant_does_a_run_seem_to_have_lost_a_checkpoint(tmp_path, monkeypatch):
    """Whatever it saves, replaces and deletes; wherever it is killed; and also while the next run tidies up."""
    run, seen = tmp_path / "run", []

    def watched(change):
        def looks(*args, **named):
            names = {path.name for path in (run / "checkpoints").iterdir()}
            if watching and names not in seen:
                shutil.copytree(run, tmp_path / str(len(seen)))
                seen.append(names)
            assert checkpoint.missing(run) is None
            return change(*args, **named)

        return looks

    def train(*steps, **given):
        with Writer(run, **given) as writer:
            for step in steps:
                writer.save(step, {"weights": {"w": jax.device_put(np.arange(5.0), HERE)}})

    watching = True
    for name in ("rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    train(2, 4, 6, 8, keep=2, always=[2])
    train(8, 10, keep=2, start=6, end=16)
    train(5, keep=1, start=4, end=5)
    assert checkpoint.steps(run) == [5] and checkpoint.missing(run) is None
    assert any("8.saved" in names and "8" not in names for names in seen), "a kill between the mark and the name"
    watching = False
    for number in range(len(seen)):
        run = tmp_path / str(number)
        assert checkpoint.missing(run) is None
        train(start=max(checkpoint.steps(run), default=0))
        assert checkpoint.missing(run) is None


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
    assert sorted(path.name for path in root.iterdir()) == ["3", "3.saved"]


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


def test_the_newest_the_regular_and_the_best_are_kept(tmp_path):
    with Writer(tmp_path, keep=2, always=[4], every=5) as writer:
        for step in range(1, 13):
            writer.best = lambda found: 3 if 3 in found else None
            writer.save(step, {"weights": {"w": jax.device_put(np.float32(step), HERE)}})
    assert checkpoint.steps(tmp_path) == [3, 4, 5, 10, 11, 12]
