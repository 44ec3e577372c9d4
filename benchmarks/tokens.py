"""Clips a second that reach a training step from a token cache on disk, which has all that a step reads."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax import nnx
from jax import Array

from benchmarks.timing import Figure, interleaved
from reverie import config
from reverie.data.arrays import ArrayDataset
from reverie.data.loader import batches
from reverie.data.sources.platformer import PlatformerConfig
from reverie.presets.toy import toy
from reverie.training.tokens import cached


def see(tokenizer: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """Return what dynamics read of frames: their tokens, and the actions."""
    return {"latents": tokenizer.encode(batch["frames"]), "actions": batch["actions"]}


def measure(
    seconds: float = 5.0, *, episodes: int = 48, frames: int = 160, batch: int = 64, length: int = 16
) -> Iterator[Figure]:
    """Yield the rate of batches (batch, length) from the cache of a toy tokenizer over episodes of the platformer."""
    source = PlatformerConfig(tiles=6, count=episodes, frames=frames)
    data = ArrayDataset.from_episodes(source.spec(), source.episodes())
    objective: Any = toy().tokenizer.objective
    tokenizer = config.replace(objective.tokenizer, frame=source.spec().frame).make(nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        frozen = sorted({str(path[0]) for path, _ in nnx.to_flat_state(nnx.state(tokenizer))})
        cache = cached(tokenizer, see, data, 0, Path(folder) / "cache", frozen)
        stream = batches(cache, batch=batch, length=length, seed=0)
        taken = interleaved({"batch": lambda: next(stream)}, seconds=seconds)["batch"]
        sizes = {"batch": batch, "length": length, "latents": list(cache.arrays["latents"].shape[1:])}
        yield Figure("token_cache", batch * len(taken) / taken.sum(), "clips/s", config=sizes)
