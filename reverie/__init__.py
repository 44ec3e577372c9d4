"""Reverie trains world models from video and lets you step into them.

``reverie.load(world)`` returns what a run trained, by name, path or https address, ``reverie.Session(world)`` plays in
it, ``reverie.make_env(run)`` is its world as a Gymnasium environment. All are imported when first asked for: importing
the package costs nothing, so the command line answers at once.
"""

import importlib
import importlib.util
import sys
from typing import Any

__version__ = "0.1.0"

_WHERE = {"load": "reverie.library", "Session": "reverie.world", "make_env": "reverie.gymnasium_env"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'reverie' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])


def _register() -> None:
    """Register ``reverie/World-v0`` with Gymnasium: ``gymnasium.make("reverie/World-v0", run=path)``."""
    where = {
        "entry_point": "reverie.gymnasium_env:WorldEnv",
        "vector_entry_point": "reverie.gymnasium_env:WorldVectorEnv",
    }
    sys.modules["gymnasium"].register("reverie/World-v0", **where)


class _WithGymnasium:
    """Registers as soon as Gymnasium is imported: it has no plugins since 1.0, and importing it here takes 0.2 s."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                _register()

            spec.loader.exec_module = exec_module
        return spec


if "gymnasium" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WithGymnasium())
