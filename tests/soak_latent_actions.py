"""Latent actions do not collapse: five demos from five seeds, each trained whole. Half an hour on two cores."""

import json
from dataclasses import replace

import pytest

from reverie.pipeline import DEMO, train
from reverie.presets import preset

STAGES = ("tokenizer", "lam", "dynamics")


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("seed", range(5))
def test_a_demo_of_any_seed_obeys_all_its_latent_actions(seed, tmp_path):
    recipe = preset(DEMO)
    recipe = replace(recipe, **{stage: replace(getattr(recipe, stage), seed=seed) for stage in STAGES})
    numbers = json.loads((train(recipe, tmp_path / "demo") / "eval.json").read_text("utf8"))
    shown = ("lam_usage", "lam_agreement", "swap_accuracy", "delta_psnr_4")
    print(f"seed {seed}: " + ", ".join(f"{name} {numbers[name]:.3f}" for name in shown))
    assert numbers["lam_usage"] == 1.0
    assert numbers["swap_accuracy"] >= 0.75
    assert numbers["delta_psnr_4"] >= 2.0
    assert numbers["psnr"][7] >= numbers["copy_last_psnr"][7] + 3
