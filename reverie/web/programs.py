"""The two programs of a played world as ONNX models: how it begins, and its next frame."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from reverie.nn.compiled import compiled
from reverie.nn.transformer import unstack_layers
from reverie.onnx.convert import convert
from reverie.onnx.graph import Constants
from reverie.training.flops import count
from reverie.world import WorldModel, advance, begin, initial

BEGIN, STEP = ("frames", "actions", "length"), ("action", "clock", "temperature")  # inputs beside weights and state
FRAME, UNSURE = "frame", "unsure"  # the outputs beside the state; the second of a step alone


class Traced(NamedTuple):
    """The programs of a world as jaxprs whose first inputs are the weights; ``state``: how many arrays it has."""

    begin: ClosedJaxpr
    step: ClosedJaxpr
    weights: list[np.ndarray]
    state: int

    @property
    def flops(self) -> float:
        """The FLOPs of a frame."""
        return count(self.step)


class Models(NamedTuple):
    """ONNX models, and the bytes of the weights that both read."""

    begin: bytes
    step: bytes
    weights: bytes


def trace(world: WorldModel) -> Traced:
    """Trace how a world begins and continues; nothing is computed."""
    space = world.config.actions
    player = unstack_layers(world)
    first, further = compiled(player, begin), compiled(player, advance)
    given = initial(world, np.zeros((1, *world.config.frame), np.uint8), None)
    state, _ = jax.eval_shape(partial(begin, player), *given)
    clock, temperature = np.zeros(2, np.uint32), np.float32(0)
    step = further.traced(state, space.unlabelled(), clock, temperature)
    return Traced(first.traced(*given), step, [*map(np.asarray, first.weights)], len(jax.tree.leaves(state)))


def models(traced: Traced) -> Models:
    """Convert both programs. The state is the arrays "0", "1", ...: outputs of both, inputs of a step."""
    constants, state = Constants(), [str(number) for number in range(traced.state)]
    first = convert(traced.begin, [*traced.weights, *BEGIN], [*state, FRAME], constants)
    further = convert(traced.step, [*traced.weights, *_old(state), *STEP], [*state, FRAME, UNSURE], constants)
    return Models(first, further, bytes(constants.data))


def _old(state: list[str]) -> list[str]:
    """Names of the state before a step: an ONNX graph has no input and output of one name."""
    return [f"before-{name}" for name in state]
