"""A recipe for anybody's data that starts with the weights of a world that is trained already."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from reverie.catalogue import starts
from reverie.data.episode import Spec
from reverie.errors import ReverieError
from reverie.presets.fitting import AUGMENT_BELOW, is_latent, latent_actions
from reverie.presets.recipe import Recipe, stage
from reverie.training.folder import RECORD
from reverie.training.objectives import DynamicsObjective, LatentActionObjective
from reverie.training.optim import OptimConfig
from reverie.training.partial import OURS
from reverie.training.record import read_record

GENERAL = "general"  # weights that come with the package, trained on games of many kinds
RATES = {"tokenizer": 1e-3, "lam": 3e-3, "dynamics": 2e-3}


class Unfit(ReverieError):
    """The frames of some data do not fit the tokenizer of a world."""


def finetuning(world: Path, spec: Spec, source: Any, minutes: float, out: Path) -> Recipe:
    """Return a recipe for any data with the models and the weights of ``world``, to be followed in the folder ``out``.

    What depends on the data starts anew: embeddings of other actions, positions in frames of another size. Unfit if the
    frames are not whole patches of the tokenizer; ReverieError if ``world`` is none.
    """
    runs: Any = {name: read_record(world / name).run for name in RATES if (world / name / RECORD).is_file()}
    if not {"tokenizer", "dynamics"} <= runs.keys():
        raise ReverieError(f"'{world}' is no world to start from: it needs a tokenizer and dynamics.")
    sees, old = runs["tokenizer"].objective, runs["dynamics"].objective
    tokenizer = sees.tokenizer
    if any(side % tokenizer.patch for side in spec.frame[:2]):
        height, width, _ = spec.frame
        fit = f"frames of {height} x {width} are not whole patches of {tokenizer.patch} pixels"
        raise Unfit(f"these data cannot start with the weights of '{world.name}': {fit}.")
    latent = is_latent(spec, source)
    infers = runs["lam"].objective if "lam" in runs else LatentActionObjective(lam=latent_actions(tokenizer))
    context = min(old.context, 4)
    act = DynamicsObjective(
        dynamics=old.dynamics, lam="../lam" if latent else None, context=context, action_noise=0.1 if latent else 0.0
    )
    sizes: Any = {"dynamics": {"batch": runs["dynamics"].batch, "length": runs["dynamics"].length}}
    sizes |= {"tokenizer": {"batch": 16, "length": 2}, "lam": {"batch": 12, "length": 3}}
    begin = _places(world, out)

    def tuned(name: str, objective: Any) -> Any:
        optimizer = OptimConfig(
            kind="muon", rate=RATES[name], warmup=50, decay=0.3, floor=0.02, weight_decay=1e-3, ema=0.99
        )
        made = stage(objective, steps=2000, every=500, augment_below=AUGMENT_BELOW, optimizer=optimizer, **sizes[name])
        return replace(made, start_from=begin(name) if name in runs else "")

    return Recipe(
        about=f"made for {spec.source}, {minutes:g} minutes, from the weights of {world.name}",
        takes=f"{minutes:g} minutes",
        source=source,
        tokenizer=tuned("tokenizer", sees),
        lam=tuned("lam", infers) if latent else None,
        dynamics=tuned("dynamics", act),
    )


def _places(world: Path, out: Path) -> Callable[[str], str]:
    """Return what names the weights of a stage: those of the package by name, others by a path from the new run."""
    if starts().get(world.name) == world:
        return lambda name: f"{OURS}{world.name}/{name}"
    return lambda name: os.path.relpath(world / name, out / name)
