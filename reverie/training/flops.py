"""FLOPs of a program, counted from its jaxpr.

XLA's own cost analysis counts the body of a loop once; here the body of a scan counts once per iteration. Only matmuls
and convolutions are counted, since they dominate the time, and the peak rates of devices refer to them.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

FLASH = re.compile(r"dot_product_attention_(fwd|bwd)(?:_wrapper)?")  # cuDNN's attention, as jax.nn calls it
SHARE = re.compile(r"share=([\d.]+)")
# Peaks of dense 16-bit matmuls in TFLOP/s, by how JAX names a device; vendors' data sheets.
PEAKS = {
    "H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "GB200": 2500, "B200": 2250,
    "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5": 459, "TPU v6": 918, "TPU7x": 2307,
}  # fmt: skip


def peak(devices: Any) -> float:
    """Return the peak of an array of devices in FLOP/s, for 16-bit matmuls; 0 if it is not known."""
    kinds = [device.device_kind for device in np.ravel(devices)]
    return sum(next((1e12 * tera for name, tera in PEAKS.items() if name in kind), 0.0) for kind in kinds)


def count(program: Any, costliest: bool = False) -> float:
    """Return the floating-point operations (a multiply and an add are two) of one run of a (closed) jaxpr.

    The jaxpr of ``fn`` is ``jax.jit(fn).trace(*args).jaxpr``. A ``cond`` counts as its costliest branch; in
    ``jax.named_scope("share=0.25")`` as that share of it, and the rest of the cheapest branch, unless ``costliest``. A
    ``while`` loop counts as one iteration, since their number is unknown. Recomputation in the backward pass (remat)
    counts too.
    """
    jaxpr: Jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(_equation(equation, costliest) for equation in jaxpr.eqns)


def _equation(equation: Any, costliest: bool) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, axes = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        # An output element is a sum over the window and the input channels of its group: the kernel without one axis.
        window = math.prod(kernel) // kernel[axes[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * window
    if found := FLASH.fullmatch(name):  # the arguments of both begin with queries (B, T, K, D), and keys (B, S, G, D)
        batch, queries, heads, width = equation.invars[0].aval.shape
        keys = equation.invars[1].aval.shape[1]
        # Two matmuls forward; backward the logits again, and two for each of them. Masked pairs count, as elsewhere.
        return {"fwd": 2, "bwd": 5}[found[1]] * 2.0 * batch * queries * keys * heads * width
    inner = [count(jaxpr, costliest) for jaxpr in _inside(params)]
    if name == "cond":
        found = None if costliest else SHARE.search(str(equation.source_info.name_stack))
        share = float(found[1]) if found else 1.0
        return share * max(inner) + (1 - share) * min(inner)
    # The body of a shard_map is what one of the mesh's devices does.
    return sum(inner) * (params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1)


def _inside(params: dict[str, Any]) -> list[Any]:
    """Return the programs in an equation: the body of a scan, the branches of a cond, a function under jit or remat."""
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, ClosedJaxpr | Jaxpr)]
