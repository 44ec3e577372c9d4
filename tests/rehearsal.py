"""The command line, its recipes in miniature: ``python tests/rehearsal.py learn clips/`` is ``reverie learn clips/``,
but for the sizes of what it trains, and what takes longest of its evaluation is left out.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from miniature import QUICK, shrunk

from reverie import cli, pipeline
from reverie.data.store import open_dataset
from reverie.presets.recipe import Recipe


def train(recipe: Recipe, out: Path, minutes: float | None = None, *, others: Any = (), **options: Any) -> Path:
    """Follow a recipe as ``reverie.pipeline.train`` would, on a few episodes, with small networks, for a few steps.

    Timing trains every stage twice: ``minutes`` count only where they are next to none.
    """
    source: Any = recipe.source
    if not isinstance(source, str) and hasattr(source, "count"):
        source = replace(source, count=min(source.count, 12))
    spec = open_dataset(Path(source)).spec if isinstance(source, str) else source.spec()
    recipe, *others = (shrunk(replace(each, source=source), spec) for each in (recipe, *others))
    return follow(recipe, out, minutes if minutes and minutes < 0.01 else None, others=others, **options)


follow, pipeline.train = pipeline.train, train
pipeline.evaluate_run = partial(pipeline.evaluate_run, **QUICK)

if __name__ == "__main__":
    sys.exit(cli.main())
