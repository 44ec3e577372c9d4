"""Mutations of everything that lies in a world's folder, and what may come of them: nothing, or one line.

A mutation is silently wrong when something loads that is not what was saved and no line says so. Falling back to an
older checkpoint, and making a cache again, are right: they say so, and what they give is compared as well.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reverie.actions import ActionSpace
from reverie.bounded import map_npy, read_json
from reverie.checksums import LATE, check_manifest, write_json
from reverie.config import replace, to_json
from reverie.data.arrays import ArrayDataset
from reverie.data.store import open_dataset
from reverie.errors import Damaged, ReverieError
from reverie.training import checkpoint, tokens
from reverie.training.checkpoint import load
from reverie.training.engine import fit
from reverie.world_folder import STARTS, named_actions

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
STAGES = ("tokenizer", "lam", "dynamics")
ITEMS = ("weights", "ema", "optimizer")
UNNAMED = ("1", "2", "3")


def trained_on(world: Path) -> Path:
    """Train a world's stages for two more steps, so that all in it is in today's format, with two checkpoints each."""
    for stage in reversed(STAGES):  # each is looked at alone; together they no longer fit
        run = checkpoint.read_record(world / stage).run
        fit(replace(run, steps=run.steps + 2, keep=2), world / stage, progress=False)
    write_json(world / "eval.json", read_json(world / "eval.json"))
    return world


def files_of(world: Path) -> list[Path]:
    """The files that are mutated, relative to the world: all but logs and locks, which decide nothing."""
    skipped = (".jsonl", ".lock")
    return sorted(p.relative_to(world) for p in world.rglob("*") if p.is_file() and not p.name.endswith(skipped))


def mutate(world: Path, file: Path, rng: np.random.Generator) -> str:
    """Break one file (or the folder it is in); return what was done."""
    path, kinds = world / file, ("flip",) * 5 + ("zero", "cut", "grow", "gone", "swap", "noise", "folder")
    kind, raw = str(rng.choice(kinds)), bytearray(path.read_bytes())
    if kind == "gone" or not raw:
        path.unlink()
        return "gone"
    if kind == "folder":
        shutil.rmtree(path.parent) if path.parent != world else path.unlink()
        return kind
    if kind == "swap":  # the content of another file that is named alike, or of any
        others = [p for p in files_of(world) if p != file]
        alike = [p for p in others if p.name == file.name] or others
        path.write_bytes((world / alike[int(rng.integers(len(alike)))]).read_bytes())
        return kind
    at = int(rng.integers(len(raw)))
    if kind == "flip":
        raw[at] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    elif kind == "cut":
        del raw[at:]
    elif kind == "grow":
        raw += rng.bytes(9)
    else:
        raw[at : at + 16] = rng.bytes(16)
    path.write_bytes(raw)
    return f"{kind} at {at}"


def look(world: Path, file: Path) -> dict[str, Any]:
    """Return what is read where ``file`` is, by name: arrays, configs, or names of actions."""
    top = file.parts[0]
    if top == "data":
        return _data(world)
    if top not in STAGES:
        starts = ArrayDataset.load(world / STARTS)
        return {"starts": dict(starts.arrays), "spec": to_json(starts.spec), "names": _names(world)}
    folder = checkpoint.find_run(world / top)
    record = checkpoint.read_record(folder)
    step, items = checkpoint.restore(folder, lambda *_: HERE, ITEMS)
    arrays = {f"{item}/{n}": np.asarray(leaf) for item, part in items.items() for n, leaf in part.items()}
    seen = {"record": (to_json(record.run), to_json(record.spec), record.fingerprint, record.frozen)}
    return {**seen, "checkpoint": (step, arrays), **_caches(folder)}


def _caches(folder: Path) -> dict[str, Any]:
    """The arrays of the token caches that count as whole; others are made again."""
    found = {}
    for cache in sorted(folder.glob("cache/*")):
        try:
            about = check_manifest(cache)
        except Damaged as error:
            print(error, file=sys.stderr)  # as training says it
            continue
        if about is not None and tokens._is_whole(cache, about["key"]):
            found |= {f"{cache.name}/{path.name}": np.array(map_npy(path)) for path in sorted(cache.glob("*.npy"))}
    return found


def _data(world: Path) -> dict[str, Any]:
    found = {}
    for split in ("train", "val"):
        dataset = open_dataset(world / "data", split)
        found[split] = to_json(dataset.spec), dataset.lengths.tolist()
        for episode, length in enumerate(dataset.lengths.tolist()):
            window = dataset.read(episode, 0, length)
            found |= {f"{split} {episode} {name}": np.asarray(array) for name, array in window.items()}
    return found


def _names(world: Path) -> tuple[str, ...]:
    return named_actions(ActionSpace("latent", 3), world).names or UNNAMED


def verdict(world: Path, file: Path, truth: dict[str, Any], said: Callable[[], str]) -> str:
    """Return what came of breaking ``file``. ``said()``: stderr since then.

    "same", "reported" if a line says what is wrong and nothing wrong is loaded, "refused" if nothing is loaded at all,
    or "wrong" and why.
    """
    try:
        found = look(world, file)
        if found.get("record") != truth.get("record"):
            load(world / file.parts[0])  # the record of another stage is whole, but does not fit the weights
    except ReverieError as error:
        return "refused" if "\n" not in str(error) else f"wrong: two lines, {error}"
    except Exception as error:
        return f"wrong: a traceback, {type(error).__name__}: {str(error)[:200]}"
    lines = said()
    for name, value in truth.items():
        if same(found.get(name), value):
            continue
        if name == "checkpoint" and same(found[name], truth["older"]):
            at = world / file.parts[0] / "checkpoints" / str(value[0])
            if ("is damaged" if at.exists() else "is missing") in lines:
                continue
        if name == "older" or ("/" in name and name not in found) or (name == "names" and found[name] == UNNAMED):
            continue  # the truth about the checkpoint before; a cache that is made again; codes without names
        return f"wrong: silently, {name}"
    return "reported" if lines else "same"


def truths(world: Path) -> dict[str, dict[str, Any]]:
    """What a whole world says, by the first part of its files' names; of stages, the older checkpoint as well."""
    found = {top: look(world, Path(top)) for top in {file.parts[0] for file in files_of(world)}}
    for stage in STAGES:
        newest = found[stage]["checkpoint"][0]
        step, items = checkpoint.restore(world / stage, lambda *_: HERE, ITEMS, newest - 1)
        arrays = {f"{item}/{n}": np.asarray(leaf) for item, part in items.items() for n, leaf in part.items()}
        found[stage]["older"] = step, arrays
    return found


def newest(world: Path) -> list[Path]:
    """Those files of the newest checkpoint of every stage that are read when it is."""
    steps = {stage: str(checkpoint.steps(world / stage)[-1]) for stage in STAGES}
    found = [file for file in files_of(world) if file.parts[0] in steps and steps[file.parts[0]] in file.parts]
    return [file for file in found if file.name not in LATE]


def run_mutations(
    world: Path, aside: Path, count: int, seed: int, said: Callable[[], str], files: list[Path] | None = None
) -> Counter[str]:
    """Break a whole world ``count`` times, look, and mend it; return how often what came of it, by verdict.

    ``files``: those that are broken, all by default.
    """
    rng, verdicts, truth = np.random.default_rng(seed), Counter[str](), truths(world)
    groups: dict[str, list[Path]] = {}
    for file in files or files_of(world):
        kind = "weights" if "d" in file.parts or "ocdbt.process_0" in file.parts else file.name
        groups.setdefault(kind, []).append(file)
    for _ in range(count):
        group = groups[sorted(groups)[int(rng.integers(len(groups)))]]
        file = group[int(rng.integers(len(group)))]
        unit = world / file.parts[0]
        (shutil.copytree if unit.is_dir() else shutil.copy2)(unit, aside)
        before, what = (world / file).read_bytes(), mutate(world, file, rng)
        said()
        came = verdict(world, file, truth[file.parts[0]], said)
        if came == "same" and (world / file).is_file() and (world / file).read_bytes() == before:
            came = "unchanged"  # zeros in place of zeros
        verdicts[f"{came} ({file}: {what})" if came.startswith("wrong") else came] += 1
        if unit.is_dir():
            shutil.rmtree(unit)
        shutil.move(aside, unit)
    return verdicts


def same(one: Any, other: Any) -> bool:
    """Whether nested values are equal to the last bit."""
    if isinstance(other, dict):
        return isinstance(one, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in other)
    if isinstance(other, tuple) and isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(other, np.ndarray):
        return isinstance(one, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    return one == other
