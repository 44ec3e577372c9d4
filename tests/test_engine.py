"""The training loop: its order, what it changes and what it must not, on one device and on many."""

import dataclasses
import fcntl
import functools
import json
import os
import re
import resource
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Primitive
from toy_objective import ToyObjective, toy_dataset, toy_run, traces

from reverie.data.arrays import ArrayDataset
from reverie.data.loader import clips
from reverie.errors import ReverieError
from reverie.nn.compiled import compiled
from reverie.training import checkpoint, flops, sharding
from reverie.training.blueprint import Blueprint
from reverie.training.checkpoint import load
from reverie.training.engine import Interrupted, fit
from reverie.training.log import Log
from reverie.training.optim import OptimConfig

DATA, KEY = toy_dataset(), jax.random.key(0)


def here(*_):
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def weights(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in checkpoint.named(nnx.state(model)).items()}


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_logs_reports_and_compiles_once(tmp_path, capsys):
    traces.clear()
    out = fit(toy_run(40, log_every=10, report_every=20, save_every=20, keep=1), tmp_path / "run", dataset=DATA)
    assert traces == ["loss", "report"], "each program is traced once, FLOPs included"
    log = lines(out)
    assert [line["step"] for line in log if "loss" in line] == [1, 10, 20, 30, 40]
    assert [line["step"] for line in log if "report/psnr" in line] == [20, 40]
    assert log[-2]["loss"] < 0.7 * log[0]["loss"]
    assert {"grad_norm", "learning_rate", "psnr"} <= set(log[0])
    assert [line["report/calls"] for line in log if "report/calls" in line] == [20, 40], "reports see what is saved"
    assert checkpoint.steps(out) == [30, 40], "the last, and where the rate began to fall"
    assert sorted(file.name for file in (out / "report").iterdir()) == ["00000020-made.png", "00000040-made.png"]
    timing = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    planned, _, *others = timing  # the first step's speed has no time to be measured in
    assert all(line["flops_per_s"] > 0 and line["frames_per_s"] > 0 for line in others)
    held = sum(array.nbytes for array in weights(load(out)).values())
    assert held < planned["planned_bytes"] < 100 * held
    assert "step" in capsys.readouterr().out


def test_frozen_means_frozen_and_what_the_loss_changes_is_kept(tmp_path):
    out = fit(toy_run(), tmp_path / "run", dataset=DATA)
    before = Blueprint(ToyObjective(), DATA.spec, 3, tmp_path)
    start = before.build(here)
    saved = before.split(model := load(out), "frozen")
    assert saved, "there is something frozen"
    for name, leaf in saved.items():
        np.testing.assert_array_equal(leaf, start[name])
    for name in before.parts["params"]:
        assert not np.array_equal(before.split(model, "params")[name], start[name]), f"{name} was not trained"
    assert int(model.calls[...]) == 6
    assert float(jnp.abs(model.mean[...] - model.spread[...]).max()) > 0
    _, found = checkpoint.restore(out, here, ("weights", "ema", "optimizer"))
    assert not [n for item in found.values() for n in item if "projection" in n], "frozen parts are not saved again"


def test_a_frozen_part_comes_from_the_run_that_trained_it(tmp_path):
    first = fit(toy_run(2, ToyObjective(frozen=())), tmp_path / "first", dataset=DATA)
    second = fit(toy_run(4, ToyObjective(other="../first")), tmp_path / "second", dataset=DATA)
    expected = weights(load(first).projection)
    for name, leaf in weights(load(second).projection).items():
        np.testing.assert_array_equal(leaf, expected[name])
    fit(toy_run(2, ToyObjective(frozen=()), seed=9), first, dataset=DATA, fresh=True)
    for use in (lambda: load(second), lambda: fit(toy_run(4, ToyObjective(other="../first")), second, dataset=DATA)):
        with pytest.raises(ReverieError, match="another run that has changed since"):
            use()
    fit(toy_run(2, ToyObjective(frozen=())), first, dataset=DATA, fresh=True)
    (tmp_path / "elsewhere").mkdir()
    for run in (first, second):
        run.rename(tmp_path / "elsewhere" / run.name)
    assert weights(load(tmp_path / "elsewhere" / "second").projection).keys() == expected.keys()


def test_load_gives_the_averaged_weights(tmp_path):
    out = fit(toy_run(), tmp_path / "run", dataset=DATA)
    _, found = checkpoint.restore(out, here, ("weights", "ema"))
    model = load(out)
    np.testing.assert_array_equal(model.out.kernel[...], found["ema"]["out.kernel"])
    assert not np.array_equal(model.out.kernel[...], found["weights"]["out.kernel"])


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path):
    optimizer = OptimConfig(rate=1e-2, warmup=0, eps=1e-3)
    whole = fit(toy_run(3, optimizer=optimizer, report_every=0), tmp_path / "whole", dataset=DATA)
    parts = fit(toy_run(3, optimizer=optimizer, report_every=0, accumulate=4), tmp_path / "parts", dataset=DATA)
    for a, b in zip(lines(whole), lines(parts), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)
    a, b = load(whole), load(parts)
    np.testing.assert_allclose(a.out.kernel[...], b.out.kernel[...], atol=1e-5)
    np.testing.assert_allclose(a.spread[...], b.spread[...], atol=1e-5)
    assert (int(a.calls[...]), int(b.calls[...])) == (3, 3), "statistics move once a step"


def test_reports_are_of_the_averaged_weights(tmp_path):
    out = fit(toy_run(4, optimizer=OptimConfig(rate=3e-2, warmup=0, ema=0.9)), tmp_path / "run", dataset=DATA)
    batch = clips(DATA, length=4, count=3, seed=3)

    def psnr(model):
        return float(jax.jit(lambda batch: ToyObjective().report(model, batch, KEY)["psnr"])(batch))

    averaged, online = load(out), load(out)
    _, found = checkpoint.restore(out, here, ("weights",))
    for name, weight in found["weights"].items():
        *path, last = name.split(".")
        part = functools.reduce(getattr, path, online)
        getattr(part, last)[...] = weight
    said = [line["report/psnr"] for line in lines(out) if "report/psnr" in line][-1]
    np.testing.assert_allclose(said, psnr(averaged), rtol=1e-5)
    assert abs(psnr(online) - said) > 0.1, "the two do not differ: this test sees nothing"


def test_many_devices_compute_what_one_does(devices, tmp_path):
    made = {}
    for count, layout in ((1, "data"), (4, "data"), (4, "fsdp"), (4, "data=2,fsdp")):
        devices(count)
        run = toy_run(3, ToyObjective(width=128), mesh=layout, report_every=0)
        made[count, layout] = fit(run, tmp_path / f"{layout}{count}", dataset=DATA)
    single = made.pop((1, "data"))
    for many in made.values():
        for a, b in zip(lines(single), lines(many), strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=2e-4, err_msg=name)
        for (name, a), b in zip(weights(load(single)).items(), weights(load(many)).values(), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4, err_msg=name)


def test_fsdp_spreads_the_large_and_copies_the_small(one_device):
    devices = one_device()
    assert len(devices) == 4

    def spread(*shape, layout="fsdp"):
        spec = tuple(sharding.sharding(sharding.make_mesh(layout, devices), "w", shape).spec)
        return spec + (None,) * (len(shape) - len(spec))

    assert spread(2, 128, 256) == (None, None, "fsdp") == spread(2, 128, 256, layout="data=2,fsdp=2")
    assert spread(256, 128, 3) == ("fsdp", None, None)
    assert spread(128, 128) == (None, "fsdp")
    assert spread(2, 8) == (None, None) and spread() == ()
    assert spread(101, 1001) == (None, None), "no axis can be divided by four"
    assert spread(256, 256, layout="data") == (None, None)


def test_what_cannot_be_spread_is_named(tmp_path, devices, capsys):
    """129 columns and as many rows: no axis of the middle layer can be divided by four."""
    devices(4)
    run = toy_run(2, ToyObjective(width=129), mesh="fsdp", report_every=0)
    fit(run, tmp_path / "run", dataset=DATA)
    said = [line for line in capsys.readouterr().out.splitlines() if "no axis can be divided by 4" in line]
    assert len(said) == 1 and "layers.linear.kernel (2, 129, 129) 0.133 MB" in said[0] and "out." not in said[0]
    fit(dataclasses.replace(run, mesh="data"), tmp_path / "data", dataset=DATA)
    assert "no axis" not in capsys.readouterr().out


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    run = toy_run(20, ToyObjective(explode_at=6), log_every=5, save_every=2, max_skipped=4)
    with pytest.raises(ReverieError, match=r"in 4 steps in a row \(6 to 9, seed 3\).*checkpoint of step 8 is good"):
        fit(run, tmp_path / "run", dataset=DATA)
    assert int(load(tmp_path / "run").calls[...]) == 5, "the steps since then changed nothing"
    assert all(np.isfinite(leaf).all() for leaf in weights(load(tmp_path / "run")).values())


class Interrupting(ArrayDataset):
    """Data during whose reading a signal arrives: in the batch of the step after ``at``."""

    reads, at, number = 0, 0, 0

    def clips(self, *args):
        self.reads += 1
        if self.reads == self.at:
            os.kill(os.getpid(), self.number)
        return super().clips(*args)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_before_leaving(tmp_path, capsys, number, code):
    run = toy_run(50, save_every=100, report_every=0)
    data = Interrupting(DATA.spec, DATA.lengths, DATA.arrays, DATA.fingerprint)
    data.at, data.number = 5, number
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        fit(run, tmp_path / "run", dataset=data, held_out=DATA)
    assert stopped.value.code == code
    assert checkpoint.steps(tmp_path / "run") == [5]
    assert signal.getsignal(number) is handler
    assert "Stopped at step 5 of 50" in capsys.readouterr().out


def test_bad_settings_are_one_line_and_leave_nothing(tmp_path, devices):
    devices(4)
    with pytest.raises(ReverieError, match="a batch of 10 cannot be shared by 4 devices"):
        fit(toy_run(batch=10), tmp_path / "run", dataset=DATA)
    with pytest.raises(ReverieError, match="no episode is long enough"):
        fit(toy_run(length=13), tmp_path / "run", dataset=DATA)
    with pytest.raises(ReverieError, match="there is no dataset at"):
        fit(toy_run(data="nowhere"), tmp_path / "run")
    with pytest.raises(ReverieError, match="'decoder' cannot be frozen"):
        fit(toy_run(2, ToyObjective(frozen=("decoder",))), tmp_path / "run", dataset=DATA)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ReverieError, match="cannot write to"):
        fit(toy_run(), tmp_path / "file" / "run", dataset=DATA)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ReverieError, match="another process is at work in"):
            fit(toy_run(2), tmp_path / "run", dataset=DATA)
    fit(toy_run(2), tmp_path / "run", dataset=DATA)


def test_a_disk_that_refuses_is_one_line(tmp_path):
    fit(toy_run(2), tmp_path / "warm", dataset=DATA)  # so that nothing is compiled, and cached, under the limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # run.json does not fit
    try:
        with pytest.raises(ReverieError, match="cannot write to") as error:
            fit(toy_run(2), tmp_path / "full", dataset=DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_leave_valid_json(tmp_path):
    with Log(tmp_path, steps=2, resume=0, frames=1, progress=False) as log:
        log.metrics(1, {"psnr": np.inf, "loss": 0.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.0, "psnr": None}


def test_a_log_that_was_cut_short_is_cut_back_to_the_checkpoint(tmp_path):
    lines = [json.dumps({"step": step, "loss": step / 7}) + "\n" for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 5, "lo')
    with Log(tmp_path, steps=9, resume=3, frames=1, progress=False):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:3])


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for columns in (200, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        fit(toy_run(4, report_every=0), tmp_path / "run", dataset=DATA, fresh=True)
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).splitlines()
        last = lines[-1].rstrip()
        assert len(last) <= columns
        for word in ("run", "4/4", "0:00", "loss"):
            assert word in last, f"a terminal of {columns} columns does not show '{word}': {last}"


def test_every_number_is_printed_on_request(tmp_path, capsys):
    out = fit(toy_run(2, log_every=1, report_every=0, loggers=("terminal",)), tmp_path / "run", dataset=DATA)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2: ")]
    numbers = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf8").splitlines()][-1]
    assert len(printed) == 1 and all(f"{name} {numbers[name]:.4g}" in printed[0] for name in numbers if name != "step")


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
    out = fit(toy_run(2, loggers=("tensorboard",)), tmp_path / "run", dataset=DATA)
    assert [file for file in (out / "tensorboard").iterdir() if file.stat().st_size > 100]


@pytest.mark.parametrize("steps", [8, 5], ids=["two of them", "the run ends before"])
def test_a_profile_of_a_few_steps_is_written(tmp_path, capsys, steps):
    out = fit(toy_run(steps, profile=2, report_every=0, save_every=0), tmp_path / "run", dataset=DATA)
    assert [file for file in (out / "profile").rglob("*.xplane.pb") if file.stat().st_size > 1000]
    assert capsys.readouterr().out.count("A profile is in") == 1


def test_a_missing_logger_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ReverieError, match=r"pip install 'reverie-worlds\[wandb\]'"):
        fit(toy_run(loggers=("wandb",)), tmp_path / "run", dataset=DATA)


def test_compiled_calls_the_model_and_builds_one_program_per_shape():
    linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    call = compiled(linear, lambda model, x, memory: (model(x), memory + 1), donate=(1,))
    memory = jnp.zeros(4)
    for _ in range(3):
        y, memory = call(jnp.ones((5, 3)), memory)
    np.testing.assert_allclose(y, linear(jnp.ones((5, 3))), rtol=1e-6)
    assert call.compilations == 1 and float(memory[0]) == 3
    call(jnp.ones((6, 3)), memory)
    assert call.compilations == 2 and memory.is_deleted()


def test_flops_of_loops_branches_and_convolutions():
    x = jnp.ones((8, 16))
    w = jnp.ones((16, 16))

    def count(fn, *args):
        return flops.count(jax.jit(fn).trace(*args).jaxpr)

    once = 2 * 8 * 16 * 16
    assert count(lambda x, w: x @ w, x, w) == once
    assert count(lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=7)[0], x, w) == 7 * once
    assert count(lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), x, w) == 2 * once

    @jax.named_scope("share=0.25")
    def sometimes(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w @ w, lambda: x)

    assert count(sometimes, x, w) == 0.75 * once
    assert count(jax.grad(lambda w, x: (jax.checkpoint(lambda x: x @ w)(x) ** 2).sum()), w, x) >= 2 * once
    image, kernel = jnp.ones((2, 10, 10, 4)), jnp.ones((3, 3, 2, 6))

    def conv(image, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=2
        )

    assert count(conv, image, kernel) == 2 * (2 * 10 * 10 * 6) * (3 * 3 * 2)


def test_flops_of_cudnns_attention_are_those_of_what_it_replaces():
    """JAX traces cuDNN's calls on GPUs only; their equations are made by hand here, forward and back."""
    q, k = jnp.ones((3, 8, 4, 16)), jnp.ones((3, 6, 2, 16))

    def call(kind):
        primitive = Primitive(f"dot_product_attention_{kind}_wrapper")
        primitive.def_abstract_eval(lambda q, k, v: q)
        return lambda q, k, v: primitive.bind(q, k, v)

    forward = flops.count(jax.make_jaxpr(jax.nn.dot_product_attention)(q, k, k))
    assert flops.count(jax.make_jaxpr(call("fwd"))(q, k, k)) == forward > 0
    assert flops.count(jax.make_jaxpr(call("bwd"))(q, k, k)) == 2.5 * forward


def test_the_share_of_a_peak_is_logged_where_the_peak_is_known(tmp_path, capsys):
    node = [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")] * 8
    assert flops.peak(node) == 8 * 989e12 and flops.peak(jax.devices()) == 0
    with Log(tmp_path, steps=2, resume=0, frames=1) as log:
        log.flops, log.peak = 1e6, 1e9
        log.metrics(2, {"loss": 0.0})
    timing = json.loads((tmp_path / "timing.jsonl").read_text())
    np.testing.assert_allclose(timing["mfu"], timing["flops_per_s"] / 1e9, rtol=1e-3)
    assert "% MFU" in capsys.readouterr().out
