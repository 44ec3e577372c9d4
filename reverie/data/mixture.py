"""Several datasets as one, from which clips are drawn by weight: one frame size, one action space.

Episodes stay where they are: a mixture reads them from its parts, resizes their frames and translates their actions.
Equal action spaces are one. Others lie side by side: choices one after the other, or all components in one vector.

T frames, A components of an action.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reverie import config
from reverie.actions import ActionSpace
from reverie.checksums import read_signed, write_json
from reverie.data.episode import Spec, game_of, with_tasks
from reverie.data.sources.pictures import resized
from reverie.data.splits import NoSplit
from reverie.errors import Damaged, ReverieError, first_line

FILE, FORMAT, SCHEMA = "mixture.json", "reverie-mixture", 1  # the one file of a folder that is opened like a store
FIELDS = {"stores": Path, "weights": float, "size": int}  # of that file, each a list
LARGEST = 2**14  # pixels of a side
FINITE = {"discrete", "binary", "multi"}  # kinds of action spaces that fit into one vector of choices


class Mixture:
    """A Dataset of the episodes of several, one part after the other.

    specs: of all stores of the mixture, also of one that has no such split. weights: of the parts; if empty, clips are
    drawn as if all episodes were of one dataset. size: height and width of the frames; None: those of the first spec.
    The rest is as of ``store.StoreDataset``, and ``groups`` as in ``order.order_of``.
    """

    shard = None

    def __init__(
        self,
        parts: Sequence[Any],
        specs: Sequence[Spec],
        *,
        weights: Sequence[float] = (),
        size: tuple[int, int] | None = None,
        split: str = "",
    ):
        self.parts, self.split = list(parts), split
        self.spec, self._places = joined(specs, size)
        counts = [len(part.lengths) for part in self.parts]
        self.lengths = np.concatenate([part.lengths for part in self.parts])
        self._part, self._first = np.repeat(np.arange(len(counts)), counts), np.cumsum([0, *counts])
        self.groups = (self._part, tuple(weights)) if weights else None
        self.sources: list[str] = [source for part in self.parts for source in part.sources]
        self.tasks: list[str] = [task for part in self.parts for task in part.tasks]
        self.notes: list[str] = list(dict.fromkeys(note for part in self.parts for note in part.notes))
        self.licence = "; ".join(dict.fromkeys(part.licence for part in self.parts if part.licence))
        prints = [part.fingerprint for part in self.parts]
        self.provenance = f"a mixture of {' and '.join(prints)}"
        shared = [kind for kind in self.parts[0].kinds if all(kind in part.kinds for part in self.parts)]
        names = {"rewards", "ends"} | ({"states"} if self.spec.simulator is not None else set())
        space, frame = self.spec.actions, tuple(self.spec.frame)
        own = [("frames", "uint8", frame), ("actions", np.dtype(space.dtype).name, space.shape)]
        self.kinds = [*own, *(kind for kind in shared if kind[0] in names)]
        content = repr((prints, tuple(weights), config.to_json(self.spec)))
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    def read(
        self, episode: int, start: int, length: int, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """See ``Dataset.read``."""
        part = int(self._part[episode])
        own = self.parts[part]
        has = [name for name, *_ in self.kinds]
        wanted = [name for name in has if names is None or name in names]
        window = own.read(episode - int(self._first[part]), start, length, wanted)
        if "frames" in window:
            window["frames"] = brought_to(window["frames"], self.spec.frame)
        if "actions" in window:
            space = own.spec.actions
            window["actions"] = translated(window["actions"], space, self.spec.actions, self._places.get(space, 0))
        return window


def write_mixture(path: Path, stores: Sequence[Path], weights: Sequence[float], size: tuple[int, int] | None) -> None:
    """Write a folder that ``open_mixture`` opens; ``stores`` are absolute paths."""
    path.mkdir(parents=True, exist_ok=True)
    named = {"stores": [str(store) for store in stores], "weights": list(weights), "size": list(size or ())}
    write_json(path / FILE, {"format": FORMAT, "schema": SCHEMA, **named})


def open_mixture(path: Path, split: str, open_store: Callable[[Path, str], Any]) -> Mixture:
    """Return one split of the mixture in a folder; ``open_store(path, split)`` returns that of a store.

    Stores without this split are left out of it. Raises NoSplit if none has it, ReverieError if a store is gone.
    """
    stores, weights, size = _named(path)
    parts, specs, used, known = [], [], [], {}
    for store, weight in zip(stores, weights or [0.0] * len(stores), strict=True):
        if (store / FILE).is_file():
            raise ReverieError(f"'{path}' mixes '{store}', which is a mixture: name its stores instead.")
        try:
            part = open_store(store, split)
            parts.append(part)
            used.append(weight)
        except NoSplit as error:
            part = open_store(store, error.known[0])
            known |= dict.fromkeys(error.known)
        specs.append(part.spec)
    if not parts:
        raise NoSplit(f"no store of the mixture '{path}' has a split '{split}'.", known)
    return Mixture(parts, specs, weights=used if weights else (), size=size, split=split)


def _named(path: Path) -> tuple[list[Path], list[float], tuple[int, int] | None]:
    """Return the paths, weights and size that a mixture's file names; ReverieError if it is damaged."""
    try:
        found = read_signed(path / FILE, required=True)
        if found.get("format") != FORMAT or not isinstance(found.get("schema"), int):
            raise Damaged("it is not a mixture that Reverie wrote")
        if found["schema"] > SCHEMA:
            raise ReverieError(f"'{path}' was written by a newer Reverie; update Reverie first.")
        stores, weights, size = ([kind(each) for each in found[name]] for name, kind in FIELDS.items())
        fit = stores and len(weights) in (0, len(stores)) and len(size) in (0, 2)
        if not fit or not all(0 < each < math.inf for each in weights) or not all(0 < side < LARGEST for side in size):
            raise Damaged("its stores, weights and size do not fit each other")
    except (Damaged, KeyError, TypeError, ValueError) as error:
        raise ReverieError(f"'{path / FILE}' is damaged ({first_line(error)}); write the mixture again.") from None
    return stores, weights, (size[0], size[1]) if size else None


def brought_to(frames: np.ndarray, frame: tuple[int, int, int]) -> np.ndarray:
    """Return frames (T, H, W, C) uint8 of the size and number of channels of ``frame``."""
    frames = np.broadcast_to(frames, (*frames.shape[:3], frame[2])) if frames.shape[3] < frame[2] else frames
    if frames.shape[1:3] == tuple(frame[:2]):
        return frames
    pictures = frames if frame[2] == 3 else frames[..., 0]
    return np.stack([resized(picture, frame[:2]) for picture in pictures]).reshape(-1, *frame)


def joined(specs: Sequence[Spec], size: tuple[int, int] | None = None) -> tuple[Spec, dict[ActionSpace, int]]:
    """Return the spec of a mixture, and where each action space begins in that of the mixture.

    Frame rate, and without ``size`` also height and width, are those of the first spec. The simulator is kept if all
    episodes are of one game.
    """
    first, frames = specs[0], [spec.frame for spec in specs]
    actions, places = side_by_side(specs)
    same_game = len({game_of(spec.simulator) for spec in specs}) == 1
    joint = replace(
        first,
        frame=(*(size or first.frame[:2]), max(channels for *_, channels in frames)),
        actions=actions,
        source=" + ".join(dict.fromkeys(spec.source for spec in specs)),
        simulator=first.simulator if same_game and size in (None, tuple(first.frame[:2])) else None,
    )
    return with_tasks(joint, (task for spec in specs for task in spec.tasks)), places


def side_by_side(specs: Sequence[Spec]) -> tuple[ActionSpace, dict[ActionSpace, int]]:
    """Return one action space for those of several datasets, and where each begins in it.

    Equal spaces are one, and data without actions add none. Discrete spaces become one with all their choices. Finite
    spaces of which one is a vector become one vector, and so do continuous ones. In a vector, a component of another
    dataset is 0: not pressed, not moved. ReverieError if some are continuous and others are not.
    """
    named: dict[ActionSpace, str] = {}
    for spec in specs:
        if spec.actions.kind != "none":
            named.setdefault(spec.actions, spec.source)
    spaces = list(named)
    kinds = {space.kind for space in spaces}
    if len(spaces) < 2:
        return next(iter(spaces), ActionSpace()), dict.fromkeys(spaces, 0)
    if not (kinds <= FINITE or kinds == {"continuous"}):
        what = " and ".join(f"{space.kind} ones ({named[space]})" for space in spaces)
        raise ReverieError(f"no action space holds {what}: mix datasets with the same kind of actions.")
    sizes = [1 if kinds != {"discrete"} and not space.shape else space.size for space in spaces]
    places = dict(zip(spaces, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    kind: Any = next(iter(kinds)) if len(kinds) == 1 else "multi"
    names = [f"{named[space]}: {name}" for space in spaces for name in space.names]
    known = len(kinds) == 1 and all(space.names for space in spaces)
    joint = ActionSpace(
        kind,
        sum(sizes),
        names=tuple(names) if known else (),
        keys=tuple(spaces[0].keys + ("",) * (len(names) - len(spaces[0].keys))) if known and spaces[0].keys else (),
        sizes=tuple(size for space in spaces for size in space.levels) if kind == "multi" else (),
        low=tuple(bound for space in spaces for bound in space.low),
        high=tuple(bound for space in spaces for bound in space.high),
    )
    return joint, places


def translated(actions: np.ndarray, own: ActionSpace, joint: ActionSpace, place: int) -> np.ndarray:
    """Return actions (T,) or (T, A) of a space as those of a joint one, in which it begins at ``place``."""
    if own == joint:
        return actions
    found, start = joint.unlabelled(actions.shape[:1]), own.is_start(actions)
    found[start] = joint.start()
    known = ~start & ~own.is_unlabelled(actions)
    if not joint.shape:
        found[known] = actions[known] + place
        return found
    low, high = (np.array(bound, joint.dtype) for bound in (joint.low or (0,), joint.high or (0,)))
    values = actions if own.shape else actions[:, None]
    rows = np.broadcast_to(np.clip(0, low, high), found.shape).astype(joint.dtype)
    rows[:, place : place + values.shape[1]] = values
    found[known] = rows[known]
    return found
