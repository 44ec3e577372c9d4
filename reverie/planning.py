"""``reverie plan``: what a stage of a preset takes on machines that are not there, and whether it fits.

The step is compiled in a process of its own: a compiler for TPUs installs signal handlers, locks a file and takes
gigabytes, and it may take longer than one is willing to wait.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reverie import config
from reverie.errors import ReverieError, did_you_mean
from reverie.forecast import duration
from reverie.presets.recipe import Recipe, stages
from reverie.training import checkpoint
from reverie.training.chips import BETWEEN, Topology, topology
from reverie.training.log import si
from reverie.training.plan import SLICES, plan_step

MODULES = {"plan-tpu": ("libtpu",), "plan-gpu": ("jax_plugins.xla_cuda13", "nvidia.cu13")}  # by extra
MFU = 0.4  # share of the peak that a step is assumed to reach
WIRE = {"all-reduce": 2.0}  # bytes on the wire for each byte of an array; 1 for all others


def plan(recipe: Recipe, stage: str, where: Topology, quick: bool, minutes: float) -> dict[str, Any]:
    """Return what a step of a stage takes on each device of a machine: see ``training.plan.plan_step``.

    Raises ReverieError if there is no such stage, if an extra is missing, if the program cannot be compiled, or if that
    takes longer than ``minutes``.
    """
    if stage not in (known := stages(recipe)):
        raise ReverieError(f"there is no stage '{stage}' here.{did_you_mean(stage, known)}")
    if not quick:
        _check_installed(where)
    with tempfile.TemporaryDirectory() as place:
        found = Path(place) / "found.json"
        asked = {"recipe": config.to_json(recipe), "stage": stage, "topology": where.name, "quick": quick}
        command = [sys.executable, "-c", "from reverie.planning import child; child()", str(found)]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(asked),
                env=_environment(where, quick),
                text=True,
                capture_output=True,
                timeout=60 * minutes,
            )
        except subprocess.TimeoutExpired:
            raise ReverieError(f"not compiled after {minutes:g} minutes: raise --time-limit, or use --quick.") from None
        if not found.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ReverieError(f"the compiler stopped with status {done.returncode}: {last}")
        facts = json.loads(found.read_text(encoding="utf-8"))
    if "error" in facts:
        raise ReverieError(facts["error"])
    return facts


def child() -> None:
    """Plan what standard input asks for, and write the result to the file that the command names."""
    asked = json.load(sys.stdin)
    recipe, out = config.from_json(asked["recipe"]), Path(os.path.abspath("plan"))
    spec = recipe.source.spec()
    try:
        with checkpoint.untrained_models() as models:
            for name, run in stages(recipe).items():
                if name == asked["stage"]:
                    found = plan_step(run, spec, out / name, topology(asked["topology"]), asked["quick"])
                    break
                models[out / name] = checkpoint.structure(run, spec, out / name)
    except ReverieError as error:
        found = {"error": str(error)}
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


def _check_installed(where: Topology) -> None:
    for module in MODULES.get(where.chip.extra, ()):
        if _found(module) is None:
            raise ReverieError(
                f"planning for '{where.name}' needs the extra {where.chip.extra}: "
                f"pip install 'reverie-worlds[{where.chip.extra}]'."
            )


def _found(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package around it
        return None


def _environment(where: Topology, quick: bool) -> dict[str, str]:
    """Return the environment of the process that compiles: JAX on the CPU, and what its plug-ins need."""
    new = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    flags = []
    if quick or where.chip.platform == "cpu":
        flags = [f"--xla_force_host_platform_device_count={where.size}"]
    elif where.chip.platform == "gpu":  # where ptxas and libdevice are
        flags = [f"--xla_gpu_cuda_data_dir={next(iter(_found('nvidia.cu13').submodule_search_locations))}"]
    new["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    new["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
    return os.environ | new


def report(name: str, stage: str, run: Any, where: Topology, facts: dict[str, Any]) -> str:
    """Return the facts as text: each line is exact, from the compiler, or an estimate."""
    sizes, chip, devices = facts["bytes_per_device"], where.chip, facts["devices"]
    quick, refused = facts.get("quick"), facts.get("refused")
    left = sizes["limit"] - sizes["total"]
    rows = [("exact", "parameters", si(facts["parameters"]))]
    rows += [("exact", f"{part}, per device", f"{si(size)}B") for part, size in facts["parts"].items() if size]
    rows += [("exact", f"copied: {array}", f"{si(size)}B") for array, size in facts["copied"].items()]
    mark = "estimate" if quick else "compiler"
    rows += [(mark, "temporaries, per device", f"{si(sizes['temporaries'])}B" + " (refused)" * bool(refused))]
    if kept := facts.get("bytes_on_host"):
        rows.append((mark, "kept by the host, per device", f"{si(kept)}B"))
    verdict = "FITS" if facts["fits"] else "DOES NOT FIT"
    rows += [
        (mark, "total, per device", f"{si(sizes['total'])}B of {si(sizes['limit'])}B"),
        (mark, verdict, f"{si(abs(left))}B {'are left' if facts['fits'] else 'too many'}"),
        ("exact", "FLOP per step", si(facts["flops_per_step"])),
        ("exact", "FLOP per step and device", si(facts["flops_per_step"] / devices)),
    ]
    if "flops_per_device" in facts:
        own, whole = facts["optimizer_flops_per_device"], facts["flops_of_optimizer"]
        here, every = facts["flops_per_device"], facts["flops_of_costliest_step"]
        counted = [("FLOP of device 0, costliest step", here, every)]
        if whole:
            counted += [("of which the model", here - own, every - whole), ("of which the optimiser", own, whole)]
        rows += [
            ("compiler", what, f"{si(mine)}, x{mine / (total / devices):.2f} of its share")
            for what, mine, total in counted
        ]
        rows += [
            ("compiler", f"{each['kind']} along {each['axis'] or 'no axis'}", f"{si(each['bytes'])}B")
            for each in facts["collectives"]
        ]
        rows.append(("compiler", "of which activations", f"{si(facts['activations_sent'])}B"))
        rows += [
            ("compiler", f"array {each['shape']}", f"{si(each['bytes'])}B, {each['made_by'] or 'by the compiler'}")
            for each in facts["arrays"]
        ]
    rows += [("estimate", what, text) for what, text in _estimates(run, where, facts)]
    head = f"{name}, {stage}: {run.batch} x {run.length} frames per step, mesh {run.mesh}, on {where.name}"
    about = f"{devices} x {chip.kind}, {si(where.limit)}B each ({chip.source})"
    lines = [head, about, "", *(f"{mark:9} {what:42} {text.strip()}" for mark, what, text in rows)]
    if not facts["fits"]:
        lines += ["", "What would help:", *(f"  {each}" for each in advice(stage, run, facts))]
    return "\n".join(lines)


def _estimates(run: Any, where: Topology, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the time of a step and what follows from it, with assumptions; nothing where the peak is not known."""
    if not (peak := where.chip.peak):
        return []
    best = facts["flops_per_step"] / facts["devices"] / peak
    rows = [
        (
            "step, matmuls alone",
            f"{duration(best)} at the peak of {si(peak)}FLOP/s, {duration(best / MFU)} at {MFU:.0%}",
        ),
        (f"frames per second, at {MFU:.0%}", si(run.batch * run.length / (best / MFU))),
        (f"all {run.steps} steps, at {MFU:.0%}", duration(run.steps * best / MFU)),
    ]
    for what, rate, between in (("between slices", BETWEEN, True), ("communication", where.link, False)):
        passed = [each for each in facts["collectives"] if (each["axis"] == SLICES) == between]
        if sent := sum(WIRE.get(each["kind"], 1.0) * each["bytes"] for each in passed):
            text = f"{duration(sent / rate)} at {si(rate)}B/s per device, hidden as far as it overlaps"
            rows.insert(1, (f"step, {what} alone", text))
    return rows


def advice(stage: str, run: Any, facts: dict[str, Any]) -> list[str]:
    """Return which flags would lower the memory that a step takes, the cheapest first."""
    sizes, devices = facts["bytes_per_device"], facts["devices"]
    found = []
    if devices > 1 and "fsdp" not in run.mesh and sizes["arguments"] > sizes["limit"] / 10:
        found.append(f"--{stage}.mesh fsdp: weights and optimiser take {si(sizes['arguments'])}B on every device")
    remats = {path: value for path, value in config.flatten(run).items() if path.endswith(".remat")}
    for value, better in (("none", "dots"), ("dots", "full"), ("full", "layers"), ("layers", "offload")):
        found += [f"--{stage}.{path} {better}".replace("_", "-") for path, now in remats.items() if now == value]
    rows = run.batch // run.accumulate // facts["row_parts"]
    if rows > 1:
        parts = run.accumulate * rows
        found.append(f"--{stage}.accumulate {parts}: one clip per device at a time, instead of {rows}")
        found.append(f"--{stage}.batch {run.batch // rows}: fewer clips per step")
    return found or ["a machine of more devices, shorter clips, or a smaller model"]
