"""Atari games through ale-py, an extra of its own since it is GPL: pip install 'reverie-worlds[atari]'."""

from dataclasses import dataclass
from typing import ClassVar

from reverie.data.sources.gymnasium import GymnasiumConfig

ALL = (  # actions of games that use every one
    "NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT", "UPFIRE", "RIGHTFIRE",
    "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AtariConfig(GymnasiumConfig):
    """An Atari game, played at random (needs ale-py, which is GPL)."""

    path: str = "ALE/Breakout-v5"  # the id of the game's environment
    package: str = "ale_py"  # the package that registers it
    extra: ClassVar[str] = "atari"
    known: ClassVar = {"ALE/Boxing-v5": ALL}
