"""From a source of episodes to a world that can be played: data, tokenizer, latent actions, dynamics, evaluation.

A world is a folder. Each stage has a folder in it and goes on from where it was left; what is done is not done again::

    RUN/data/  RUN/tokenizer/  RUN/lam/  RUN/dynamics/  RUN/world.json  RUN/eval.json  RUN/eval/
"""

import contextlib
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from reverie import config
from reverie.bounded import read_json
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset, Spec
from reverie.data.held_out import held_out
from reverie.data.sources import sources
from reverie.data.sources.videos import VideosConfig
from reverie.data.store import open_dataset, write_source
from reverie.errors import Damaged, ReverieError, did_you_mean
from reverie.evaluation.frechet import user_features
from reverie.evaluation.measure import Numbers
from reverie.evaluation.measure import evaluate as measure
from reverie.evaluation.report import table, write_report
from reverie.nn.compiled import cache_compilations
from reverie.play.starts import play, write_starts
from reverie.presets import preset
from reverie.presets.fitting import fitting
from reverie.presets.recipe import Recipe
from reverie.training import checkpoint, sharding
from reverie.training.engine import Run, fit

WORLD = "world.json"
DEMO = "toy-maskgit-latent"
MINUTES = 30.0  # what `learn` takes on videos unless told otherwise
SHARES = {"tokenizer": 0.25, "lam": 0.25, "dynamics": 0.5}  # of the time for training
TRIAL = 12  # steps by which a stage's speed is told


def demo(out: Path, *, play_it: bool, minutes: float | None, fresh: bool, port: int, browser: bool) -> None:
    """Train a small world, then serve it."""
    train(preset(DEMO), out, minutes, fresh=fresh)
    if play_it:
        play(out, port=port, open_browser=browser)


def learn(source: str, out: Path, minutes: float | None = None, *, fresh: bool = False) -> Path:
    """Make a world out of ``source``: videos (a folder or a file), a store, an .npz, or the name of a source.

    ``minutes`` is how long training may take on this machine; steps and sizes follow from it.
    """
    made = _source(source)
    path = Path(source)
    spec = open_dataset(path).spec if made is None else made.spec()
    minutes = MINUTES if minutes is None else minutes
    _check_minutes(minutes)
    recipe = fitting(spec, made or str(path.resolve()), minutes)
    return train(recipe, out, minutes, fresh=fresh)


def train(recipe: Recipe, out: Path, minutes: float | None = None, *, fresh: bool = False) -> Path:
    """Follow a recipe in the folder ``out``, skipping what is done; with ``minutes``, steps are as many as fit.

    ``fresh``: throw away first what was trained there; the data stay. Started as a job of several processes, which must
    share a disk, all of them train, and the first does the rest (``training.sharding.connect``).
    """
    _check_minutes(minutes)
    sharding.connect()
    cache_compilations()
    began = time.perf_counter()
    named, out = out, Path(out).absolute()
    sharding.by_first(lambda: record(recipe, out))
    dataset, unseen = open_dataset(out / "data", "train"), held_out(out / "data")
    runs = {"tokenizer": recipe.tokenizer, "lam": recipe.lam, "dynamics": recipe.dynamics}
    runs = {name: _fitted(run, dataset) for name, run in runs.items() if run is not None}
    for name in runs if fresh else ():
        with checkpoint.owned(out / name):
            checkpoint.clear(out / name)
    for name, run in runs.items():
        if minutes is not None:
            run = _in_time(run, out, name, dataset, unseen, minutes, list(runs))
        if checkpoint.is_done(out / name, run):
            _say(f"{name}: done before")
            continue
        _say(f"{name}: {run.steps} steps")
        fit(run, out / name, dataset=dataset, held_out=unseen)
    # Measuring takes a minute or two: less where there was less to train.
    clips = recipe.clips if minutes is None else min(recipe.clips, max(8, round(4 * minutes)))
    sharding.by_first(lambda: _finish(out, clips, recipe.horizon))
    taken = (time.perf_counter() - began) / 60
    _say(f"{out.name}: ready after {taken:.1f} minutes; step into it with 'reverie play {named}'")
    return out


def _finish(out: Path, clips: int, horizon: int) -> None:
    """Pack starts along with a trained world and measure it, unless that was done."""
    write_starts(out)
    if not (out / "eval.json").exists() or not _is_newest(out / "eval.json", out / "dynamics" / checkpoint.RECORD):
        evaluate(out, clips=clips, horizon=horizon)


def record(recipe: Recipe, out: Path) -> None:
    """Make the world's folder and the data in it, unless they are there."""
    text = json.dumps(config.to_json(recipe), indent=1) + "\n"
    _check_source(recipe, out)
    if isinstance(recipe.source, str):
        _fitted(recipe.tokenizer, open_dataset(Path(recipe.source)))  # says at once if that cannot be
    elif not (out / "data").exists():
        _say("data: recording" if recipe.source.spec().simulator else "data: reading")
        source = recipe.source
        try:
            write_source(out / "data", source)
        except BaseException:
            with contextlib.suppress(OSError):
                out.rmdir()  # if it is empty
            raise
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe.source, str) and not (out / "data").exists():
        (out / "data").symlink_to(Path(recipe.source), target_is_directory=Path(recipe.source).is_dir())
    (out / WORLD).write_text(text, encoding="utf-8")


def _check_source(recipe: Recipe, out: Path) -> None:
    """ReverieError if the data in a world's folder are not those of its recipe."""
    if not ((out / "data").exists() and (out / WORLD).is_file()):
        return
    try:
        made = read_json(out / WORLD)["source"]
    except (Damaged, KeyError, TypeError):
        raise ReverieError(f"'{out / WORLD}' is damaged: remove it to go on with the data beside it.") from None
    if made != config.to_json(recipe.source):
        raise ReverieError(f"'{out}' was made from other data, or otherwise recorded: choose another --out.")


def evaluate(
    run: Path,
    clips: int = 64,
    horizon: int = 16,
    *,
    shorten: bool = True,
    features: str | None = None,
    data: Path | None = None,
    split: str | None = None,
    **how: Any,
) -> Numbers:
    """Measure a world on held-out episodes; write ``eval.json`` and pictures beside it; return the numbers.

    ``shorten``: dream fewer frames than ``horizon`` where no episode has room for them, instead of a ReverieError.
    ``features``: "MODULE:FUNCTION" of a function whose features are compared as well, see ``evaluation.frechet``.
    ``data``: a store or .npz to measure on; None: the world's own data, or, where they are not there (a world that
    came without), new episodes of the simulator that its own came from. ``split``: of the data; None: those held out.
    ``how``: context, seed, temperature, sessions, deep and speed, as ``evaluation.measure.evaluate`` takes them.
    """
    if clips < 1 or horizon < 1:
        raise ReverieError(f"a world is measured on 1 clip and 1 dreamed frame at least, not {clips} and {horizon}.")
    function = user_features(features) if features is not None else None
    cache_compilations()
    folder = checkpoint.find_run(run)
    world = checkpoint.load(run)
    record = checkpoint.read_record(folder)
    if not hasattr(world, "dynamics"):
        raise ReverieError(f"'{run}' is a {type(world).__name__}, not a world: its report is in '{folder / 'report'}'.")
    place = folder.parent / record.run.data if data is None else data
    if data is None and not place.exists():
        place, dataset, practice = f"the simulator of '{run}'", *_simulated(run, record.spec, clips, split)
    else:
        dataset = held_out(place, world.config.context + 1) if split is None else open_dataset(place, split)
        practice = open_dataset(place, "train")
    context = how.get("context") or world.config.context
    room = int(dataset.lengths.max(initial=0)) - context
    if room < 1:
        raise ReverieError(f"the held-out episodes of '{place}' are too short to dream on from: record longer ones.")
    if horizon > room and not shorten:
        raise ReverieError(
            f"the longest held-out episode of '{place}' has room for {room} dreamed frames after "
            f"{context} real ones, not for {horizon}: choose --horizon {room} or less."
        )
    numbers, pictures = measure(
        world, dataset, clips=clips, horizon=min(horizon, room), trained=record.run.length, practice=practice,
        features=function, **how,
    )  # fmt: skip
    try:
        write_report(numbers, pictures, folder.parent)
    except OSError as error:  # a world somebody else's: the numbers are worth no less
        print(f"'{folder.parent}' cannot be written to ({error.strerror}): no eval.json there.", file=sys.stderr)
    Console(file=sys.stderr).print(table(numbers))
    return numbers


def _simulated(run: Path, spec: Spec, clips: int, split: str | None) -> tuple[Dataset, Dataset]:
    """New episodes of the simulator that a world's data came from: to be measured on, and for practice."""
    source: Any = spec.simulator
    if source is None or split not in (None, "val"):
        part = f"the split '{split}' of its data" if split else "its data"
        raise ReverieError(f"'{run}' came without {part}: name a store or .npz of the same kind with --data.")
    print(f"'{run}' came without its data: measured on new episodes of its simulator.", file=sys.stderr)
    made = [replace(source, seed=source.seed + 1 + part, count=clips * (1 + 3 * part)) for part in range(2)]
    unseen, practice = (ArrayDataset.from_episodes(spec, each.episodes()) for each in made)
    unseen.split, practice.split = "val", "train"
    return unseen, practice


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ReverieError(f"a world cannot be learned in {minutes:g} minutes: give a number above 0.")


def _source(source: str) -> Any:
    """The config of a source, or None if ``source`` is a dataset already."""
    path = Path(source)
    if (path.is_dir() and (path / "manifest.json").is_file()) or path.suffix == ".npz":
        return None
    if path.exists():
        return VideosConfig(path=str(path.resolve()))
    known = sources()
    if source in known and source != "videos":
        return known[source]()
    raise ReverieError(
        f"there is no folder, video or source '{source}'.{did_you_mean(source, set(known) - {'videos'})}"
    )


def _fitted(run: Run, dataset: Dataset) -> Run:
    """A run whose clips are no longer than the data's longest episode."""
    longest = int(dataset.lengths.max(initial=0))
    if longest < 2:
        raise ReverieError(f"the longest episode has {longest} frames: a world is learned from at least 2 in a row.")
    return replace(run, length=min(run.length, longest))


def _in_time(
    run: Run, out: Path, name: str, dataset: Dataset, unseen: Dataset, minutes: float, stages: list[str]
) -> Run:
    """A run of as many steps as its share of ``minutes`` has room for, told by a few steps of it."""
    if (out / name / checkpoint.RECORD).is_file() and checkpoint.steps(out / name):
        return checkpoint.read_record(out / name).run  # begun before: it goes on as it was
    _say(f"{name}: timing {TRIAL} steps")
    trial = out / f".trial-{name}"

    def tidy() -> None:
        if (trial / "cache").exists():  # tokens are as good for the run itself
            (out / name).mkdir(exist_ok=True)
            shutil.rmtree(out / name / "cache", ignore_errors=True)
            shutil.move(trial / "cache", out / name / "cache")

    try:
        short = replace(run, steps=TRIAL, log_every=2, report_every=0, save_every=0)
        fit(short, trial, dataset=dataset, held_out=unseen, progress=False, fresh=True)
        sharding.wait_for_all("the trial")
        lines = [json.loads(line) for line in (trial / "timing.jsonl").read_text("utf-8").splitlines()]
        sharding.by_first(tidy)
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(trial, ignore_errors=True)
    rate = max(line["steps_per_s"] for line in lines if "steps_per_s" in line)
    share = SHARES[name] / sum(SHARES[stage] for stage in stages)
    steps = max(TRIAL, int(rate * share * minutes * 60 * 0.85))  # the rest: compiling, reports, evaluation
    clock = max(steps // 5, 1)
    warmup = min(run.optimizer.warmup, max(steps // 10, 1))
    return replace(
        run, steps=steps, report_every=clock, save_every=clock, optimizer=replace(run.optimizer, warmup=warmup)
    )


def _is_newest(path: Path, other: Path) -> bool:
    return path.stat().st_mtime >= other.stat().st_mtime


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(f"\n== {text}", flush=True)
