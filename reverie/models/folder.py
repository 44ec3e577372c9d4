"""How a folder of models is found: every file in it is one family."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable


def configs(package: str, path: Iterable[str]) -> dict[str, type]:
    """Return {file name: its config class}: the one dataclass defined in the file that has ``make``."""
    found = {}
    for module in pkgutil.iter_modules(path):
        contents = importlib.import_module(f"{package}.{module.name}")
        made = [
            value
            for value in vars(contents).values()
            if dataclasses.is_dataclass(value) and hasattr(value, "make") and value.__module__ == contents.__name__
        ]
        if len(made) != 1:
            raise TypeError(f"{contents.__name__} must define one config with make(rngs), not {len(made)}")
        found[module.name] = made[0]
    return found
