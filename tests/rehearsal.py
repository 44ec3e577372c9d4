"""The command line, its recipes in miniature: ``python tests/rehearsal.py learn clips/`` is ``reverie learn clips/``,
but for the sizes of what it trains. ``demo`` keeps its real networks, and has fewer episodes.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from miniature import shrunk

from reverie import cli, pipeline
from reverie.data.store import open_dataset
from reverie.presets.recipe import Recipe


def train(recipe: Recipe, out: Path, minutes: float | None = None, **options: Any) -> Path:
    """Follow a recipe as ``reverie.pipeline.train`` would, on a few episodes, with small networks, for a few steps."""
    source: Any = recipe.source
    if hasattr(source, "count"):
        source = replace(source, count=min(source.count, 12))
    spec = open_dataset(Path(source)).spec if isinstance(source, str) else source.spec()
    recipe = replace(recipe, source=source)
    made = recipe if sys.argv[1] == "demo" else shrunk(recipe, spec)
    return follow(made, out, minutes and min(minutes, 1e-3), **options)


follow, pipeline.train = pipeline.train, train

if __name__ == "__main__":
    sys.exit(cli.main())
