"""A world that an earlier version wrote loads, plays, and is trained on from where it was left."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from golden import unpack

from reverie.config import replace
from reverie.errors import ReverieError
from reverie.training import checkpoint
from reverie.training.checkpoint import load
from reverie.training.engine import fit
from reverie.world import Session
from reverie.world_folder import initial_frames

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("golden") / "world")


def test_it_loads_and_plays(world, capfd):
    model = load(world)
    weights = nnx.to_flat_state(nnx.state(model))
    total = sum(np.abs(np.asarray(leaf[...], np.float64)).sum() for _, leaf in weights)
    assert total == pytest.approx(2227.947, rel=1e-6)
    starts = initial_frames(world)
    assert starts and starts[0][0].shape[1:] == (8, 8, 3)
    session = Session(model)
    session.reset(*starts[0])
    frames = [session.step(code) for code in range(3)]
    assert {frame.shape for frame in frames} == {(8, 8, 3)}
    assert capfd.readouterr().err == "", "nothing in it counts as damaged"


@pytest.mark.parametrize("stage", ["tokenizer", "lam", "dynamics"])
def test_its_stages_are_trained_on(world, stage):
    run = checkpoint.read_record(world / stage).run
    assert checkpoint.steps(world / stage) == [run.steps] == [4]
    before = checkpoint.restore(world / stage, lambda *_: HERE, ("weights",))[1]["weights"]
    fit(replace(run, steps=6), unpack(world.with_name(stage)) / stage, progress=False)
    step, found = checkpoint.restore(world.with_name(stage) / stage, lambda *_: HERE, ("weights",))
    assert step == 6 and found["weights"].keys() == before.keys()
    made = sorted(path.name for path in (world.with_name(stage) / stage).glob("cache/*"))
    assert made == ([] if stage == "tokenizer" else ["train", "val"])
    assert any((np.asarray(found["weights"][name]) != np.asarray(before[name])).any() for name in before)


def test_its_manifests_find_missing_items(world, capsys):
    """Their format knew no step and no items, but every file."""
    folder = unpack(world.with_name("broken")) / "tokenizer"
    shutil.rmtree(folder / "checkpoints" / "4" / "optimizer")
    with pytest.raises(ReverieError, match="none of its checkpoints can be read"):
        checkpoint.restore(folder, lambda *_: HERE, ("weights", "ema", "optimizer"))
    assert "is missing" in capsys.readouterr().err


def test_a_run_on_top_of_itself_is_refused(world):
    """As when another stage's record is copied over one: loading would go round for ever."""
    broken = unpack(world.with_name("round"))
    shutil.copy(broken / "dynamics" / "run.json", broken / "lam" / "run.json")
    for folder in (broken, broken / "lam"):
        with pytest.raises(ReverieError, match="is trained on top of itself"):
            load(folder)
