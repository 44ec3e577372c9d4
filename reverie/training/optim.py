"""Optimisers and learning-rate schedules as values.

Weights come as a flat dict from dotted name to array (``groups.layers.0.mlp.up.kernel``). By flax's convention, which
our modules keep, exactly the matrices that multiply features are called ``kernel``: only they are decayed; norms,
biases, embeddings, learned tokens and codebooks are not. Kernels of stacked layers have a leading axis per layer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

Weights = dict[str, Array]
SCOPE = "optimizer"  # of its operations, by which a compiled program knows them


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, or Muon for the hidden matrices and AdamW for the rest, after clipping by the global norm.

    With the schedule "wsd" a run can be extended from where the fall of its rate began.
    """

    kind: Literal["adamw", "muon"] = "adamw"  # muon: for the hidden matrices, adamw for the rest
    rate: float = 3e-4  # peak learning rate
    # after the warm-up: wsd stays, then falls linearly at the end; cosine falls all the way; constant stays
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: int = 1000  # steps in which the rate rises from zero
    decay: float = 0.1  # share of the run, at its end, in which wsd falls
    floor: float = 0.0  # rate at the end of the fall, as a share of the peak
    b1: float = 0.9  # decay of Adam's first moment
    b2: float = 0.95  # decay of Adam's second moment
    eps: float = 1e-8  # Adam's epsilon
    weight_decay: float = 0.1  # weight decay of matrices; norms, biases and embeddings have none
    clip: float = 1.0  # largest global norm of the gradient; 0: off
    ema: float = 0.0  # decay of the EMA of the weights, which reports and load then use; 0: off

    def __post_init__(self):
        if self.rate < 0 or self.warmup < 0 or not 0 <= self.decay <= 1 or not 0 <= self.ema < 1:
            given = f"rate {self.rate} >= 0, warmup {self.warmup} >= 0"
            raise ValueError(f"{given}, decay {self.decay} in 0..1, ema {self.ema} in 0..1 needed")

    def fall(self, steps: int) -> int:
        """Return the last step whose rate does not depend on the length of the run: from there it can be extended."""
        if self.schedule == "cosine":
            return 0
        decay = self.decay if self.schedule == "wsd" else 0.0
        return max(min(self.warmup, steps), steps - round(decay * steps))

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of update number ``step``, counted from 0, in a run of ``steps``."""
        if step < self.warmup:
            return self.rate * step / self.warmup
        fall = max(self.fall(steps), self.warmup)
        fallen = max(step - fall, 0) / max(steps - fall, 1)
        left = (1 + math.cos(math.pi * fallen)) / 2 if self.schedule == "cosine" else 1 - fallen
        return self.rate * (self.floor + (1 - self.floor) * left)

    def make(self) -> optax.GradientTransformation:
        """Return the optimiser over weights by name; the caller multiplies updates by the rate. Moments are float32.

        So the program of a step depends neither on the schedule nor on the number of steps.
        """
        adamw = optax.adamw(1.0, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=matrices)
        muon = optax.contrib.muon(
            1.0,
            weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=_muon_axes,
            consistent_rms=0.2,  # updates as large as Adam's, so one rate and one decay serve both (arXiv 2502.16982)
        )
        both = optax.partition({"muon": muon, "adamw": adamw}, _kinds)
        clip = optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()
        chain = optax.chain(clip, both if self.kind == "muon" else adamw)

        def init(params: Any) -> Any:
            return chain.init(_float32(params))

        @jax.named_scope(SCOPE)
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            return _promoting(chain.update)(_float32(updates), state, _float32(params))

        return optax.GradientTransformation(init, update)


def _promoting(fn: Callable) -> Callable:
    """Allow dtype promotion in optax, which relies on it; tests forbid it elsewhere."""

    def call(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args)

    return call


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def matrices(weights: Weights) -> dict[str, bool]:
    """Which weights are matrices; weight decay shrinks only these."""
    return {name: _is_matrix(name) for name in weights}


def average(ema: Weights, weights: Weights, decay: float, step: Array) -> Weights:
    """Return the updated EMA of ``weights``, with a smaller decay in the first steps."""
    made = step.astype(jnp.float32)
    keep = jnp.minimum(jnp.float32(decay), (1 + made) / (10 + made))
    return {name: keep * mean + (1 - keep) * weights[name] for name, mean in ema.items()}


def _is_matrix(name: str) -> bool:
    return name.rpartition(".")[2] == "kernel"


def _is_hidden(name: str, weight: Array) -> bool:
    return _is_matrix(name) and weight.ndim == 3  # (layers, in, out): a matrix of stacked layers


def _kinds(weights: Weights) -> dict[str, str]:
    return {name: "muon" if _is_hidden(name, weight) else "adamw" for name, weight in weights.items()}


def _muon_axes(weights: Any) -> Any:
    # optax masks the weights of the other optimiser, so every array here is a hidden matrix.
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {name: axes if isinstance(weight, Array) else None for name, weight in weights.items()}
