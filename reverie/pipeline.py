"""The pipeline from a source of episodes to a playable world: record, train each stage, evaluate.

A world is a folder. Each stage has a folder in it and resumes from its last checkpoint; finished stages are skipped::

    RUN/data/  RUN/tokenizer/  RUN/lam/  RUN/dynamics/  RUN/agent/  RUN/policy/
    RUN/world.json  RUN/eval.json  RUN/eval/
"""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from reverie.budget import TRIAL, begun, check_minutes, in_time, psnr_in
from reverie.catalogue import starts
from reverie.data.episode import Dataset, Spec
from reverie.data.held_out import held_out
from reverie.data.shifted import enlarged
from reverie.data.store import open_dataset
from reverie.errors import ReverieError
from reverie.evaluation.run import evaluate_run
from reverie.library import place as world_at
from reverie.nn.compiled import cache_compilations
from reverie.presets.finetuning import GENERAL, Unfit, finetuning
from reverie.presets.fitting import ENOUGH, fitting
from reverie.presets.recipe import Recipe, logging_to, stages
from reverie.recorded import WORLD, minutes_of, note, record, source_of, write_note
from reverie.training import checkpoint, sharding
from reverie.training.engine import Run, check_all, check_here, fit
from reverie.training.folder import NEXT, STAGES, begin, commit, discard, owned, settled
from reverie.training.log import LoggerName
from reverie.training.record import RECORD, read_record
from reverie.training.resume import is_run, resume_from
from reverie.world_folder import write_initial_frames

log = logging.getLogger(__name__)
DEMO = "toy-maskgit-latent"  # the preset of `reverie demo`
MINUTES = 30.0  # the time `reverie learn` trains by default
AUTO, NONE = "auto", "none"  # with which weights it starts: the package's if they are better, or new ones
TRIED, LONGEST = 0.02, 60  # share of the time for the trial of each recipe, and seconds at most


def learn(
    source: str,
    out: Path,
    minutes: float | None = None,
    *,
    pretrained: str = AUTO,
    fresh: bool = False,
    loggers: tuple[LoggerName, ...] = (),
) -> Path:
    """Train a world on ``source``: videos (a folder or a file), a store, an .npz, or the name of a source.

    ``minutes`` is the time for all training on this machine; steps and sizes follow from it. If the world was trained
    for fewer minutes before, its dynamics are trained further. ``pretrained``: the world whose weights it starts with;
    "none"; or "auto", which tries those that come with the package (``_better``).
    """
    minutes = MINUTES if minutes is None else minutes
    recipes, _ = recipes_for(source, out, minutes, pretrained)
    recipe, *others = (logging_to(recipe, loggers) for recipe in recipes)
    return train(recipe, out, minutes, fresh=fresh, others=others)


def recipes_for(source: str, out: Path, minutes: float, pretrained: str = AUTO) -> tuple[list[Recipe], Spec]:
    """Return the recipes of which ``learn`` follows the better one, and the spec of their data; nothing is written."""
    check_minutes(minutes)
    out = Path(out).absolute()
    settled(out)
    made = source_of(source, out)
    where = str(Path(source).resolve()) if made is None else made
    there = out / "data" if (out / "data").exists() and (out / WORLD).is_file() else None
    spec = open_dataset(there or where).spec if there or isinstance(where, str) else where.spec()
    data, recipes = str(there) if there else where, []
    if pretrained in (AUTO, NONE):
        recipes = [fitting(spec, data, minutes)]
    # Films without actions stay with new weights: latent actions over codes lead the dynamics better (docs/log.md).
    if pretrained != NONE and (pretrained != AUTO or recipes[0].lam is None):
        name = GENERAL if pretrained == AUTO else pretrained
        ours = None if name == pretrained and Path(name).exists() else starts().get(name)
        try:
            recipes.insert(0, finetuning(ours or world_at(name), spec, data, minutes, out))
        except Unfit:
            if pretrained != AUTO:
                raise
    if recipes[0].lam is not None and spec.actions.kind != "none":
        log.warning("less than %.0f %% of the recordings have actions: they are inferred from all", 100 * ENOUGH)
    return [replace(recipe, source=where) for recipe in recipes], spec


def train(
    recipe: Recipe, out: Path, minutes: float | None = None, *, fresh: bool = False, others: Sequence[Recipe] = ()
) -> Path:
    """Follow a recipe in the folder ``out`` and skip finished stages; ``minutes``: do as many steps as fit.

    ``others``: recipes for the same data, of which one is followed if it is better in a trial (``_better``).
    ``fresh``: start over. The old world stays until the new one is complete; so do the old checkpoints of a run that
    is extended. Data are never removed. In a job of several processes, which must share a disk, all of them train and
    process 0 does the rest (``training.sharding.connect``).
    """
    check_minutes(minutes)
    sharding.connect()
    cache_compilations()
    began = time.perf_counter()
    for run in stages(recipe).values():
        check_here(run)  # before data are recorded, which may take hours
    named, out = out, Path(out).absolute()
    # Processes that train one stage alone hold the lock of its folder only.
    with owned(out, *(out / name for name in STAGES if (out / name).is_dir())):
        sharding.by_first(lambda: record(recipe, out, lambda found: _fitted(recipe.tokenizer, found), _say))
        dataset, unseen = open_dataset(out / "data", "train"), held_out(out / "data")
        if minutes is not None:
            recipe = _better([recipe, *others], out, dataset, unseen, minutes, fresh)
        runs = {name: _fitted(run, dataset) for name in STAGES if (run := getattr(recipe, name)) is not None}
        check_all({out / name: run for name, run in runs.items()}, dataset)
        place = _place(runs, out, dataset, minutes, fresh)
        new = _stages(runs, out, place, dataset, unseen, minutes)
        # An evaluation takes a minute or two: less after a short training.
        clips = recipe.clips if minutes is None else min(recipe.clips, max(8, round(4 * minutes)))

        def ready() -> None:
            if place != out:
                commit(out)

        def finish() -> None:
            noted = note(out) or {}
            if new:
                given = max(minutes, minutes_of(note(place)) or 0) if minutes is not None else None
                more = {"contents": noted.get("contents"), "data_licence": getattr(dataset, "licence", None) or None}
                write_note(place, replace(recipe, **runs), minutes=given, **more)
            try:
                _finish(place, clips, recipe.horizon)
            except ReverieError:
                ready()  # a world that cannot be evaluated can still be played
                raise
            ready()

        sharding.by_first(finish)
    taken = (time.perf_counter() - began) / 60
    _say(f"{out.name}: ready after {taken:.1f} minutes; step into it with 'reverie play {named}'")
    return out


def _better(
    recipes: Sequence[Recipe], out: Path, dataset: Dataset, unseen: Dataset, minutes: float, fresh: bool
) -> Recipe:
    """Return the recipe whose tokenizer reconstructs held-out frames best after equally long trials.

    Once a tokenizer is begun in ``out``, its recipe stays; ReverieError if it is none of them and has stages to come.
    """
    for place in (out / NEXT, *([] if fresh else [out])):
        if checkpoint.steps(place / "tokenizer"):
            start = read_record(place / "tokenizer").run.start_from
            if same := [each for each in recipes if each.tokenizer.start_from == start]:
                return same[0]
            if all(checkpoint.steps(place / name) for name in stages(recipes[0])):
                return recipes[0]  # begun stages go on with runs of their own
            began = f"'{out}' was begun with the weights of {start or 'no other world'}"
            raise ReverieError(f"{began}: give the same --pretrained, or start over with --fresh.")
    if len(recipes) == 1:
        return recipes[0]
    seconds = min(max(minutes * 60 * TRIED, 1), LONGEST)
    found = [psnr_in(seconds, _fitted(each.tokenizer, dataset), out, dataset, unseen) for each in recipes]
    best = max(range(len(recipes)), key=found.__getitem__)
    said = ", ".join(
        f"{psnr:.2f} dB from {each.tokenizer.start_from or 'nothing'}"
        for psnr, each in zip(found, recipes, strict=True)
    )
    _say(f"tokenizers after {seconds:.0f} seconds: {said}")
    if (noted := note(out)) is not None:
        sharding.by_first(lambda: write_note(out, recipes[best], contents=noted.get("contents")))
    return recipes[best]


def _stages(
    runs: dict[str, Run], out: Path, place: Path, dataset: Dataset, unseen: Dataset, minutes: float | None
) -> bool:
    """Train unfinished stages in ``place``, update ``runs`` to what was trained, and return whether any was."""
    past, new = minutes_of(note(place)), False
    for name, run in runs.items():
        if minutes is not None:
            old = begun(name, out, place, minutes, past)
            if old is None:
                _say(f"{name}: timing {TRIAL} steps")
                old = in_time(run, place, name, dataset, unseen, minutes, runs)
            runs[name] = run = old if checkpoint.is_done(place / name, old) else replace(old, loggers=run.loggers)
        if checkpoint.is_done(place / name, run):
            _say(f"{name}: already trained")
            continue
        fit(run, place / name, dataset=dataset, held_out=unseen)
        new = True
    if not new and minutes is not None and past is not None and place == out:
        _say(f"this world was trained for its {past:g} minutes: more --minutes train it further, --fresh starts over")
    return new


def _place(runs: dict[str, Run], out: Path, dataset: Dataset, minutes: float | None, fresh: bool) -> Path:
    """Return the folder to train in: ``out``, or a new one inside if something would be lost (``training.folder``)."""
    new = out / NEXT
    there = [name for name in STAGES if checkpoint.steps(out / name)]
    kept: dict[str, int | None] = {}
    if fresh:
        place = new if there else out
    elif _resumes(runs, out, new, dataset, minutes):
        return new
    else:
        past = minutes_of(note(out))
        for name in there:
            run = runs.get(name) if minutes is None else begun(name, out, out, minutes, past)
            kept[name] = resume_from(run, out / name, enlarged(dataset, run.augment_below)) if run else None
        back = [name for name in there if (step := kept[name]) is not None and step < checkpoint.steps(out / name)[-1]]
        place = new if back else out
        if back and (on := there[there.index(back[0]) + 1 :]):
            raise ReverieError(
                f"'{out / back[0]}' cannot be trained further: {' and '.join(on)} were trained on its outputs. "
                f"Train all again with --fresh, or choose another --out."
            )

    def keeps(item: Path) -> bool:
        name = item.parts[0]
        if fresh or name in ("eval", "eval.json", "report.html", "atlas.html", "card", "card.md", "card.html"):
            return False
        return name not in kept or len(item.parts) == 1 or checkpoint.reaches(item.relative_to(name), kept[name])

    sharding.by_first(lambda: discard(out) if place == out else begin(out, keeps))
    return place


def _resumes(runs: dict[str, Run], out: Path, new: Path, dataset: Dataset, minutes: float | None) -> bool:
    """Whether ``runs`` resume the unfinished ones in ``new``, and are not the complete ones in ``out``."""
    started = {name: run for name, run in runs.items() if checkpoint.steps(new / name)}
    if minutes is not None or not started:
        return bool(started)
    if all(checkpoint.is_done(out / name, run) for name, run in runs.items()):
        return all(is_run(run, new / name) for name, run in started.items())
    with contextlib.suppress(ReverieError):  # those are of another world
        for name, run in started.items():
            resume_from(run, new / name, enlarged(dataset, run.augment_below))
        return True
    return False


def _finish(place: Path, clips: int, horizon: int) -> None:
    """Write initial frames beside a trained world and evaluate it, unless that was done."""
    write_initial_frames(place)
    if not (place / "eval.json").exists() or not _is_newest(place / "eval.json", place / "dynamics" / RECORD):
        evaluate_run(place, clips=clips, horizon=horizon)


def _fitted(run: Run, dataset: Dataset) -> Run:
    """Return the run with its clips shortened to the longest episode of the data."""
    longest = int(dataset.lengths.max(initial=0))
    if longest < 2:
        raise ReverieError(f"the longest episode has {longest} frames: training needs at least 2 in a row.")
    return replace(run, length=min(run.length, longest))


def _is_newest(path: Path, other: Path) -> bool:
    return path.stat().st_mtime >= other.stat().st_mtime


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(f"\n== {text}", flush=True)
