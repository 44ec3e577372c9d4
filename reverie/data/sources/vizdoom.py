"""ViZDoom's scenarios through its Gymnasium environments: pip install 'reverie-worlds[vizdoom]'."""

import contextlib
import functools
import tempfile
from dataclasses import dataclass
from typing import Any, ClassVar

from reverie.data.sources.gymnasium import GymnasiumConfig


@dataclass(frozen=True, kw_only=True)
class ViZDoomConfig(GymnasiumConfig):
    """A ViZDoom scenario, played at random (needs vizdoom)."""

    path: str = "VizdoomBasic-v1"  # the id of the scenario's environment
    package: str = "vizdoom.gymnasium_wrapper"  # the package that registers it
    extra: ClassVar[str] = "vizdoom"

    def _made(self) -> Any:
        """Return the environment; its engine starts at the first reset, in a folder of its own, where it writes."""
        with contextlib.chdir(_folder().name):
            env = super()._made()
            env.reset()
        return env


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Return a folder that is there until Python ends: the engine writes its settings when it is closed."""
    return tempfile.TemporaryDirectory(prefix="vizdoom-")
