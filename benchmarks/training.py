"""A training step of the dynamics: frames a second beside the predecessor's structure, and its share of the machine.

Shapes: B batch, T time, H W C image, N tokens per frame.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks.predecessor import PredecessorObjective, make_world, optimizer
from benchmarks.timing import PEAK, Figure, interleaved, matmul, milliseconds, ratio
from reverie.actions import ActionSpace
from reverie.data.episode import Spec
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.compiled import compiled, compiler_options
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.training import flops
from reverie.training.blueprint import Blueprint
from reverie.training.engine import Pace, Run, TrainState, train_step
from reverie.training.objectives import DynamicsObjective
from reverie.training.optim import OptimConfig
from reverie.world import WorldModel


@dataclass(frozen=True)
class Sizes:
    """One size for both sides."""

    frame: tuple[int, int, int] = (64, 64, 3)
    patch: int = 16
    width: int = 128
    hidden: int = 512
    depth: int = 4
    heads: int = 4
    codes: int = 1024
    actions: int = 6
    latent: int = 32
    batch: int = 4
    length: int = 16

    @property
    def spec(self) -> Spec:
        """The spec of noise with latent actions."""
        return Spec(self.frame, ActionSpace("latent", self.actions), 10.0, "noise")

    @property
    def tokens(self) -> int:
        """Tokens of a frame, and its action's."""
        return (self.frame[0] // self.patch) * (self.frame[1] // self.patch) + 1

    def noise(self, rows: int) -> np.ndarray:
        """Return frames of noise, uint8 (rows, T, H, W, C)."""
        return np.random.default_rng(0).integers(0, 256, (rows, self.length, *self.frame), np.uint8)

    def models(self, context: Literal["clean", "hidden"]) -> tuple[VQVAEConfig, PixelLAMConfig, MaskGITConfig]:
        """Return the tokenizer's, the action model's and the dynamics' config."""
        net = TransformerConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            hidden=self.hidden,
            activation="gelu",
            window=self.length,
            qk_norm=False,
        )
        common: Any = {"frame": self.frame, "patch": self.patch, "encoder": net, "decoder": net}
        tokenizer = VQVAEConfig(quantiser=VQConfig(codes=self.codes, width=self.latent), **common)
        lam = PixelLAMConfig(quantiser=VQConfig(codes=self.actions, width=self.latent), **common)
        return tokenizer, lam, MaskGITConfig(transformer=net, context=context)


@dataclass(frozen=True)
class UntrainedObjective(DynamicsObjective):
    """Our own objective, on top of untrained stages."""

    sizes: Sizes = Sizes()

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> WorldModel:
        """Build tokenizer, action model and dynamics, in the predecessor's order and so with its weights."""
        tokenizer, lam, _ = self.sizes.models("hidden")
        return make_world(tokenizer, replace(lam, decoder=replace(lam.decoder, depth=0)), self.dynamics, rngs)


class Side:
    """A compiled step, its state, and the batch it reads again and again."""

    def __init__(self, objective: Any, spec: Spec, batch: dict[str, Array], tx: Any = None):
        tx = tx or OptimConfig().make()
        self.blueprint = Blueprint(objective, spec, 0, Path())
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        weights = self.blueprint.build(lambda *_: one)
        parts = {part: {name: weights[name] for name in names} for part, names in self.blueprint.parts.items()}
        params = parts["params"]
        self.state = TrainState(jnp.int32(0), params, parts["rest"], {}, tx.init(params), jnp.int32(0))
        self.frozen, self.batch, self.metrics = parts["frozen"], batch, {}
        self.pace = Pace(jnp.float32(3e-5), jnp.float32(0.0))
        self._learn(objective, tx)

    def _learn(self, objective: Any, tx: Any) -> None:
        run = Run(objective=objective, optimizer=OptimConfig())
        step = partial(train_step, run, self.blueprint, tx)
        self.step: Any = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
        self.objective, self.tx, self.program = objective, tx, self.step

    def beside(self, objective: Any) -> "Side":
        """Return a side with copies of the same weights and another objective."""
        other = copy.copy(self)
        other.state = jax.tree.map(jnp.copy, self.state)
        other._learn(objective, self.tx)
        return other

    def __call__(self) -> dict[str, Array]:
        self.state, self.metrics = self.program(self.state, self.frozen, self.batch, self.pace)
        return self.metrics

    def compile(self) -> str:
        """Compile the step and return the program's text. It is not cached: every call takes as long."""
        name = "jax_persistent_cache_min_compile_time_secs"
        before = jax.config.values[name]
        jax.config.update(name, float("inf"))
        try:
            self.program = self.step.lower(self.state, self.frozen, self.batch, self.pace).compile()
        finally:
            jax.config.update(name, before)
        return self.program.as_text()

    def gflop(self) -> float:
        """Return the GFLOPs of one step."""
        return flops.count(self.step.trace(self.state, self.frozen, self.batch, self.pace).jaxpr) / 1e9


def sides(sizes: Sizes, int8: bool = False) -> dict[str, Side]:
    """Return the predecessor's step and ours, on the same clips, with the same weights; and ours with clean context.

    ``int8``: and ours with hidden context and products of 8-bit integers.
    """
    tokenizer, lam, hidden = sizes.models("hidden")
    frames = jnp.asarray(sizes.noise(sizes.batch))
    theirs = Side(PredecessorObjective(tokenizer, lam, hidden), sizes.spec, {"frames": frames}, optimizer())
    world = theirs.blueprint.merge(theirs.frozen, theirs.state.params, theirs.state.rest)
    read = compiled(world, _encode)(frames)
    ours = UntrainedObjective(dynamics=hidden, lam="", sizes=sizes)
    kinds = {"hidden": hidden, "clean": sizes.models("clean")[2]}
    if int8:
        kinds["int8"] = replace(hidden, transformer=replace(hidden.transformer, int8=True))
    return {"predecessor": theirs} | {
        name: Side(replace(ours, dynamics=kind), sizes.spec, read) for name, kind in kinds.items()
    }


def _encode(world: WorldModel, frames: Array) -> dict[str, Array]:
    """What the token cache holds."""
    return {
        "latents": world.encode(frames),
        "actions": world.actions_of(frames, jnp.zeros(frames.shape[:2], jnp.int32)),
    }


def measure(seconds: float = 12.0, sizes: tuple[Sizes, ...] = (Sizes(), Sizes(patch=8))) -> Iterator[Figure]:
    """Yield the figures of every size."""
    for size in sizes:
        yield from figures(size, sides(size, int8=True), seconds)


def figures(size: Sizes, steps: dict[str, Side], seconds: float, peak: int = PEAK) -> Iterator[Figure]:
    """Yield frames a second of each side, ratios, and what share of a matmul's rate our step reaches."""
    work = {name: side.gflop() for name, side in steps.items()}
    times = interleaved({**steps, "matmul": matmul(peak)}, seconds=seconds)
    tokens = size.tokens
    about = vars(size) | {"frame": list(size.frame), "tokens": tokens}
    rate = 2 * peak**3 / 1e9 / times["matmul"]
    top = f"matmul_peak_{tokens}"  # as fast as the machine was while these steps ran
    yield Figure(top, float(np.median(rate)), "GFLOP/s", config={"side": peak})
    for name, gflop in work.items():
        config = about | {"gflop": round(gflop, 2), "ms": round(milliseconds(times[name]), 2)}
        frames = size.batch * size.length / float(np.median(times[name]))
        yield Figure(f"train_step_{name}_{tokens}", frames, "frames/s", config=config)
    for context in ("hidden", "clean"):
        pair = (f"train_step_{context}_{tokens}", f"train_step_predecessor_{tokens}")
        name = f"train_step_vs_predecessor_{context}_{tokens}"
        yield Figure(name, ratio(times["predecessor"], times[context]), "x", pair, about | {"context": context})
    if "int8" in times:
        pair = (f"train_step_int8_{tokens}", f"train_step_hidden_{tokens}")
        yield Figure(f"train_step_int8_vs_hidden_{tokens}", ratio(times["hidden"], times["int8"]), "x", pair, about)
    share = float(np.median(work["hidden"] / times["hidden"] / rate))
    yield Figure(f"train_step_share_of_peak_{tokens}", share, "of 1", (f"train_step_hidden_{tokens}", top), about)
