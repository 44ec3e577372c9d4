"""Tokenizers, one file each: config, module and loss. A file put here is found by everything else.

Shapes: B batch, T time, H W C image, N tokens per frame.
"""

from typing import Any, Protocol

from jax import Array

from reverie.models.folder import configs
from reverie.nn.batch import Loss


class Tokenizer(Protocol):
    """Frames to latents and back.

    ``tokens``: N; ``grid``: rows and columns of tokens; ``codes``: size of the vocabulary, 0 if latents are vectors (of
    ``width`` numbers); ``receptive_field``: how many earlier frames a frame's latents depend on.
    """

    tokens: int
    grid: tuple[int, int]
    codes: int
    receptive_field: int

    def encode(self, frames_BTHWC: Array) -> Array:
        """uint8 frames -> latents: int32 codes (B, T, N), or vectors (B, T, N, L)."""
        ...

    def decode(self, latents: Array) -> Array:
        """Latents -> frames (B, T, H, W, C), float32 in 0..1."""
        ...

    def empty(self, batch: int) -> Any:
        """Return the state with which decoding frame by frame begins, such as an empty KV cache."""
        ...

    def decode_frame(self, state: Any, latents: Array) -> tuple[Any, Array]:
        """Decode the next frame: (state, frame (B, H, W, C)); the same pictures as ``decode`` of the whole."""
        ...

    def loss(self, frames_BTHWC: Array, keys_B: Array) -> Loss:
        """Return the loss and cheap metrics; ``keys_B`` has a key for each row. See ``nn.batch``."""
        ...


class TokenizerConfig(Protocol):
    """A frozen dataclass with a field ``frame``, (H, W, C), which follows from the data."""

    def make(self, rngs: Any) -> Any:
        """Return the module."""
        ...


def families() -> dict[str, type]:
    """Return the config class of every file in this folder, by the file's name."""
    return configs(__name__, __path__)
