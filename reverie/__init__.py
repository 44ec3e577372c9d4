"""Reverie trains world models from video and lets you step into them.

``reverie.load(path)`` gives back what a run trained; ``reverie.Session(world)`` plays in it. Both are imported when
first asked for: importing the package costs nothing, so the command line answers at once.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {"load": "reverie.training.checkpoint", "Session": "reverie.world"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'reverie' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
