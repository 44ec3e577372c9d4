"""What a world's folder tells its player: where dreams may begin, and what its latent actions mostly stand for.

Starts are moments of the data that a world was trained on, or that were packed along with it.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from reverie.actions import ActionSpace
from reverie.checksums import read_signed
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset
from reverie.data.held_out import held_out
from reverie.data.loader import clips
from reverie.errors import ReverieError
from reverie.play.connection import Limits, Start
from reverie.play.server import serve
from reverie.training.checkpoint import find_run, load, read_record
from reverie.world import WorldModel

STARTS = "starts.npz"  # beside a world's runs: a small dataset of starts, for a world that travels without its data
STARTS_BYTES = 2**28  # of memory that they may take
COUNT = 8


def play(run: str | Path, players: int | None = None, **options) -> None:
    """Load a world from its folder and ``serve`` it with starts of its own; ``options`` are those of ``serve``."""
    if players is not None:
        if players < 1:
            raise ReverieError(f"at least one player needs a seat, not {players}.")
        options["limits"] = Limits(players=players)
    run = Path(run)
    world = load(run)
    if isinstance(world, WorldModel):  # else ``serve`` says what it is instead
        world.config = replace(world.config, actions=named(world.config.actions, run))
    serve(world, **{"name": run.resolve().name, "starts": starts_of(run), **options})


def named(space: ActionSpace, run: str | Path) -> ActionSpace:
    """Return a world's latent actions with the names and keys of the recorded ones that they stand for.

    As its evaluation found (``evaluation.control.meanings``), where there were recorded ones; others keep their number.
    """
    folder = find_run(run)
    recorded = read_record(folder).spec.actions
    try:
        found = read_signed(folder.parent / "eval.json")["lam_actions"]
        stands_for = {code: recorded.nth(action).item() for code, action in enumerate(found) if action is not None}
    except (OSError, ReverieError, ValueError, KeyError, TypeError):
        return space  # never measured, or where no actions are recorded
    if space.kind != "latent" or recorded.kind != "discrete" or len(found) != space.size:
        return space

    def told(each: tuple[str, ...], otherwise: Callable[[int], str]) -> tuple[str, ...]:
        known = {code: each[action] for code, action in stands_for.items() if each}
        return tuple(known.get(code) or otherwise(code) for code in range(space.size))

    names = told(recorded.names, lambda code: f"{code + 1}")
    return replace(space, names=names, keys=told(recorded.keys, lambda _: ""))


def starts_of(run: str | Path, count: int = COUNT) -> list[Start]:
    """Return up to ``count`` held-out clips spread over a world's data; none when the data is not there any more."""
    folder = find_run(run)
    places = (folder.parent / STARTS, folder.parent / read_record(folder).run.data)
    dataset = next((found for place in places if place.exists() and (found := _held_out(place))), None)
    if dataset is None:
        return []
    length = int(min(8, dataset.lengths.max()))  # a few frames show what is moving, and where to
    found = clips(dataset, length=length, count=min(count, int((dataset.lengths >= length).sum())), seed=0)
    return list(zip(found["frames"], found["actions"], strict=True))


def write_starts(world: Path, count: int = COUNT) -> None:
    """Pack starts along with a world, so that it can be played where its data is not."""
    if (world / STARTS).exists():
        return
    spec = read_record(find_run(world)).spec
    found = starts_of(world, count)
    if not found:
        return
    arrays = {
        "frames": np.concatenate([frames for frames, _ in found]),
        "actions": np.concatenate([np.asarray(actions) for _, actions in found]),
    }
    lengths = np.array([len(frames) for frames, _ in found])
    ArrayDataset(spec, lengths, arrays).save(world / STARTS)


def _held_out(place: Path) -> Dataset | None:
    if place.name == STARTS:
        return ArrayDataset.load(place, STARTS_BYTES)  # all of them were chosen to be begun from
    try:
        return held_out(place)
    except ReverieError as error:  # the world can be played without
        print(f"no starts are taken from '{place}': {error}", file=sys.stderr)
        return None
