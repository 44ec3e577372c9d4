"""A small real objective for the tests of the engine: an autoencoder of toy frames behind a frozen projection.

It has all that can go wrong: a part that is frozen, stacked layers, variables that change once a step (a counter,
running statistics, two of which start as the same array), randomness, a report with numbers and a picture.

B batch, T time, H W C image, F features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from reverie import config
from reverie.actions import START, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.nn.batch import Loss, Rows, decibels, draw_rows, mean
from reverie.training.checkpoint import load
from reverie.training.engine import Run, fit
from reverie.training.optim import OptimConfig

config.packages.add(__name__)  # so that run.json may name the classes below

SIDE = 4
traces: list[str] = []  # what was traced, in order: a recompilation would show


class Statistic(nnx.Variable):
    """Changed by ``settle``, not by gradients."""


class Layer(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.linear(self.norm(x)))


class Projection(nnx.Module):
    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(inputs, width, rngs=rngs)


class Autoencoder(nnx.Module):
    def __init__(self, config: "ToyObjective", spec: Spec, projection: Any, *, rngs: nnx.Rngs):
        height, width, channels = spec.frame
        pixels = height * width * channels
        self.config = config
        self.projection = projection or Projection(pixels, config.width, rngs=rngs)
        self.layers = nnx.vmap(lambda r: Layer(config.width, rngs=r))(rngs.split(2))
        self.out = nnx.Linear(config.width, pixels, rngs=rngs)
        zeros = jnp.zeros(config.width)
        self.mean, self.spread = Statistic(zeros), Statistic(zeros)
        self.calls = Statistic(jnp.zeros((), jnp.int32))

    def settle(self, note, key, progress):
        flat = rearrange(note.array, "b t f -> (b t) f")
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * flat.mean(axis=0)
        self.spread[...] = 0.9 * self.spread[...] + 0.1 * flat.std(axis=0)
        self.calls[...] = self.calls[...] + 1

    def __call__(self, frames, keys_B=None):
        x = rearrange(frames, "b t h w c -> b t (h w c)").astype(jnp.float32) / 255
        y = self.projection.linear(x)
        if keys_B is not None:
            y = y + self.config.noise * draw_rows(jax.random.normal, keys_B, y.shape[1:])
        for i in range(2):
            graph, state = nnx.split(self.layers)
            y = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))(y)
        return x, y, nnx.sigmoid(self.out(y))


@dataclass(frozen=True)
class ToyObjective:
    width: int = 16
    noise: float = 0.1
    frozen: tuple[str, ...] = ("projection",)
    reads: ClassVar[tuple[str, ...]] = ("frames",)
    encoder: ClassVar[None] = None
    other: str = ""  # another toy run, whose projection is taken
    explode_at: int = 0  # from this step on the loss is not a number; 0: never

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> Autoencoder:
        return Autoencoder(self, spec, load(folder / self.other).projection if self.other else None, rngs=rngs)

    def prepare(self, model, dataset, cache: Path):
        return dataset

    def loss(self, model: Autoencoder, batch, keys_B, progress):
        traces.append("loss")
        x, y, made = model(batch["frames"], keys_B)
        error = jnp.square(made - x)
        if self.explode_at:
            error = jnp.where(model.calls[...] == self.explode_at - 1, jnp.float32(np.nan), error)
        return Loss((mean(error),), {"psnr": mean(error, then=decibels)}, Rows(y))

    def report(self, model: Autoencoder, batch, key):
        traces.append("report")
        x, _, made = model(batch["frames"])
        shown = jnp.round(made[0, 0] * 255).astype(jnp.uint8).reshape(batch["frames"].shape[2:])
        return {"psnr": -10 * jnp.log10(jnp.mean(jnp.square(made - x))), "calls": model.calls[...], "made": shown}


def toy_dataset(seed: int = 0, episodes: int = 8, length: int = 12) -> ArrayDataset:
    """A bright bar that moves over a dark ground."""
    rng = np.random.default_rng(seed)
    spec = Spec(frame=(SIDE, SIDE, 3), actions=ActionSpace("discrete", 2), fps=10.0, source="toy")
    made = []
    for _ in range(episodes):
        actions = rng.integers(0, 2, length).astype(np.int32)
        actions[0] = START
        at = np.cumsum(np.where(actions == 1, 1, 0)) % SIDE
        frames = np.zeros((length, SIDE, SIDE, 3), np.uint8)
        frames[np.arange(length), :, at] = rng.integers(128, 255, 3)
        made.append(Episode(frames, actions, np.zeros(length, np.float32), np.zeros(length, bool)))
    return ArrayDataset.from_episodes(spec, made)


def toy_run(steps: int = 6, objective: ToyObjective | None = None, **changes: Any) -> Run:
    """A run of a few steps on 8 rows of 4 frames, every clock ticking."""
    optimizer = changes.pop("optimizer", OptimConfig(rate=3e-3, warmup=2, decay=0.25, ema=0.9))
    clocks = {"log_every": 1, "report_every": 2, "report_clips": 3, "save_every": 2, "keep": 2}
    fields = {"batch": 8, "length": 4, "seed": 3, **clocks, **changes}
    return Run(objective=objective or ToyObjective(), steps=steps, optimizer=optimizer, **fields)


def train(out: str, steps: int) -> None:
    """What the processes of the resume tests do; they are killed while they do it."""
    fit(toy_run(steps, save_every=3, report_every=10, log_every=2), out, dataset=toy_dataset(), progress=False)
