"""Rules for random numbers: threefry, the default of ``jax.random``. A key is two uint32, in a last dimension.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

import math

import numpy as np

from reverie.onnx.graph import Graph, Operand, Value
from reverie.onnx.table import Equation, refuse, rule

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


@rule("random_seed", lazy=True)
def random_seed(g: Graph, e: Equation, seed: Value) -> Value:
    return _pair(g, _numbers(0), g.value(g.cast(seed, np.uint32)))


@rule("random_unwrap", lazy=True)
def same(g: Graph, e: Equation, key: Operand) -> Operand:
    return key


@rule("random_fold_in")
def random_fold_in(g: Graph, e: Equation, key: Operand, data: Operand) -> Value:
    return _pair(g, *_threefry(g, key, _numbers(0), g.cast(data, np.uint32)))


@rule("random_split")
def random_split(g: Graph, e: Equation, key: Operand) -> Operand:
    return g.reshape(_pair(g, *_draw(g, e, key)), e.outs[0].shape)


@rule("random_bits")
def random_bits(g: Graph, e: Equation, key: Operand) -> Operand:
    if e.params["bit_width"] != 32:
        raise refuse(e, f"{e.params['bit_width']} bits a number")
    return g.reshape(g.elementwise("BitwiseXor", *_draw(g, e, key)), e.outs[0].shape)


def _draw(g: Graph, e: Equation, key: Operand) -> tuple[Value, Value]:
    """Return two uint32 for each number that an operation wants of one key."""
    if e.ins[0].shape != (2,):
        raise refuse(e, "several keys")
    count = np.arange(math.prod(e.params["shape"]), dtype=np.uint32)
    return _threefry(g, key, np.zeros_like(count), count)


def _threefry(g: Graph, key: Operand, high: Operand, low: Operand) -> tuple[Value, Value]:
    """Encrypt a counter of two uint32 in 20 rounds."""
    key = g.value(key)
    keys = [g.op("Gather", [key, np.array(i, np.int64)], key.shape[:-1], np.uint32, axis=-1) for i in (0, 1)]
    mixed = g.elementwise("BitwiseXor", g.elementwise("BitwiseXor", *keys), _numbers(PARITY))
    keys.append(mixed)
    x, y = g.elementwise("Add", high, keys[0]), g.elementwise("Add", low, keys[1])
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            x = g.elementwise("Add", x, y)
            left = g.elementwise("BitShift", y, _numbers(bits), direction="LEFT")
            right = g.elementwise("BitShift", y, _numbers(32 - bits), direction="RIGHT")
            y = g.elementwise("BitwiseXor", g.elementwise("BitwiseOr", left, right), x)
        x = g.elementwise("Add", x, keys[(group + 1) % 3])
        y = g.elementwise("Add", y, g.elementwise("Add", keys[(group + 2) % 3], _numbers(group + 1)))
    return x, y


def _pair(g: Graph, a: Operand, b: Operand) -> Value:
    """Put two numbers side by side, in a last dimension."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    parts = [g.reshape(g.full(each, shape), [*shape, 1]) for each in (a, b)]
    return g.op("Concat", parts, [*shape, 2], np.uint32, axis=len(shape))


def _numbers(number: int) -> np.ndarray:
    return np.array(number, np.uint32)
