"""Weights of a dynamics model in fewer bits: half or a quarter as large, at a cost that is measured.

A page (``web.export``) stores rounded numbers and multiplies in float32. Play and evaluation hold the same numbers as
int8 and factors of columns, which layers multiply by (``nn.linear``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from reverie.nn.image import psnr
from reverie.nn.linear import Linear
from reverie.onnx.narrow import eighths, halves, is_matrix, narrow
from reverie.training.checkpoint import load
from reverie.world import Session, WorldModel
from reverie.world_folder import Start, initial_frames


def rounded(world: WorldModel, bits: int) -> WorldModel:
    """Return a world whose dynamics has its matrices rounded to float16, or to 8-bit integers times a number per
    column.

    The tokenizer stays as it is: its decoder draws every pixel.
    """
    dynamics: Any = nnx.clone(world.dynamics)
    for _, weight in nnx.to_flat_state(nnx.state(dynamics, nnx.Param)):
        found = np.asarray(weight[...])
        if is_matrix(found):
            narrow, scale = halves(found) if bits == 16 else eighths(found)
            weight[...] = narrow.astype(np.float32) * scale
    return WorldModel(world.config, world.tokenizer, world.lam, dynamics)


def narrowed(world: WorldModel, bits: int) -> WorldModel:
    """Return a world whose dynamics holds the matrices of its linear layers in 32, 16 or 8 ``bits``.

    Its other matrices, which are tables, are rounded and stay float32.
    """
    if bits == 32 or not isinstance(world, WorldModel):  # what is not a world is refused where it is used
        return world
    small = rounded(world, bits)
    for _, layer in nnx.iter_modules(small.dynamics):
        if isinstance(layer, Linear) and (found := narrow(np.asarray(layer.kernel[...]))):
            few, scale = found
            layer.kernel = nnx.Param(jnp.asarray(few))
            layer.scale = nnx.Param(jnp.broadcast_to(scale, (*few.shape[:-2], 1, few.shape[-1])))
    return small


def cost(full: Session, other: Session, starts: Sequence[Start]) -> str:
    """Return in one line what rounding costs: PSNR of rollouts from the first half of each start to its second half."""
    numbers = [[found for start in starts if (found := _psnr(session, start))] for session in (full, other)]
    if not numbers[0]:
        return "What rounding costs was not measured: no start has two frames and their actions."
    before, after = (np.mean([value for each in found for value in each]) for found in numbers)
    frames = sum(map(len, numbers[0]))
    return f"PSNR over {frames} frames of {len(numbers[0])} starts: {before:.2f} dB in full, {after:.2f} dB rounded."


def cost_of_copy(run: Path, copy: Path) -> str:
    """Return in one line what rounding the weights of a world's copy costs, from the starts that both have."""
    full, rounded = load(run), load(copy)
    if not isinstance(full, WorldModel):
        return "What rounding costs was not measured: only a world generates frames."
    return cost(Session(full), Session(rounded), initial_frames(copy))


def _psnr(session: Session, start: Start) -> list[float]:
    frames, actions = start
    world, space = session.world, session.actions
    half = len(frames) // 2
    given = space.unlabelled((len(frames),)) if actions is None else actions
    codes = np.asarray(world.actions_of(jnp.asarray(frames[None]), jnp.asarray(given[None])))[0]
    if half == 0 or not (space.kind == "none" or np.all(space.is_action(codes[half:]))):
        return []
    session.temperature = 0
    session.reset(frames[:half], actions if actions is None else actions[:half])
    found = [session.step(codes[t] if space.size else 0) for t in range(half, len(frames))]
    return np.asarray(psnr(frames[half:], np.stack(found))).tolist()
