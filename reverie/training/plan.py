"""A training step compiled for a machine that is not there: what it takes of memory, matmuls and communication.

The program is the one that ``engine.fit`` runs. Nothing is loaded or computed.
"""

import math
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from reverie.data.episode import Spec
from reverie.errors import ReverieError
from reverie.nn.target import traced_for
from reverie.training import flops, hlo, sharding
from reverie.training.blueprint import Blueprint
from reverie.training.chips import Topology
from reverie.training.cost import activations, batch_of, size_of, state_of
from reverie.training.engine import Pace, Run, compile_step
from reverie.training.optim import SCOPE

# Without a GPU no kernel can be timed, and Triton's matmuls fail without ("Couldn't find output tile sizes").
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}}
REFUSED = re.compile(r"([\d.]+)([KMG])\)? exceeds|Used ([\d.]+)([KMG]) of")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
FEW = 4096  # numbers of an array that is not an activation: norms, means, statistics
SLICES = "slices"
SHOWN = 5  # arrays that are listed


def plan_step(run: Run, spec: Spec, folder: Path, where: Topology, quick: bool) -> dict[str, Any]:
    """Return what a step takes on each device: the keys of ``reverie plan --json``.

    ``quick`` only traces, and estimates temporaries. Raises ReverieError if the batch does not divide, if the run is
    exact, or if the machine cannot be planned for. Runs on which this one depends are those of
    ``checkpoint.untrained_models``.
    """
    if run.exact:
        raise ReverieError("a step with --exact is many small programs, which are not planned: plan without --exact.")
    mesh = sharding.make_mesh(run.mesh, where.devices(stand_in=quick))
    sharding.check_slices(run.mesh, mesh.shape["data"], where.slices)
    sharding.check_batch(mesh, run.batch, run.accumulate)
    with traced_for(where.target):
        blueprint = Blueprint(run.objective, spec, run.seed, folder)
        state, frozen, batch, _ = given = arguments(run, spec, blueprint, mesh)
        began = time.perf_counter()
        traced = compile_step(run, blueprint, mesh, state).trace(*given)
        limit = where.limit
        facts: dict[str, Any] = {
            "parameters": sum(math.prod(leaf.shape) for leaf in state.params.values()),
            "devices": mesh.size,
            "row_parts": sharding.row_parts(mesh),
            "flops_per_step": flops.count(traced.jaxpr),
            "flops_of_costliest_step": flops.count(traced.jaxpr, costliest=True),
            "flops_of_optimizer": flops.count(_update_of(run, state)),
            "parts": {name: hlo.held_bytes(part) for name, part in _parts(state, frozen, batch).items()},
            "copied": copied(mesh, state),
        }
        held = sum(facts["parts"].values())
        if quick:
            kept, on_host = activations(run, blueprint, state.params, state.rest, frozen, batch)
            passing = size_of(state.params) / mesh.shape["fsdp"] + kept / mesh.size
            facts |= _memory(held, passing, limit) | {"bytes_on_host": on_host / mesh.size}
            return facts | {"compile_seconds": 0.0, "collectives": [], "quick": True}
        try:
            compiled = traced.lower().compile(OPTIONS.get(where.chip.platform))
        except jax.errors.JaxRuntimeError as error:
            if not (needed := refused(str(error))):
                raise
            seconds = time.perf_counter() - began
            found = _memory(held, needed, limit) | {"fits": False, "refused": True}
            return facts | found | {"compile_seconds": seconds, "collectives": []}
        seconds = time.perf_counter() - began
    return facts | compiled_facts(compiled, mesh, state, held, where) | {"compile_seconds": seconds}


def arguments(run: Run, spec: Spec, blueprint: Blueprint, mesh: Mesh) -> tuple[Any, Any, Any, Any]:
    """Return shapes with shardings of what a step takes: state, frozen weights, batch, pace."""
    state, batch = state_of(run, blueprint), batch_of(run, spec, blueprint)
    frozen = {name: blueprint.shapes[name] for name in blueprint.parts["frozen"]}
    number: Any = jax.ShapeDtypeStruct((), np.float32, sharding=sharding.everywhere(mesh))
    return (
        placed(state, sharding.shardings(mesh, state)),
        placed(frozen, sharding.shardings(mesh, frozen)),
        placed(batch, dict.fromkeys(batch, sharding.rows(mesh))),
        Pace(number, number),
    )


def placed(tree: Any, where: Any) -> Any:
    """Return the shapes of a tree with these shardings."""
    return jax.tree.map(lambda a, at: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), tree, where)


def compiled_facts(compiled: Any, mesh: Mesh, state: Any, held: int, where: Topology) -> dict[str, Any]:
    """Return what a compiled step says about one device. ``held``: the bytes of all arguments, used or not."""
    found, program = compiled.memory_analysis(), hlo.read(compiled.as_text(), SCOPE)
    # XLA drops arguments that a step does not read (a frozen tokenizer, where tokens are cached). They are held anyway.
    facts = _memory(held, hlo.passing_bytes(compiled), where.limit)
    if where.chip.platform == "tpu":  # its compiler refuses what does not fit, and may take more than it needs
        facts["fits"], peak = True, found.peak_memory_in_bytes + held - found.argument_size_in_bytes
        facts["bytes_per_device"]["total"] = min(facts["bytes_per_device"]["total"], peak)
    sent: dict[tuple[str, str], float] = {}
    for each in program.collectives:
        key = each.kind, axis_of(mesh, each)
        sent[key] = sent.get(key, 0.0) + each.bytes
    largest: dict[tuple[int, str], str] = {}
    for array in program.arrays:
        largest.setdefault((array.bytes, array.shape), array.made_by)
    return facts | {
        "bytes_on_host": found.host_temp_size_in_bytes,
        "peak": getattr(found, "peak_memory_in_bytes", 0) or None,
        "read": found.argument_size_in_bytes,
        "flops_per_device": program.flops,
        "optimizer_flops_per_device": program.scoped,
        "collectives": [
            {"kind": kind, "bytes": size, "axis": axis} for (kind, axis), size in sorted(sent.items(), key=_size)
        ],
        "activations_sent": sum(each.bytes for each in program.collectives if not _of_weights(each, state)),
        "arrays": [
            {"bytes": size, "shape": shape, "made_by": by} for (size, shape), by in list(largest.items())[:SHOWN]
        ],
    }


def _of_weights(each: hlo.Collective, state: Any) -> bool:
    """Whether a collective moves weights or sums gradients: its arrays have as many numbers as one of these, or few.

    That is all of a stack of layers or one of them, whole or a device's part. Rows alone are divided among slices, so
    that any sum over these is one of gradients or statistics.
    """
    if each.slices:
        return each.kind == "all-reduce"
    sizes = set()
    for leaf in jax.tree.leaves(state):
        for size in (leaf.size, math.prod(leaf.sharding.shard_shape(leaf.shape))):
            sizes |= {size, size // max(leaf.shape[:1] or (1,))}
    # What only moves is activations. In a TPU's program it may also be a matmul that sums a gradient in a ring.
    moves = each.kind in hlo.MOVES and not each.made_by.endswith("dot_general")
    return f"/{SCOPE}/" in each.made_by or all(size <= FEW or (size in sizes and not moves) for size in each.sizes)


def _update_of(run: Run, state: Any) -> Any:
    """Return the jaxpr of the optimiser alone."""
    return jax.jit(run.optimizer.make().update).trace(state.params, state.opt, state.params).jaxpr


def _size(item: tuple[Any, float]) -> float:
    return -item[1]


def _parts(state: Any, frozen: Any, batch: Any) -> dict[str, Any]:
    return {
        "weights": (state.params, state.rest),
        "average of the weights": state.ema,
        "optimiser": state.opt,
        "frozen parts": frozen,
        "batch": batch,
    }


def _memory(held: float, passing: float, limit: float) -> dict[str, Any]:
    total = held + passing
    sizes = {"arguments": held, "temporaries": passing, "total": total, "limit": limit}
    return {"bytes_per_device": sizes, "fits": total <= limit}


def copied(mesh: Mesh, state: Any) -> dict[str, int]:
    """Return the bytes of the large weights that must be replicated, since no axis divides, by name and shape."""
    if mesh.shape["fsdp"] == 1:
        return {}
    whole = {n: a for n, a in state.params.items() if a.size >= sharding.SPREAD_FROM and a.sharding.is_fully_replicated}
    return {f"{name} {leaf.shape}": size_of(leaf) for name, leaf in whole.items()}


def refused(message: str) -> float:
    """Return the bytes that a TPU's compiler says a program needs where it refuses it; 0 for any other error."""
    found = REFUSED.search(message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return 0.0
    number, unit = found[1] or found[3], found[2] or found[4]
    return float(number) * UNITS[unit]


def axis_of(mesh: Mesh, each: hlo.Collective) -> str:
    """Return the names of the mesh axes along which a collective runs, "data+fsdp" for two; "" if it names none.

    Those between slices of TPUs run along "slices", a part of "data".
    """
    if each.slices:
        return SLICES
    at = np.array(np.unravel_index(np.array(each.group, int), mesh.devices.shape))
    if each.kind == "collective-permute":
        moves = at.reshape(len(mesh.axis_names), -1, 2)
        differ = (moves[..., 0] != moves[..., 1]).any(axis=1)
    else:
        differ = (at != at[:, :1]).any(axis=1) if at.size else np.zeros(len(mesh.axis_names), bool)
    return "+".join(name for name, along in zip(mesh.axis_names, differ, strict=True) if along)
