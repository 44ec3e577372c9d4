"""Names of presets, sources, comparisons and worlds, with what ``reverie list`` says about them, without loading any.

Loading them takes seconds, since a preset's file imports its models. So their facts are kept in a file beside this one,
which a test compares with the presets themselves (``tests/test_catalogue.py``).
"""

import functools
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("catalogue.json")
WORLDS = Path(__file__).with_name("worlds")
PRETRAINED = Path(__file__).with_name("pretrained")  # what training starts from; not made to be played


def shipped() -> dict[str, Path]:
    """Return the worlds that come with the package, by name."""
    return {path.name: path for path in sorted(WORLDS.glob("*/")) if not path.name.startswith((".", "_"))}


def starts() -> dict[str, Path]:
    """Return what comes with the package and training can start from, by name: pretrained weights, and worlds."""
    return {path.name: path for path in sorted(PRETRAINED.glob("*/"))} | shipped()


@functools.cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Return {"presets": {name: facts}, "sources": {name: text}, "comparisons": {name: facts}}."""
    return json.loads(FILE.read_text(encoding="utf-8"))
