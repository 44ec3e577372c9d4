"""Latent action models, one file each: the transition between two frames as one of a few codes.

Shapes: B batch, T time, H W C image.
"""

from typing import Any, Protocol

from jax import Array

from reverie.models.folder import configs
from reverie.nn.batch import Loss


class LatentActionModel(Protocol):
    """Infers actions from frames. ``codes``: how many; ``receptive_field``: how many earlier frames each depends on."""

    codes: int
    receptive_field: int

    def see(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> the input of the loss: the frames themselves, or the codes of a frozen tokenizer."""
        ...

    def infer(self, frames_BTHWC: Array) -> Array:
        """Frames -> codes (B, T): the action that led to each frame, START for the first."""
        ...

    def predict(self, frames_BTHWC: Array) -> Array:
        """Frames 1..T-1 predicted from those before and the inferred codes, float32 in 0..1."""
        ...

    def loss(self, seen: Array, keys_B: Array, progress: Array) -> Loss:
        """Return the loss and cheap metrics; ``progress`` is the share of the training that is done.

        ``keys_B`` has a key for each row. See ``nn.batch``.
        """
        ...


class LAMConfig(Protocol):
    """A frozen dataclass."""

    def fitted(self, frame: tuple[int, int, int], tokenizer: Any) -> "LAMConfig":
        """Return this config for frames (H, W, C), and for a tokenizer's codes if the model reads codes."""
        ...

    def make(self, rngs: Any) -> Any:
        """Return the module."""
        ...


def families() -> dict[str, type]:
    """Return the config class of every file in this folder, by the file's name."""
    return configs(__name__, __path__)
