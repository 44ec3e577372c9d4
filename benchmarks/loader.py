"""Frames a second that reach a training step from a store on disk: random windows, decompressed and stacked."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Figure, interleaved
from reverie.data.loader import batches
from reverie.data.sources.platformer import PlatformerConfig
from reverie.data.store import open_dataset, write_store


def write(folder: Path, episodes: int, frames: int) -> Path:
    """Write a store of episodes of the platformer."""
    source = PlatformerConfig(count=episodes, frames=frames)
    return write_store(folder / "data", source.spec(), source.episodes(), val=0)


def measure(
    seconds: float = 5.0, *, episodes: int = 24, frames: int = 160, batch: int = 48, length: int = 16
) -> Iterator[Figure]:
    """Yield the rate of batches (batch, length) from an ArrayRecord store of episodes as long as the predecessor's."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(write(Path(folder), episodes, frames))
        stream = batches(dataset, batch=batch, length=length, seed=0)
        taken = interleaved({"batch": lambda: next(stream)}, seconds=seconds)["batch"]
        # Batches are read ahead, so single ones come early or late: what counts is how many came in all.
        rate = batch * length * len(taken) / taken.sum()
        config = {"batch": batch, "length": length, "frame": list(dataset.spec.frame), "episode": frames}
        yield Figure("loader", rate, "frames/s", config=config)
