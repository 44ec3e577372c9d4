"""``python -m benchmarks.accelerator OUT.json``: what only an accelerator can show, part by part, in ten minutes.

Each part runs in a process of its own, so that its peak of memory is its own and a crash ends nothing else. Its result
is in the file before the next one begins. The same command continues with the missing parts.

Shapes: B batch, T time, N tokens per frame.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks import play, players
from benchmarks.timing import Figure
from reverie.actions import ActionSpace
from reverie.bounded import parse_json
from reverie.data.episode import Spec
from reverie.errors import ReverieError
from reverie.forecast import matmul_rate
from reverie.models.dynamics import families
from reverie.nn.attention import why_no_flash
from reverie.nn.batch import row_keys
from reverie.nn.compiled import cache_compilations, compiler_options
from reverie.nn.target import Target, target, traced_for
from reverie.nn.transformer import TransformerConfig
from reverie.presets import preset, presets
from reverie.presets.recipe import stages
from reverie.training import checkpoint, engine, flops, hlo, sharding
from reverie.training.blueprint import Blueprint
from reverie.training.cost import batch_of, cost
from reverie.training.engine import Run

Facts = dict[str, Any]
MINUTES = 10.0
LONGEST = 180.0  # seconds of one part
ACTIONS = ActionSpace("discrete", 6)
# Even numbers of tokens and frames, and heads of 64: cuDNN has a flash kernel for them.
NET = TransformerConfig(width=512, depth=4, heads=8, window=8)
GRID, LENGTH, ROWS = (8, 8), 16, 8
PLAYED = ("toy-maskgit-shipped", "toy-shortcut", "coinrun-maskgit-base")
SHORT = ("machine", "parity maskgit", "train toy-maskgit", "play toy-maskgit")


# -- parts: what each measures ---------------------------------------------------------------------------------------


def machine() -> Facts:
    """Return which device this is, its memory, and the rate of large matmuls."""
    device, memory = jax.local_devices()[0], _memory("bytes_limit")
    about = {"device": device.device_kind, "platform": target().platform, "devices": jax.device_count()}
    return about | {"jax": jax.__version__, "memory": memory, "matmul_flops": matmul_rate()}


def parity(family: str, net: TransformerConfig = NET, grid: tuple[int, int] = GRID, length: int = LENGTH) -> Facts:
    """Return how far loss and gradient of a family in bfloat16 are from float32, with a flash kernel and without.

    Of the gradient: the norm of the difference relative to the gradient's, over all weights. ``no_flash``: why there
    is no such kernel.
    """
    here, heads = target(), jax.ShapeDtypeStruct((1, grid[0] * grid[1], net.heads, net.head), jnp.bfloat16)
    reason = why_no_flash(heads, heads, False, net.soft_cap, here.capability)
    without = Target(here.platform)  # of no compute capability, so no kernel is found
    ways = {"float32": ("float32", without), "bfloat16": ("bfloat16", without)}
    ways |= {} if reason else {"flash": ("bfloat16", here)}
    loss, gradient = {}, {}
    facts: Facts = {"no_flash": reason}
    for way, (dtype, machine) in ways.items():
        with traced_for(machine), jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            loss[way], gradient[way] = _loss(families()[family], replace(net, dtype=dtype), grid, length)
        facts[f"loss_{way}"] = loss[way] / loss["float32"] - 1
        apart = [a - b for a, b in zip(gradient[way], gradient["float32"], strict=True)]
        facts[f"gradient_{way}"] = _norm(apart) / _norm(gradient["float32"])
    return facts | {"loss_float32": loss["float32"]}


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(each)) for each in arrays)))


def _loss(family: Any, net: TransformerConfig, grid: tuple[int, int], length: int) -> tuple[float, list[np.ndarray]]:
    """Return the loss of random clips and its gradient; weights and noise depend on sizes alone."""
    made = family(grid=grid, actions=ACTIONS, transformer=net)
    graph, params, rest = nnx.split(made.make(nnx.Rngs(0)), nnx.Param, ...)
    latents, actions = play.clip(made, grid[0] * grid[1], ROWS, length - 1)
    latents = jnp.concatenate([latents, latents[:, :1]], axis=1)

    def loss(params: Any) -> Array:
        return nnx.merge(graph, params, rest).loss(latents, actions, row_keys(jax.random.key(1), ROWS)).value

    value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options())(params)
    return float(value), [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(gradient)]


def training(run: Run, spec: Spec, seconds: float, folder: Path = Path("dynamics")) -> Facts:
    """Return frames/s and utilisation of a step on one device, and the peak of its memory beside what was planned."""
    mesh = sharding.make_mesh(run.mesh, jax.local_devices()[:1])
    limit, expected = _memory("bytes_limit"), cost(run, spec, folder).memory
    if limit and expected > limit:
        return {"estimated_bytes": expected, "skipped": f"needs about {expected / 1e9:.0f} GB of {limit / 1e9:.0f}"}
    blueprint = Blueprint(run.objective, spec, run.seed, folder)
    state, frozen, _ = engine._state(run, folder, blueprint, mesh, None)
    batch = sharding.put_batch(mesh, _noise(batch_of(run, spec, blueprint)))
    pace = sharding.put(engine.pace_of(run, 0), sharding.everywhere(mesh))
    step = engine.compile_step(run, blueprint, mesh, state)
    held, work = hlo.held_bytes((state, frozen, batch)), flops.count(step.trace(state, frozen, batch, pace).jaxpr)
    began = time.perf_counter()
    program = step.lower(state, frozen, batch, pace).compile()
    compiling = time.perf_counter() - began
    state, metrics = program(state, frozen, batch, pace)
    jax.block_until_ready(metrics)
    taken, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        state, new = program(state, frozen, batch, pace)
        jax.block_until_ready(metrics)  # one step is in flight, as in training
        metrics, taken = new, taken + 1
    jax.block_until_ready(metrics)
    rate = taken / (time.perf_counter() - began)
    top = flops.peak(mesh.devices)
    return {
        "frames_per_second": rate * run.batch * run.length,
        "step_ms": 1e3 / rate,
        "flops": work,
        "mfu": work * rate / top if top else None,
        "compile_seconds": compiling,
        "estimated_bytes": expected,
        "planned_bytes": held + hlo.passing_bytes(program),
        "peak_bytes": _memory("peak_bytes_in_use"),
        "loss": float(metrics["loss"]),
    }


def _noise(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return random numbers of these types and shapes; codes and actions are small, so that all models know them."""
    rng = np.random.default_rng(0)

    def some(like: Any) -> np.ndarray:
        if jnp.issubdtype(like.dtype, jnp.floating):
            return rng.standard_normal(like.shape).astype(like.dtype)
        return rng.integers(0, 256 if like.dtype == np.uint8 else 2, like.shape).astype(like.dtype)

    return jax.tree.map(some, shapes)


def _memory(name: str) -> int | None:
    """Return a number of the device's allocator; None where it has none, as on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get(name)


def figures(found: Iterable[Figure]) -> Facts:
    """Return measurements by name, with their units."""
    return {figure.name: {"value": figure.value, "unit": figure.unit} for figure in found}


def of_preset(name: str, seconds: float) -> Facts:
    """Return ``training`` of a preset's dynamics on one device; the models before it are untrained."""
    recipe, folder = preset(name), Path(os.path.abspath("accelerator"))
    spec = recipe.source.spec()
    with checkpoint.untrained_models() as models:
        for stage, run in stages(recipe).items():
            if stage == "dynamics":
                return training(replace(run, mesh="data"), spec, seconds, folder / stage)
            models[folder / stage] = checkpoint.structure(run, spec, folder / stage)
    raise ReverieError(f"'{name}' has no dynamics.")


def parts(short: bool = False) -> dict[str, Callable[[], Facts]]:
    """Return all parts by name, in the order in which they run: the surest first. ``short``: a few, in little time."""
    seconds = 0.5 if short else 8.0
    sizes: Any = {"net": replace(NET, width=32, depth=1, heads=2), "grid": (2, 2), "length": 4} if short else {}
    found: dict[str, Callable[[], Facts]] = {"machine": machine}
    found |= {f"parity {family}": lambda family=family: parity(family, **sizes) for family in families()}
    played = ("toy-maskgit",) if short else PLAYED
    found |= {f"play {name}": lambda name=name: figures(play.demo(name, 10 if short else 300)) for name in played}
    found |= {f"train {name}": lambda name=name: of_preset(name, seconds) for name in presets()}
    name = PLAYED[0]
    found["players"] = lambda: figures(players.playing(name, play.untrained(preset(name)), seconds=2.0, rounds=2))
    return {name: found[name] for name in SHORT} if short else found


# -- running them ----------------------------------------------------------------------------------------------------


def measure(out: Path, minutes: float, names: Iterable[str], run: Callable[[str, float], Facts]) -> list[str]:
    """Run the parts that ``out`` lacks until time is up; return the names of those still missing.

    ``run``: (name, seconds at most) -> facts. A part that fails is noted and tried again next time. Raises ReverieError
    if ``out`` is of another machine, or not a file of results.
    """
    end, names = time.monotonic() + 60 * minutes, list(names)
    found: dict[str, Facts] = parse_json(out.read_bytes(), f"'{out}'", finite=False) if out.exists() else {}
    if not isinstance(found, dict):
        raise ReverieError(f"'{out}' holds no results of this script: choose another file.")
    for name in names:
        if name != "machine" and "error" not in found.get(name, {"error": ""}):
            continue
        if (left := end - time.monotonic()) <= 0:
            break
        facts = run(name, min(left, LONGEST))
        before = found.get(name, {}).get("device", facts.get("device"))
        if before != facts.get("device"):  # only the machine's own part names it
            raise ReverieError(f"'{out}' is of '{before}', and here is '{facts.get('device')}': choose another file.")
        found[name] = facts
        print(json.dumps({name: facts}), flush=True)
        new = out.with_name(f".{out.name}.{os.getpid()}")
        new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(new, out)
    return [name for name in names if "error" in found.get(name, {"error": ""})]


def in_child(name: str, seconds: float, short: bool) -> Facts:
    """Return what a part measures in a process of its own, or {"error": why it has no result}."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--part", name, *(["--short"] if short else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {seconds:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """Measure, and say what is missing; status 0 if nothing is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=Path("accelerator.json"), help="where results are kept")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for this call")
    parser.add_argument("--short", action="store_true", help="a few parts at small sizes, to see that it works")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        cache_compilations()
        print(json.dumps(parts(args.short)[args.part]()))
        return 0
    try:
        missing = measure(args.out, args.minutes, parts(args.short), partial(in_child, short=args.short))
    except ReverieError as error:
        parser.error(str(error))
    if missing:
        print(f"missing: {', '.join(missing)}. The same command goes on.", file=sys.stderr)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
