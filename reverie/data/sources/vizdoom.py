"""ViZDoom's scenarios through its Gymnasium environments: pip install 'reverie-worlds[vizdoom]'."""

from dataclasses import dataclass

from reverie.data.sources.gymnasium import GymnasiumConfig


@dataclass(frozen=True, kw_only=True)
class ViZDoomConfig(GymnasiumConfig):
    """A ViZDoom scenario, played at random (needs vizdoom)."""

    path: str = "VizdoomBasic-v1"  # the id of the scenario's environment
    package: str = "vizdoom.gymnasium_wrapper"  # the package that registers it
