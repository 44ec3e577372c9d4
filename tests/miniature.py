"""Recipes made small: every stage and pattern of the real one, in nets that compile and train in seconds."""

import os
from dataclasses import fields, is_dataclass, replace
from typing import Any

from reverie.data.episode import Spec
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.presets.recipe import Recipe
from reverie.training.engine import Run

# Of an evaluation, for ``evaluate_run``: without long play, drift and speed, whose programs take longest to compile.
QUICK = {"deep": False, "speed": False, "sessions": 0}


def small(value: Any, frame: tuple[int, int, int]) -> Any:
    """Return a config with everything that makes it slow made small, and its pattern kept."""
    if isinstance(value, TransformerConfig):
        layers = value.group * (2 if value.scan else 1)  # a scan over one group would scan nothing
        few = {"heads": 2, "kv_heads": min(value.kv_heads, 2)}
        return replace(value, width=16, hidden=32, depth=layers, window=min(value.window, 4), **few)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    value = replace(value, **{field.name: small(getattr(value, field.name), frame) for field in fields(value)})
    if isinstance(value, VQConfig):
        return replace(value, codes=min(value.codes, 16), width=8)
    if isinstance(value, VQVAEConfig | PixelLAMConfig):
        return replace(value, patch=frame[0] // 2)
    return replace(value, passes=2) if hasattr(value, "passes") else value


def miniature(recipe: Recipe, frame: tuple[int, int, int]) -> dict[str, Run]:
    """Return the stages of a recipe, small enough to be trained here."""
    runs = {}
    for stage in ("tokenizer", "lam", "dynamics", "agent", "policy"):
        if run := getattr(recipe, stage):
            often = {"steps": 4, "log_every": 1, "report_every": 0, "save_every": 2, "start_from": ""}
            run = replace(run, objective=small(run.objective, frame), optimizer=replace(run.optimizer, warmup=1))
            many = run.exact or int(os.environ.get("JAX_NUM_CPU_DEVICES", "1")) > 2  # rows for every device
            runs[stage] = replace(run, batch=8 if many else 2, length=4, **often)
    return runs


def shrunk(recipe: Recipe, spec: Spec) -> Recipe:
    """The same recipe, small enough to be followed here."""
    dynamics: Any = recipe.dynamics.objective
    objective = replace(dynamics, context=3)
    recipe = replace(recipe, dynamics=replace(recipe.dynamics, objective=objective))
    return replace(recipe, clips=2, horizon=4, **miniature(recipe, spec.frame))
