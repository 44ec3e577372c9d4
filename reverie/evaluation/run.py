"""Evaluation of a trained run on disk: its world, its held-out data, and the report in its folder."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset, Spec
from reverie.data.held_out import held_out
from reverie.data.splits import NoSplit
from reverie.data.store import open_dataset
from reverie.errors import ReverieError
from reverie.evaluation.frechet import user_features
from reverie.evaluation.measure import Numbers, evaluate
from reverie.evaluation.report import PAGE, say, write_report
from reverie.narrow_weights import narrowed
from reverie.nn.compiled import cache_compilations
from reverie.training.checkpoint import load
from reverie.training.folder import named
from reverie.training.record import find_run, read_record, versions
from reverie.world import with_passes


def evaluate_run(
    run: Path,
    clips: int = 64,
    horizon: int = 16,
    *,
    shorten: bool = True,
    features: str | None = None,
    data: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    bits: int = 32,
    passes: int = 0,
    **how: Any,
) -> Numbers:
    """Evaluate a world on held-out episodes; write ``eval.json`` and pictures into its folder; return the numbers.

    ``shorten``: where no episode is long enough, generate fewer frames than ``horizon`` instead of raising
    ReverieError. ``features``: "MODULE:FUNCTION", a function whose features are compared too (``evaluation.frechet``).
    ``data``: a store or .npz to evaluate on; None: the world's own data, or new episodes of its simulator if the world
    came without data. ``split``: of the data; None: the held-out one. ``out``: the folder to write to, if not its own.
    ``bits``: of the weights of the dynamics, 32, 16 or 8; fewer than 32 are among the numbers. ``passes``: sampling
    passes per frame; 0: the world's own.
    ``how``: context, seed, temperature, sessions, deep and speed, as ``evaluation.measure.evaluate`` takes them.
    """
    if clips < 1 or horizon < 1:
        raise ReverieError(f"an evaluation needs 1 clip and 1 generated frame or more, not {clips} and {horizon}.")
    function = user_features(features) if features is not None else None
    cache_compilations()
    folder = find_run(run)
    world, record = load(run), read_record(folder)
    if not hasattr(world, "dynamics"):
        raise ReverieError(f"'{run}' is a {type(world).__name__}, not a world: its report is in '{folder / 'report'}'.")
    place = folder.parent / record.run.data if data is None else data
    if data is None and not place.exists():
        place = f"the simulator of '{run}'"
        dataset, practice = _simulated(run, record.spec, clips, split)
    else:
        dataset, practice = _stored(place, split, world.config.context + 1)
    horizon = _horizon(dataset, place, how.get("context") or world.config.context, horizon, shorten)
    how |= {"trained": record.run.length, "practice": practice, "features": function}
    world = narrowed(with_passes(world, passes), bits)
    numbers, pictures = evaluate(world, dataset, clips=clips, horizon=horizon, **how)
    numbers |= {"bits": bits} if bits != 32 else {}
    say(numbers)
    about = {"config": record.run, "data": record.spec, "trained with": record.versions, "evaluated with": versions()}
    out = folder.parent if out is None else out
    try:
        write_report(numbers, pictures, out, about)
        print(f"pictures and curves: {named(out) / PAGE}")
    except OSError as error:  # such as another user's world: its numbers are printed all the same
        print(f"'{out}' cannot be written to ({error.strerror}): no eval.json there.", file=sys.stderr)
    return numbers


def _stored(place: Path, split: str | None, length: int) -> tuple[Dataset, Dataset | None]:
    """Return the episodes to evaluate on, and those to train the action reader on (None without a split "train")."""
    dataset = held_out(place, length) if split is None else open_dataset(place, split)
    practice = None
    with contextlib.suppress(NoSplit):
        practice = open_dataset(place, "train")
    return dataset, practice


def _simulated(run: Path, spec: Spec, clips: int, split: str | None) -> tuple[Dataset, Dataset]:
    """Return the same as new episodes of the simulator that a world's data came from."""
    source: Any = spec.simulator
    if not hasattr(source, "make") or split not in (None, "val"):
        part = f"the split '{split}' of its data" if split else "its data"
        raise ReverieError(f"'{run}' came without {part}: name a store or .npz of the same kind with --data.")
    print(f"'{run}' came without its data: measured on new episodes of its simulator.", file=sys.stderr)
    made = [replace(source, seed=source.seed + 1 + part, count=clips * (1 + 3 * part)) for part in range(2)]
    unseen, practice = (ArrayDataset.from_episodes(spec, each.episodes()) for each in made)
    unseen.split, practice.split = "val", "train"
    return unseen, practice


def _horizon(dataset: Dataset, place: Path | str, context: int, horizon: int, shorten: bool) -> int:
    """Return ``horizon``, or as many frames as the longest episode has after ``context``; ReverieError if too few."""
    longest = int(dataset.lengths.max(initial=0))
    room = longest - context
    if room < 1:
        raise ReverieError(
            f"the longest held-out episode of '{place}' has {longest} frames, of which the context takes {context}: "
            f"record longer ones."
        )
    if horizon > room and not shorten:
        raise ReverieError(
            f"the longest held-out episode of '{place}' has {room} frames after {context} real ones, "
            f"not {horizon}: choose --horizon {room} or less."
        )
    return min(horizon, room)
