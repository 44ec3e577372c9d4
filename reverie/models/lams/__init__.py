"""Latent action models, one file each: what happened between two frames, as one of a few codes.

Shapes: B batch, T time, H W C image.
"""

from typing import Any, Protocol

from jax import Array

from reverie.models.folder import configs
from reverie.nn.batch import Loss


class LatentActionModel(Protocol):
    """Reads actions off frames. ``codes``: how many there are; ``lookback``: on how many earlier frames one depends."""

    codes: int
    lookback: int

    def see(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> what the loss reads: the frames themselves, or what a frozen part makes of them."""
        ...

    def infer(self, frames_BTHWC: Array) -> Array:
        """Frames -> codes (B, T): the action that led to each frame, START for the first."""
        ...

    def predict(self, frames_BTHWC: Array) -> Array:
        """Frames 1..T-1 as told by those before and the inferred codes, float32 in 0..1."""
        ...

    def loss(self, seen: Array, keys_B: Array, progress: Array) -> Loss:
        """Return what to minimise, and cheap numbers about it; ``progress`` is the share of the training done.

        ``keys_B``: one for each row. See ``nn.batch``.
        """
        ...


class LAMConfig(Protocol):
    """A frozen dataclass."""

    def fitted(self, frame: tuple[int, int, int], tokenizer: Any) -> "LAMConfig":
        """Return this config for frames (H, W, C), and for a tokenizer's codes where the model reads those."""
        ...

    def make(self, rngs: Any) -> Any:
        """Return the module."""
        ...


def families() -> dict[str, type]:
    """Return the config class of every file in this folder, by the file's name."""
    return configs(__name__, __path__)
