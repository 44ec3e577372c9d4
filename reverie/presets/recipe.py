"""Recipes: a source of data, and a run for each stage."""

from dataclasses import dataclass, fields, replace
from typing import Any

from flax import nnx

from reverie import config
from reverie.actions import ActionSpace
from reverie.training.engine import Run
from reverie.training.log import LoggerName
from reverie.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a world is made: ``source`` gives episodes, each run is a stage; no ``lam`` where actions are recorded.

    ``agent`` clones the recorded play in the finished world, ``policy`` learns in imagination; most recipes have none.
    """

    about: str  # what is trained, for people
    takes: str  # how long that takes, for people
    source: Any
    tokenizer: Run
    lam: Run | None
    dynamics: Run
    agent: Run | None = None
    policy: Run | None = None
    clips: int = 64  # held-out clips in the evaluation, at most
    horizon: int = 16  # frames that the evaluation generates after each clip's context


def stages(recipe: Recipe) -> dict[str, Run]:
    """Return the runs of a recipe by the names of their stages, in the order in which they are trained."""
    return {f.name: run for f in fields(recipe) if isinstance(run := getattr(recipe, f.name), Run)}


def logging_to(recipe: Recipe, loggers: tuple[LoggerName, ...]) -> Recipe:
    """Return a recipe of which every stage logs to services besides its folder."""
    return replace(recipe, **{name: replace(run, loggers=loggers) for name, run in stages(recipe).items()})


def stage(
    objective: Any, *, batch: int, length: int, steps: int, optimizer: OptimConfig, every: int, augment_below: int = 0
) -> Run:
    """Return a run that reports and saves once in ``every`` steps."""
    return Run(
        objective=objective,
        augment_below=augment_below,
        batch=batch,
        length=length,
        steps=steps,
        optimizer=optimizer,
        report_every=every,
        save_every=every,
    )


def parameters(recipe: Any) -> int:
    """Return the number of parameters of a recipe's models together, from shapes alone."""
    spec = recipe.source.spec()

    def shapes(made: Any) -> Any:
        return nnx.eval_shape(lambda: made.make(nnx.Rngs(0)))

    tokenizer = shapes(config.replace(recipe.tokenizer.objective.tokenizer, frame=spec.frame))
    models = [tokenizer]
    if recipe.lam is not None:
        models.append(shapes(recipe.lam.objective.lam.fitted(spec.frame, tokenizer)))
    actions = ActionSpace("latent", models[1].codes) if recipe.lam is not None else spec.actions
    models.append(shapes(recipe.dynamics.objective.dynamics.fitted(tokenizer, actions)))
    return sum(
        leaf.size
        for model in models
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if path[0] != "tokenizer" or model is tokenizer
    )
