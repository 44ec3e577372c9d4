"""Comparisons: families of dynamics on the same data, compute-matched (equal training FLOPs)."""

from dataclasses import dataclass, replace
from typing import Any

from reverie import config
from reverie.errors import ReverieError, did_you_mean
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.presets import coinrun, toy
from reverie.training.engine import Run
from reverie.training.objectives import DynamicsObjective, TokenizerObjective


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs over one dataset. Rows are ``dynamics``, once with recorded actions and once with those ``lam`` infers.

    ``tokenizers``: by name; an objective finds its own under "../NAME", and the latent action model in "../lam".
    """

    about: str  # what is compared, for people
    takes: str  # how long that takes, for people
    source: Any
    tokenizers: dict[str, Run]
    lam: Run
    dynamics: dict[str, Run]
    flops: float  # training FLOPs of each row, from which its number of steps follows
    clips: int = 64  # held-out clips in the evaluation
    horizon: int = 64  # frames that the evaluation generates after each clip's context


def comparisons() -> dict[str, Comparison]:
    """Return every named comparison."""
    return {"toy": on_toy(), "coinrun": on_coinrun()}


def comparison(name: str) -> Comparison:
    """Return one by name; ReverieError with the nearest name when there is none."""
    known = comparisons()
    if name not in known:
        raise ReverieError(f"there is no comparison '{name}'.{did_you_mean(name, known)}")
    return known[name]


def on_toy() -> Comparison:
    """The tile platformer, for two CPU cores: one small network for all, with a window of two past frames."""
    codes, vectors, latent = toy.toy(), toy.diffusion(), toy.toy(latent=True)
    assert latent.lam is not None
    net = replace(toy.causal().dynamics.objective.dynamics.transformer, window=3)  # pyright: ignore
    families = {
        "maskgit": MaskGITConfig(context="hidden", previous=True, passes=6),
        "causal": CausalConfig(),
        "diffusion": DiffusionConfig(passes=6),
        "shortcut": ShortcutConfig(levels=8),
    }
    configs = {
        name: replace(dynamics, transformer=net, changed_weight=5.0, temperature=0.0)
        for name, dynamics in families.items()
    }
    return Comparison(
        about="four families on the tile platformer, 3.5 TFLOP of training each",
        takes="about an hour on two CPU cores with nothing beside it",
        source=replace(codes.source, count=300, frames=80),
        tokenizers={"codes": codes.tokenizer, "vectors": vectors.tokenizer},
        lam=_over(latent.lam, "codes"),
        dynamics=_rows(configs, codes.dynamics, context=2),
        flops=3.5e12,
    )


def on_coinrun() -> Comparison:
    """CoinRun, for a GPU: the networks of ``coinrun-maskgit-small``."""
    recipe = coinrun.coinrun(width=256, depth=6, patch=8, steps=50_000, takes="")
    assert recipe.lam is not None
    masked: Any = recipe.dynamics.objective
    net = masked.dynamics.transformer
    of_codes: Any = recipe.tokenizer.objective
    configs = {
        "maskgit": masked.dynamics,
        "causal": CausalConfig(transformer=net, changed_weight=4.0),
        "diffusion": DiffusionConfig(transformer=net, changed_weight=4.0),
        "shortcut": ShortcutConfig(transformer=net, changed_weight=4.0),
    }
    vectors = coinrun.vectors(of_codes.tokenizer)
    return Comparison(
        about="four families on CoinRun, 50 PFLOP of training each",
        takes="1.2 EFLOP for three seeds: hours on a GPU",
        source=recipe.source,
        tokenizers={
            "codes": recipe.tokenizer,
            "vectors": replace(recipe.tokenizer, objective=TokenizerObjective(tokenizer=vectors)),
        },
        lam=_over(recipe.lam, "codes"),
        dynamics=_rows(configs, recipe.dynamics, context=8),
        flops=5e16,
    )


def _over(run: Run, tokenizer: str) -> Run:
    return replace(run, objective=config.replace(run.objective, tokenizer=f"../{tokenizer}"))


def _rows(configs: dict[str, Any], like: Run, context: int) -> dict[str, Run]:
    """One run for each family, over its kind of latents: configs of families over codes have a field ``codes``."""
    rows = {}
    for name, dynamics in configs.items():
        kind = "codes" if hasattr(dynamics, "codes") else "vectors"
        objective = DynamicsObjective(dynamics=dynamics, tokenizer=f"../{kind}", context=context)
        rows[name] = replace(like, objective=objective)
    return rows
