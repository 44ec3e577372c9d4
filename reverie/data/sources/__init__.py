"""Where episodes come from: one file per source, found by name. A new source is a new file in this folder.

Or a dataclass of another package, which names it in the entry points of the group ``reverie.sources``.
"""

import dataclasses
import importlib
import importlib.metadata
import inspect
import logging
import pkgutil
from pathlib import Path
from typing import Any

from reverie.config import SOURCES
from reverie.errors import ReverieError

log = logging.getLogger(__name__)


def sources() -> dict[str, type]:
    """Return the config class of each source by its name: {"platformer": PlatformerConfig, ...}."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and _is_source(value):
                found[info.name] = value
    for entry in importlib.metadata.entry_points(group=SOURCES):
        try:
            value = entry.load()
        except Exception as error:  # another package's code: its fault must not take the other sources away
            log.warning("the source '%s' of %s cannot be loaded (%s)", entry.name, entry.value, error)
            continue
        if isinstance(value, type) and _is_source(value):
            found.setdefault(entry.name, value)
    return found


def _is_source(value: type) -> bool:
    """Whether a class yields episodes, or writes a dataset itself."""
    has = dataclasses.is_dataclass(value) and (hasattr(value, "episodes") or hasattr(value, "write"))
    return has and not inspect.isabstract(value)


def source_at(path: Path) -> Any:
    """Return the config of the one source that reads what is at ``path``, by asking each for ``of(path, files)``.

    ReverieError names those that would, if there are several, or what the folder holds instead, if there is none.
    """
    from reverie.data.sources.files import at
    from reverie.data.sources.videos import VideosConfig

    inside = at(path)
    claims = {name: made for name, cls in sources().items() if hasattr(cls, "of") and (made := cls.of(path, inside))}
    if len(claims) > 1:
        ways = " or ".join(f"'reverie data {name} OUT --path {path}'" for name in claims)
        raise ReverieError(f"'{path}' could be read in several ways; say which: {ways}.")
    for made in claims.values():
        return made
    film = VideosConfig(path=str(path))  # perhaps a video of another name; else it says what is there instead
    film.spec()
    return film
