"""What a recipe will take is known before it is followed: FLOPs exactly, memory about, and nothing is written."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from miniature import shrunk

from reverie import cli
from reverie.catalogue import catalogue
from reverie.forecast import costs, duration
from reverie.presets import preset
from reverie.presets.fitting import fitting
from reverie.presets.recipe import stages
from reverie.training import flops
from reverie.training.blueprint import Blueprint
from reverie.training.cost import batch_of, cost, flops_of, state_of
from reverie.training.engine import Run, pace_of, train_step
from reverie.training.objectives import TokenizerObjective


@pytest.fixture(scope="module")
def recipe():
    whole = preset("toy-maskgit-latent")
    return shrunk(whole, whole.source.spec())


def test_every_stage_has_a_cost_before_any_is_trained(recipe):
    found = costs(recipe, recipe.source.spec())
    assert list(found) == ["tokenizer", "lam", "dynamics"]
    assert all(of.flops > 0 and of.activations > 0 and of.memory > of.weights for of in found.values())
    assert not list(Path().iterdir())


def test_agents_whose_data_have_no_tasks_have_a_cost():
    whole = preset("toy-agent")
    spec = whole.source.spec()
    found = costs(shrunk(whole, spec), spec)
    assert [*found] == ["tokenizer", "dynamics", "agent", "policy"] and all(of.flops > 0 for of in found.values())


def test_memory_is_about_what_xla_takes(recipe):
    spec = recipe.source.spec()
    objective = TokenizerObjective(tokenizer=recipe.tokenizer.objective.tokenizer)
    run = Run(objective=objective, batch=8, length=8)
    blueprint = Blueprint(run.objective, spec, run.seed, Path("run"))

    def step(state, batch):
        return train_step(run, blueprint, run.optimizer.make(), state, {}, batch, pace_of(run, 0))

    traced = jax.jit(step, donate_argnums=0).trace(state_of(run, blueprint), batch_of(run, spec, blueprint))
    assert flops.count(traced.jaxpr) == flops_of(run, spec, blueprint)
    taken = traced.lower().compile().memory_analysis()
    assert taken.argument_size_in_bytes + taken.temp_size_in_bytes == pytest.approx(
        cost(run, spec, Path("run")).memory, rel=0.5
    )
    halves = cost(replace(run, accumulate=2), spec, Path("run"))
    assert halves.activations == pytest.approx(cost(run, spec, Path("run")).activations / 2, rel=0.05)


def test_a_dry_run_shows_what_flags_change_and_leaves_nothing(capsys):
    words = ["train", "toy-causal", "--steps", "7", "--tokenizer.steps", "9", "--dry-run"]
    assert cli.main(words) == 0
    dry = capsys.readouterr().out
    assert cli.main(["show", "toy-causal"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in dry.splitlines() if line.startswith(("tok", "dyn", "all"))}
    assert {stage: cells[1] for stage, cells in rows.items()} == {"tokenizer": "9", "dynamics": "7", "all": "16"}
    assert rows["all"][2:4] == [f"{catalogue()['presets']['toy-causal']['parameters'] / 1e3:.0f}", "k"]
    assert max(map(len, dry.splitlines())) <= 110 and "estimate" in dry and "toy-causal: tile platformer" in shown
    assert not list(Path().iterdir())


def test_learning_has_a_forecast_too(capsys, monkeypatch):
    monkeypatch.setattr("reverie.pipeline.fitting", lambda spec, *_: shrunk(fitting(spec, *_), spec))
    assert cli.main(["learn", "square", "--minutes", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "steps: at most, in 2 minutes" in out and re.search(r"^dynamics +\d+ ", out, re.MULTILINE)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", catalogue()["presets"])
def test_every_stage_says_what_its_steps_read(name):
    for stage, run in stages(preset(name)).items():
        assert hasattr(run.objective, "encoder") and run.objective.reads, stage


def test_a_misspelt_preset_is_no_run(capsys):
    assert cli.main(["show", "toy-maskgti"]) == 2
    assert "there is no run, world or preset 'toy-maskgti'. Did you mean 'toy-maskgit'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.5, "0.5 seconds"), (90, "1.5 minutes"), (5400, "1.5 hours"), (9e12, "> 1000 years")]
)
def test_times_are_in_their_largest_unit(seconds, said):
    assert duration(seconds) == said
