"""Every named recipe is what it was, survives JSON, and can be followed: in miniature, all stages train and resume."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import miniature

from reverie import config
from reverie.actions import START
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.errors import ReverieError
from reverie.presets import preset, presets
from reverie.presets.fitting import fitting
from reverie.presets.recipe import Recipe
from reverie.training import checkpoint
from reverie.training.engine import fit
from reverie.world import WorldModel

GOLDEN = Path(__file__).parent / "goldens" / "presets.txt"
AGAIN = "If that was meant: REVERIE_GOLDENS=write pytest tests/test_presets.py -k golden, then look at the diff."
RECIPES = presets()


def as_text(recipes: dict[str, Recipe]) -> str:
    """One line per field: short diffs, and nothing to parse."""
    sections = (
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.flatten(recipe).items())
        for name, recipe in recipes.items()
    )
    return "\n".join(sections)


def test_golden_text_of_every_preset():
    text = as_text(RECIPES)
    if os.environ.get("REVERIE_GOLDENS") == "write":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), f"A preset changed. {AGAIN}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    assert config.from_json(json.loads(json.dumps(config.to_json(RECIPES[name])))) == RECIPES[name] == preset(name)


def test_an_unknown_preset_suggests():
    with pytest.raises(ReverieError, match="no preset 'toy-maskgot'. Did you mean 'toy-maskgit'"):
        preset("toy-maskgot")


def noise(spec: Spec) -> ArrayDataset:
    """Return a few episodes with the right shapes and nothing in them to learn."""
    rng, count, length = np.random.default_rng(0), 3, 6
    episodes = []
    for _ in range(count):
        actions = rng.integers(0, spec.actions.size, length, np.int32)
        actions[0] = START
        none = np.zeros(length, np.float32)
        episodes.append(Episode(rng.integers(0, 256, (length, *spec.frame), np.uint8), actions, none, none > 0))
    return ArrayDataset.from_episodes(spec, episodes)


# Presets that differ in size alone have one miniature.
MINIATURES = {repr(miniature(recipe, recipe.source.spec().frame)): name for name, recipe in RECIPES.items()}


# Each takes half a minute to a minute to compile on two busy cores; `make soak` runs them all.
QUICK = ("toy-maskgit",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in MINIATURES.values()]
)
def test_every_stage_trains_and_goes_on(name, tmp_path):
    recipe = RECIPES[name]
    data = noise(recipe.source.spec())
    for stage, run in miniature(recipe, data.spec.frame).items():
        folder = tmp_path / stage
        fit(run, folder, dataset=data, progress=False)
        whole = metrics(folder)
        assert [line["step"] for line in whole] == [1, 2, 3, 4]
        assert all(np.isfinite(line["loss"]) for line in whole)
        shutil.rmtree(folder / checkpoint.CHECKPOINTS / "4")
        fit(run, folder, dataset=data, progress=False)  # from step 2 on
        assert metrics(folder) == whole
        assert checkpoint.steps(folder)[-1] == 4
    world = checkpoint.load(tmp_path)
    assert isinstance(world, WorldModel)
    assert (world.config.actions.kind == "latent") == (recipe.lam is not None)
    assert world.config.context < recipe.dynamics.length, "the context must be shorter than a training clip"


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("minutes", [1, 30, 240])
def test_a_recipe_fits_data_of_any_frame(minutes):
    for side in (24, 64, 90, 45):
        source = RECIPES["toy-maskgit"].source
        recipe = fitting(replace(source.spec(), frame=(side, 2 * side, 3)), source, minutes)
        patch = recipe.tokenizer.objective.tokenizer.patch
        assert side % patch == 0 and recipe.lam is None
        assert config.from_json(config.to_json(recipe)) == recipe
