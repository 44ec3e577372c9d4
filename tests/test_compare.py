"""The comparison: every row with the same arithmetic, nothing done twice, one table."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from reverie import compare as module
from reverie.compare import compare, run_of
from reverie.data.sources.platformer import PlatformerConfig
from reverie.errors import ReverieError
from reverie.evaluation.rows import curves, markdown
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.presets.comparison import Comparison, comparison, comparisons

NET = TransformerConfig(width=16, depth=1, heads=2, hidden=32, time_every=1, window=2)
EYE = TransformerConfig(width=16, depth=1, heads=2, hidden=32, space=False, time_every=0)


def shrunk(families: tuple[str, ...]) -> Comparison:
    """The comparison on the toy platformer with little of everything."""
    made: Any = comparison("toy")
    short = {"steps": 4, "report_every": 0, "save_every": 0}

    def small(run, **parts):
        return replace(run, objective=replace(run.objective, **parts), **short)

    def tokenizer(run):
        config = replace(run.objective.tokenizer, encoder=EYE, decoder=EYE)
        return small(
            run,
            tokenizer=replace(config, quantiser=VQConfig(codes=16, width=8))
            if hasattr(config, "quantiser")
            else config,
        )

    lam = replace(made.lam.objective.lam, encoder=replace(NET, time_every=0, position_embeddings=False), decoder=NET)
    rows: dict[str, Any] = {
        name: small(made.dynamics[name], dynamics=replace(made.dynamics[name].objective.dynamics, transformer=NET))
        for name in families
    }
    kinds = {run.objective.tokenizer.removeprefix("../") for run in rows.values()} | {"codes"}
    return replace(
        made,
        source=PlatformerConfig(tiles=6, count=8, frames=16, themes=1),
        tokenizers={name: tokenizer(run) for name, run in made.tokenizers.items() if name in kinds},
        lam=small(made.lam, lam=lam),
        dynamics=rows,
        flops=2e9,
        clips=4,
        horizon=4,
    )


def test_rows_get_the_same_arithmetic_and_one_table(tmp_path, monkeypatch, capsys):
    """The work is done here and evaluated in short, not in processes of its own, of which the next test has some."""
    monkeypatch.setattr(module, "workers", ThreadPoolExecutor)
    monkeypatch.setattr(module, "evaluate", partial(module.evaluate, deep=False))
    made = shrunk(("maskgit",))
    out = compare(made, tmp_path / "all", seeds=1, jobs=1)
    table = json.loads((out / "table.json").read_text("utf8"))
    rows = {(row["family"], row["actions"]): row for row in table["rows"]}
    assert list(rows) == [("maskgit", "true"), ("maskgit", "latent")]
    for (_, actions), row in rows.items():
        assert abs(row["training_flop"] / made.flops - 1) <= 0.03
        assert row["action_source"] == actions and len(row["psnr"]) == 4
        assert row["frames_per_second"] > 0 and row["frames_per_second_uncached"] > 0
    text = (out / "table.md").read_text("utf8")
    said = f": 4 models to train in '{tmp_path / 'all'}'. All of it takes {made.takes}.\n"
    assert made.about + said in capsys.readouterr().out
    assert text.count("| maskgit |") == 6 and "copy last frame" in text
    assert (out / "table.png").stat().st_size > 1000 and not (out / "seed-0" / "maskgit-true" / "cache").exists()

    def never(*_):
        raise AssertionError("what is done is done again")

    capsys.readouterr()
    monkeypatch.setattr(module, "work", never)
    assert compare(replace(made, takes="said anew"), out, seeds=1) == out
    assert capsys.readouterr().out == ""
    with pytest.raises(ReverieError, match="holds another comparison"):
        compare(replace(made, flops=3e9), out, seeds=1)
    assert json.loads((out / "table.json").read_text("utf8"))["rows"] == table["rows"]


MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE")


def memory_of_a_process():
    """What a process that works on rows would tell JAX about a GPU's memory, and whether it is too late for that."""
    from jax._src import xla_bridge

    return [os.environ.get(name) for name in MEMORY], xla_bridge.backends_are_initialized()


@pytest.mark.parametrize(
    ("jobs", "said", "expected"),
    [
        (2, {}, ["0.450", None, None]),
        (3, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, [None, None, "false"]),
    ],
)
def test_rows_at_a_time_share_the_memory_of_a_gpu(monkeypatch, jobs, said, expected):
    """JAX reserves three quarters of it in the first process that starts."""
    for name in MEMORY:
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with module.workers(jobs) as processes:
        assert processes.submit(memory_of_a_process).result() == (expected, False)
    assert {name: os.environ[name] for name in MEMORY if name in os.environ} == said, "ours is as it was"


WAITS = """
import os, signal, time
from reverie.compare import workers

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
with workers(1) as processes:
    print(processes.submit(os.getpid).result(), flush=True)
    processes.submit(time.sleep, 600).result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_started_it(number):
    """Each process holds the other end of the output, so it ends when the last of them does."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        parent.send_signal(number)
        try:
            assert parent.communicate(timeout=60) == (b"", None)
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(ReverieError, match="one seed and one job"):
        compare(comparison("toy"), tmp_path / "x", seeds=0)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ReverieError, match=r"no comparison 'toyy'.*'toy'"):
        comparison("toyy")


@pytest.mark.parametrize("name", comparisons())
def test_every_row_stands_on_tokenizers_that_are_there(name):
    made: Any = comparison(name)
    for family in made.dynamics:
        run: Any = run_of(made, f"seed-2/{family}-latent")
        assert run.seed == 2 and run.objective.lam == "../lam"
        assert run.objective.tokenizer.removeprefix("../") in made.tokenizers
    recorded: Any = run_of(made, "seed-0/maskgit-true").objective
    assert recorded.lam is None
    assert made.lam.objective.tokenizer.removeprefix("../") in made.tokenizers


def test_a_table_says_how_sure_it_is():
    row = {"family": "x", "actions": "true", "runs": 3, "psnr": [30.0] * 4, "psnr_ci": [[29.0, 31.0]] * 4}
    row |= {"copy_last_psnr": [20.0] * 4, "floor_psnr": [40.0] * 4, "delta_psnr": [1.0] * 4}
    row |= {"swap_accuracy": 0.5, "swap_accuracy_ci": None, "training_flop": 3.5e12, "frames_per_second": 1234.5}
    text = markdown("about", [row])
    assert "| x | true | 30.0 ± 1.0 | 30.0 ± 1.0 |" in text and "| 0.50 |" in text and "| 3.50e+12 |" in text
    assert "1,234" in text and "PSNR 16" not in text
    assert curves([row]).dtype == np.uint8
