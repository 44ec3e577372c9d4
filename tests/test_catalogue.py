"""The file from which ``reverie list`` reads says what presets, sources and comparisons are."""

import json
import os

from reverie.catalogue import FILE, catalogue
from reverie.data.sources import sources
from reverie.presets import presets
from reverie.presets.comparison import comparisons
from reverie.presets.recipe import parameters, stages

AGAIN = "If that was meant: REVERIE_GOLDENS=write pytest tests/test_catalogue.py, then look at the diff."


def test_the_catalogue_says_what_there_is():
    known = {
        "presets": {
            name: {
                "about": recipe.about,
                "takes": recipe.takes,
                "steps": {stage: run.steps for stage, run in stages(recipe).items()},
                "parameters": parameters(recipe),
            }
            for name, recipe in presets().items()
        },
        "sources": {name: (source.__doc__ or "").partition("\n")[0] for name, source in sources().items()},
        "comparisons": {name: {"about": each.about, "takes": each.takes} for name, each in comparisons().items()},
    }
    if os.environ.get("REVERIE_GOLDENS") == "write":
        FILE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        catalogue.cache_clear()
    assert catalogue() == known, f"A preset or a source changed. {AGAIN}"
