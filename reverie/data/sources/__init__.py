"""Where episodes come from: one file per source, found by name. A new source is a new file in this folder."""

import dataclasses
import importlib
import pkgutil


def sources() -> dict[str, type]:
    """Return the config class of each source by its file's name: {"platformer": PlatformerConfig, ...}."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and value.__module__ == module.__name__
                and dataclasses.is_dataclass(value)
                and callable(getattr(value, "episodes", None))
            ):
                found[info.name] = value
    return found
