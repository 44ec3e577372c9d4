"""What takes minutes: two hundred kills while runs are extended, begun anew, fed from a cache being made, or exported.

Never is anything worse than before, and what goes on afterwards ends with the same bits. Left out unless asked for.
"""

import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_folder import content
from test_resume import DATA, same, state
from toy_objective import toy_run

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("REVERIE_KILLS", "200"))
BEFORE, AFTER = (toy_run(steps, save_every=2, log_every=1) for steps in (8, 24))


def work(kind: str, out: Path, cache: Path) -> None:
    """What a process does until it is killed."""
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    from reverie.training.engine import fit
    from reverie.training.export import export

    if kind == "export":
        export(out, out.with_name("copy"))
    elif kind == "cache":
        fit(lam_run(), out / "lam", dataset=long_data(), progress=False)
    else:
        fit(AFTER, out, dataset=DATA, progress=False, fresh=kind == "fresh")


def lam_run() -> Any:
    from test_objectives import PAIR, tiny

    from reverie.models.lams.tokens import TokenLAMConfig
    from reverie.training.objectives import LatentActionObjective

    return small(LatentActionObjective(lam=tiny(TokenLAMConfig(), PAIR)))


def small(objective: Any) -> Any:
    from reverie.training.engine import Run

    return Run(objective=objective, batch=4, length=6, steps=6, log_every=1, report_every=0, save_every=2)


def long_data() -> Any:
    from test_objectives import dataset

    return dataset((2000, 500, 9))


def finished(base: Path, cache: Path) -> dict[str, Path]:
    """Runs to be worked on, and how they end when none is killed."""
    from test_objectives import GLANCE, tiny

    from reverie.models.tokenizers.vqvae import VQVAEConfig
    from reverie.training.engine import fit
    from reverie.training.objectives import TokenizerObjective

    run_of = {"short": BEFORE, "long": AFTER}
    made = {name: fit(run, base / name, dataset=DATA, progress=False) for name, run in run_of.items()}
    fit(small(TokenizerObjective(tokenizer=tiny(VQVAEConfig(), GLANCE))), base / "world/tokenizer", dataset=long_data())
    shutil.copytree(base / "world", base / "whole")
    fit(lam_run(), base / "whole/lam", dataset=long_data(), progress=False)
    return made | {"world": base / "world", "whole": base / "whole"}


def test_kills_make_nothing_worse(tmp_path):
    rng, seen, whole = random.Random(0), Counter(), finished(tmp_path / "base", tmp_path / "cache")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["soak_folder", "reverie.training.export", "test_objectives"])
    kinds = ("extend", "fresh", "cache", "export")
    took = dict.fromkeys(kinds, 0.0)
    for kind in kinds:  # how long each takes when it is left alone; the first of a kind compiles
        for _ in range(2):
            out = begin(tmp_path, kind, whole)
            began = time.monotonic()
            child = context.Process(target=work, args=(kind, out, tmp_path / "cache"))
            child.start()
            child.join()
            took[kind] = time.monotonic() - began
            assert child.exitcode == 0
        check(kind, out, whole, ended=True)
    for number in range(KILLS):
        kind = kinds[number % len(kinds)]
        out = begin(tmp_path, kind, whole) if number < len(kinds) or rng.random() < 0.5 else tmp_path / "work" / kind
        child = context.Process(target=work, args=(kind, out, tmp_path / "cache"))
        child.start()
        child.join(rng.uniform(0.1, 1.0) * took[kind])
        child.kill()
        child.join()
        seen[kind, child.exitcode] += 1
        check(kind, out, whole, ended=False)
        if rng.random() < 0.3:  # it goes on, and ends as if nothing had happened
            child = context.Process(target=work, args=("extend" if kind == "fresh" else kind, out, tmp_path / "cache"))
            child.start()
            child.join()
            ended = child.exitcode == 0 or kind == "export"  # which refuses what is there already
            assert ended, kind
            check(kind, out, whole, ended=True)
            begin(tmp_path, kind, whole)
    print(dict(seen), {kind: round(seconds, 1) for kind, seconds in took.items()})


def begin(folder: Path, kind: str, whole: dict[str, Path]) -> Path:
    out = folder / "work" / kind
    shutil.rmtree(out.parent / "copy", ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    return Path(shutil.copytree(whole["world" if kind == "cache" else "short"], out))


def check(kind: str, out: Path, whole: dict[str, Path], *, ended: bool) -> None:
    """Assert that a folder is what it was, or complete."""
    if kind == "cache":
        assert content(out / "tokenizer") == content(whole["world"] / "tokenizer")
        if ended:
            same(whole["whole"] / "lam", out / "lam")
            assert not [path for path in (out / "lam" / "cache").iterdir() if path.name[0] == "."]
    elif kind == "export":
        assert content(out) == content(whole["short"])
        copy = out.with_name("copy")
        assert copy.exists() or not ended
        if copy.exists():
            from reverie.training.checkpoint import load

            load(copy)
        if ended:
            assert not list(out.parent.glob(".copy*"))
    else:
        before = content(whole["short"])
        now = content(out) if (out / ".commit").is_dir() or state(out)[0] == 8 else None
        if now is not None and not (out / ".commit").is_dir():
            assert now == before and not ended
        else:
            same(whole["long"], out) if not (out / ".commit").is_dir() else state(out)
