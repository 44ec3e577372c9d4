"""What a world's folder holds for its player: initial frames, names of latent actions, agents.

Initial frames are clips of the held-out data, or of a small dataset that travels with the world.

Shapes: T time, H W C image.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reverie import config
from reverie.actions import ActionSpace
from reverie.checksums import read_signed, write_json
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Dataset
from reverie.data.held_out import held_out
from reverie.data.loader import clips
from reverie.data.store import open_dataset
from reverie.errors import ReverieError
from reverie.training.checkpoint import find_run, read_record, steps
from reverie.training.folder import STARTS, STARTS_BYTES

NAMES, LONGEST = "actions.json", 40  # names that a person gave to latent actions; characters of one
COUNT, LENGTH = 8, 8  # initial clips; frames of each: enough to show what moves, and where to

WORLD = "world.json"  # the recipe of a world, with hashes of its source files ("contents") and its minutes
AGENTS = "policy", "agent"  # stages: the agent that learned in imagination, and the cloned one
Start = tuple[np.ndarray, np.ndarray | None]  # frames (T, H, W, C), the actions that led to them (T, ...) or None


def agents_in(world: Path) -> list[Path]:
    """Return the folders of the trained agents in a world's folder, the best one first."""
    return [world / stage for stage in AGENTS if steps(world / stage)]


def agents_of(world: Path) -> list[Path]:
    """Return the same; ReverieError if there is none."""
    if found := agents_in(world):
        return found
    raise ReverieError(f"'{world}' has no agent: 'reverie train square-agent' makes a world with one.")


def data_source(world: Path) -> Any:
    """Return the config of the source that a world's data were recorded from; None if its folder does not say."""
    try:
        noted = read_signed(world / WORLD)["source"]
        if isinstance(noted, str):  # it was trained on a store, which says how it was made
            noted = json.loads(getattr(open_dataset(world / "data"), "provenance", ""))
        found = config.from_json(noted)
    except (OSError, ReverieError, ValueError, KeyError):
        return None
    return found if is_dataclass(found) else None


def name_actions(space: ActionSpace, run: str | Path, names: Mapping[int, str]) -> None:
    """Keep names of a world's latent actions in its folder, for its buttons; "" takes a name away.

    Raises ReverieError for a number that is not one of its actions, and for a text that does not fit on a button.
    """
    folder = find_run(run)
    for code, name in names.items():
        if space.kind != "latent" or not 0 <= code < space.size:
            raise ReverieError(f"'{run}' has no latent action {code + 1} to name: {_numbered(space)}.")
        if not fits(name):
            raise ReverieError(f"a name of an action has up to {LONGEST} letters on one line, not {name[:60]!r}.")
    kept = {**_chosen(folder.parent), **names}
    write_json(folder.parent / NAMES, {"names": {str(code): name for code, name in sorted(kept.items()) if name}})


def named_actions(space: ActionSpace, run: str | Path) -> ActionSpace:
    """Return a world's latent actions with the names and keys of the recorded actions that they stand for.

    The evaluation found these (``evaluation.control.meanings``). Actions that stand for none keep their number, and so
    do all of them where no actions were recorded. Names that a person gave (``name_actions``) come first.
    """
    folder = find_run(run)
    recorded = read_record(folder).spec.actions
    chosen = _chosen(folder.parent) if space.kind == "latent" else {}
    space = _by_recorded(space, recorded, folder)
    if not chosen:
        return space
    names = [chosen.get(code) or (space.names[code] if space.names else f"{code + 1}") for code in range(space.size)]
    return replace(space, names=tuple(names))


def fits(name: str) -> bool:
    """Whether a text can be the name of an action on a button."""
    return len(name) <= LONGEST and name.isprintable()


def _numbered(space: ActionSpace) -> str:
    return f"they count from 1 to {space.size}" if space.kind == "latent" else "its actions were recorded"


def _chosen(world: Path) -> dict[int, str]:
    """Return the names that a person gave latent actions, by action number; empty if none can be read."""
    try:
        found = read_signed(world / NAMES)["names"]
        named = {int(code): name for code, name in found.items()}
    except (OSError, ReverieError, ValueError, KeyError, AttributeError):
        return {}
    return {code: name for code, name in named.items() if isinstance(name, str) and fits(name)}


def _by_recorded(space: ActionSpace, recorded: ActionSpace, folder: Path) -> ActionSpace:
    """Return a latent space with the names and keys of the recorded actions it stands for, as the evaluation found."""
    try:
        found = read_signed(folder.parent / "eval.json")["lam_actions"]
        stands_for = {code: recorded.nth(action).item() for code, action in enumerate(found) if action is not None}
    except (OSError, ReverieError, ValueError, KeyError, TypeError):
        return space  # not evaluated yet, or no actions were recorded
    if space.kind != "latent" or recorded.kind != "discrete" or len(found) != space.size:
        return space

    def of_codes(each: tuple[str, ...], otherwise: Callable[[int], str]) -> tuple[str, ...]:
        known = {code: each[action] for code, action in stands_for.items() if each}
        return tuple(known.get(code) or otherwise(code) for code in range(space.size))

    names = of_codes(recorded.names, lambda code: f"{code + 1}")
    return replace(space, names=names, keys=of_codes(recorded.keys, lambda _: ""))


def initial_frames(run: str | Path, count: int = COUNT) -> list[Start]:
    """Return up to ``count`` held-out clips spread over a world's data; none if the data is gone."""
    dataset = _unseen(find_run(run))
    return [] if dataset is None else spread(dataset, count)


def initial_states(run: str | Path, count: int = COUNT) -> list[np.ndarray]:
    """Return the state of the simulator at the end of each of the ``initial_frames``; none if states are not known."""
    dataset = _unseen(find_run(run))
    found = {} if dataset is None else _spread(dataset, count)
    return list(found["states"][:, -1]) if "states" in found else []


def spread(dataset: Dataset, count: int) -> list[Start]:
    """Return up to ``count`` clips of ``LENGTH`` frames, or of the longest episode's, spread over a dataset."""
    found = _spread(dataset, count)
    return list(zip(found["frames"], found["actions"], strict=True))


def _spread(dataset: Dataset, count: int) -> dict[str, np.ndarray]:
    length = int(min(LENGTH, dataset.lengths.max()))
    return clips(dataset, length=length, count=min(count, int((dataset.lengths >= length).sum())), seed=0)


def _unseen(folder: Path) -> Dataset | None:
    """Return the held-out data from which play begins: that which travels with the world, else the world's own."""
    places = (folder.parent / STARTS, folder.parent / read_record(folder).run.data)
    return next((found for place in places if place.exists() and (found := _held_out(place))), None)


def contexts(run: str | Path, length: int, count: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``length`` frames of up to ``count`` training episodes: (K, T, H, W, C), actions (K, T, ...).

    If the run's data is gone, those of its initial frames. ReverieError if there are none that long.
    """
    folder = find_run(run)
    places = (folder.parent / read_record(folder).run.data, folder.parent / STARTS)
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise ReverieError(f"the data of '{run}' is gone: rollouts have no frames to begin with.")
    dataset = ArrayDataset.load(place, STARTS_BYTES) if place.name == STARTS else open_dataset(place, "train")
    long = np.flatnonzero(dataset.lengths >= length)
    if not len(long):
        raise ReverieError(f"no recorded episode of '{run}' has {length} frames for a rollout to begin with.")
    chosen = long[np.arange(min(count, len(long))) * len(long) // min(count, len(long))]
    found = [dataset.read(int(episode), 0, length, ("frames", "actions")) for episode in chosen]
    return np.stack([each["frames"] for each in found]), np.stack([each["actions"] for each in found])


def write_initial_frames(world: Path, count: int = COUNT) -> None:
    """Write ``starts.npz`` into a world's folder, unless it exists, for play without the world's data."""
    if (world / STARTS).exists():
        return
    folder = find_run(world)
    dataset = _unseen(folder)
    if dataset is None:
        return
    found = _spread(dataset, count)
    arrays = {name: np.concatenate(found[name]) for name in ("frames", "actions", "states") if name in found}
    lengths = np.full(len(found["frames"]), found["frames"].shape[1])
    ArrayDataset(read_record(folder).spec, lengths, arrays).save(world / STARTS)


def _held_out(place: Path) -> Dataset | None:
    if place.name == STARTS:
        return ArrayDataset.load(place, STARTS_BYTES)  # all of it was held out
    try:
        return held_out(place)
    except ReverieError as error:  # the world can still be played, from a picture
        print(f"no initial frames are taken from '{place}': {error}", file=sys.stderr)
        return None
