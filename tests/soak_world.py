"""What takes minutes: a whole world is killed while it is made, extended or begun anew, at random instants.

A finished world is never worse than before, and what goes on afterwards ends with the same bits. `make soak`.
"""

import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from miniature import shrunk
from test_folder import content
from test_resume import same

from reverie.checksums import read_signed
from reverie.config import replace
from reverie.data.sources.square import SquareConfig
from reverie.presets import preset
from reverie.presets.recipe import Recipe

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("REVERIE_KILLS", "60"))
KINDS = ("new", "extend", "fresh")
STAGES = ("tokenizer", "dynamics")


def recipe(kind: str) -> Recipe:
    """The world that a finished one was made by (``new``), and what the other kinds make of it."""
    source = SquareConfig(count=12, frames=24)
    made = shrunk(replace(preset("square-shortcut"), source=source), source.spec())
    if kind == "extend":
        return replace(made, dynamics=replace(made.dynamics, steps=8))
    if kind == "fresh":
        return replace(made, tokenizer=replace(made.tokenizer, batch=4), dynamics=replace(made.dynamics, batch=4))
    return made


def work(kind: str, out: Path, cache: Path) -> None:
    """What a process does until it is killed."""
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    from reverie.pipeline import train

    train(recipe(kind), out, fresh=kind == "fresh")


def process(kind: str, out: Path, cache: Path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soak_world", "reverie.pipeline"])
    child = context.Process(target=work, args=(kind, out, cache))
    child.start()
    return child


def numbers(out: Path) -> dict:
    """What was measured of a world, but for how fast this machine was, and the checksum of all of it."""
    found = read_signed(out / "eval.json", required=True)
    return {name: value for name, value in found.items() if "per_second" not in name and "ms" not in name.split("_")}


def assert_is(out: Path, whole: Path) -> None:
    """Assert that every stage of a world and what was measured of it are those of one that was left alone."""
    for stage in STAGES:
        same(whole / stage, out / stage)
    assert numbers(out) == numbers(whole)


def test_a_world_that_is_killed_is_never_worse_than_before(tmp_path):
    rng, seen, cache, whole, took = random.Random(0), Counter(), tmp_path / "cache", {}, {}
    for again in range(2):  # how long each takes when it is left alone; the first compiles
        for kind in KINDS:
            out = tmp_path / f"whole-{kind}"
            shutil.rmtree(out, ignore_errors=True)
            if kind != "new":
                shutil.copytree(whole["new"], out)
            began, child = time.monotonic(), process(kind, out, cache)
            child.join()
            assert child.exitcode == 0, (kind, again)
            whole[kind], took[kind] = out, time.monotonic() - began
    before = content(whole["new"])
    for number in range(KILLS):
        kind, out = KINDS[number % len(KINDS)], tmp_path / "work"
        shutil.rmtree(out, ignore_errors=True)
        if kind != "new":
            shutil.copytree(whole["new"], out)
        for _ in range(rng.randint(1, 3)):  # killed, gone on with, killed again
            child = process(kind, out, cache)
            child.join(rng.uniform(0.05, 1.0) * took[kind])
            child.kill()
            child.join()
            seen[kind, child.exitcode] += 1
            if kind != "new" and not (out / ".commit").is_dir() and content(out) != before:
                assert_is(out, whole[kind])  # it had ended
        child = process("extend" if kind == "extend" else kind, out, cache)
        child.join()
        assert child.exitcode == 0, kind
        assert_is(out, whole[kind])
        left = [path for path in out.rglob("*") if path.name in (".next", ".old", ".commit") or ".part" in path.name]
        assert not left, left
    print(dict(seen), {kind: round(seconds, 1) for kind, seconds in took.items()})
