"""Which kind of action a recording has, from what its format declares or from the numbers themselves.

One row per step. A components; S steps of an episode.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reverie.actions import FAR, MOST, ActionSpace

WHOLE = 1023  # largest float that still counts as the number of an action: beyond are time stamps and ticks
VALUES = 1024  # of all components of whole numbers together: beyond, they are amounts (mouse movement), not choices


@dataclass(frozen=True)
class Declared:
    """What a format declares about its actions; what it does not declare is empty.

    names: one for each component, or each action. sizes: how many values a component has, counted from ``first``.
    low, high: bounds. held: the components are keys that may be held together.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    held: bool = False


@dataclass(frozen=True)
class Coding:
    """How rows become actions of ``space``. onehot: the place of the 1 is the action; else ``first`` is taken off."""

    space: ActionSpace
    onehot: bool = False
    first: tuple[int, ...] = ()

    def actions(self, rows: np.ndarray | None, steps: int) -> np.ndarray:
        """Return the actions of ``steps`` steps, (S,) or (S,A); unlabelled where a row is missing or no action."""
        found = self.space.unlabelled((steps,))
        if rows is None or self.space.kind == "none":
            return found
        rows = flat(np.asarray(rows))
        width = len(self.first) or self.space.size
        if rows.shape[1] != width:
            return found
        good = np.asarray(np.isfinite(rows).all(axis=1))
        if self.onehot:
            values = rows.argmax(1)
        elif self.space.kind == "continuous":
            values = np.where(good[:, None], rows, 0).astype(np.float32)
        else:
            values = np.where(good[:, None], rows, 0).astype(np.int64) - self.first
            values = values if self.space.shape else values[:, 0]
        known = np.flatnonzero(good & self.space.is_action(values))
        found[known] = values[known].astype(self.space.dtype)
        return found


def counted(value: Any) -> Declared | None:
    """Return what a declared number of actions says; None if it is not one."""
    return Declared(sizes=(value,)) if isinstance(value, int) and 0 < value <= 2**16 else None


def merged(parts: Sequence[tuple[np.ndarray | None, Declared]]) -> tuple[list[np.ndarray | None], Declared]:
    """Return the rows of several files with their components in one order, by name, and what all of them declare.

    A key that a file does not name was not held; another component that it does not name is nan.
    """
    known = [declared for rows, declared in parts if rows is not None]
    names = tuple(dict.fromkeys(name for declared in known for name in declared.names))
    if all(declared.names in ((), names) for declared in known):
        return [rows for rows, _ in parts], next((each for each in known if each != Declared()), Declared())
    held = any(declared.held for declared in known)

    def spread(rows: np.ndarray | None, declared: Declared) -> np.ndarray | None:
        if rows is None or not declared.names:
            return rows
        wide = np.zeros((len(rows), len(names)), rows.dtype) if held else np.full((len(rows), len(names)), np.nan)
        wide[:, [names.index(name) for name in declared.names]] = rows
        return wide

    return [spread(*part) for part in parts], Declared(names=names, held=held)


def coding(parts: Sequence[np.ndarray | None], declared: Declared, say: Callable[[str], None]) -> Coding:
    """Return how the rows of all recordings become actions; what is guessed is said."""
    shapes = Counter(part.shape[1:] for part in parts if part is not None and len(part))
    if not shapes:
        return Coding(ActionSpace())
    shape = shapes.most_common(1)[0][0]
    if len(shapes) > 1:
        say(f"{sum(shapes.values()) - shapes[shape]} recordings have actions of another shape than {shape}: unlabelled")
    rows = np.concatenate([part for part in parts if part is not None and len(part) and part.shape[1:] == shape])
    if rows.dtype.kind not in "biuf" or rows.size == 0:
        say(f"actions of type {rows.dtype} are not numbers: all are unlabelled")
        return Coding(ActionSpace())
    wide = flat(rows)
    if len(shape) > 1:
        say(f"an action of shape {shape} is read as {wide.shape[1]} numbers in a row")
    good = wide[np.isfinite(wide).all(1)]
    if len(good) < len(wide):
        say(f"{len(wide) - len(good)} actions are not finite numbers: unlabelled")
    if not len(good):
        return Coding(ActionSpace())
    scalar = shape == () or (shape == (1,) and rows.dtype.kind in "biu")
    if scalar and (rows.dtype.kind in "biu" or _whole(good, 0, WHOLE)):
        return _discrete(good[:, 0], rows.dtype.kind == "f", declared, say)
    if declared.sizes or declared.held or rows.dtype.kind in "biu" or _is_onehot(good):
        found = _components(good, declared, say)
        if found is not None:
            return found
    return _continuous(good, declared, say)


def flat(rows: np.ndarray) -> np.ndarray:
    """Return rows (S, ...) as (S, A), also where there are none: an episode of one frame has no steps."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def one_vector(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return arrays of the same steps as one (S, A), side by side; a single one as it is, None if there are none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return np.concatenate([flat(part) for part in parts], axis=1)


def _whole(values: np.ndarray, low: float, high: float) -> bool:
    return bool(((values == np.rint(values)) & (values >= low) & (values <= high)).all())


def _is_onehot(rows: np.ndarray) -> bool:
    return rows.shape[1] > 1 and bool((((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1)).all())


def _discrete(values: np.ndarray, floats: bool, declared: Declared, say: Callable[[str], None]) -> Coding:
    least, most = int(values.min()), int(values.max())
    first = declared.first[0] if len(declared.first) == 1 else min(least, 0)
    size = max(most - first + 1, declared.sizes[0] if len(declared.sizes) == 1 else 0, len(declared.names))
    if size > MOST:
        say(f"actions from {least} to {most} are too many choices: all are unlabelled")
        return Coding(ActionSpace())
    if first and not declared.first:
        say(f"actions from {least} to {most} are counted from {first}")
    if floats:
        say(f"actions are whole numbers written as floats: read as {size} choices")
    names = declared.names if len(declared.names) == size else ()
    return Coding(ActionSpace("discrete", size, names), first=(first,))


def _components(rows: np.ndarray, declared: Declared, say: Callable[[str], None]) -> Coding | None:
    """Keys, or several choices; None where the numbers are amounts."""
    width = rows.shape[1]
    names = declared.names if len(declared.names) == width else ()
    if _is_onehot(rows) and not declared.held and not declared.sizes:
        say(f"every action has a single 1 among {width} numbers: read as {width} choices")
        return Coding(ActionSpace("discrete", width, names), onehot=True, first=(0,) * width)
    if _whole(rows, 0, 1) and (declared.held or set(declared.sizes) <= {2}):
        return Coding(ActionSpace("binary", width, names), first=(0,) * width)
    if not _whole(rows, -FAR, FAR):
        return None
    given = len(declared.first) == width
    first = declared.first if given else tuple(min(int(low), 0) for low in rows.min(0))
    sizes = [int(high) - low + 1 for high, low in zip(rows.max(0), first, strict=True)]
    if len(declared.sizes) == width:
        sizes = [max(size, own) for size, own in zip(sizes, declared.sizes, strict=True)]
    if sum(sizes) > VALUES:
        return None
    if any(first) and not given:
        say(f"components of actions are counted from {first}")
    return Coding(ActionSpace("multi", width, sizes=tuple(sizes)), first=first)


def _continuous(rows: np.ndarray, declared: Declared, say: Callable[[str], None]) -> Coding:
    rows = rows.astype(np.float32)
    width, reach = rows.shape[1], np.abs(rows).max()
    if reach > FAR / 10:
        beyond = (np.abs(rows) > FAR / 10).any(1)
        say(f"{int(beyond.sum())} actions lie beyond {FAR / 10:g}: unlabelled")
        rows = rows[~beyond]
        if not len(rows):
            return Coding(ActionSpace())
    least, most = rows.min(0).astype(float), rows.max(0).astype(float)
    bounds = [np.array(bound, float) for bound in (declared.low, declared.high)]
    if any(bound.shape != (width,) for bound in bounds):
        bounds = [np.full(width, np.nan)] * 2
    known = np.isfinite(bounds[0]) & np.isfinite(bounds[1]) & (np.abs(bounds) < FAR / 10).all(0)
    unit = np.abs(rows).max(0) <= 1
    low = np.minimum(least, np.where(known, bounds[0], np.where(unit, -1, least)))
    high = np.maximum(most, np.where(known, bounds[1], np.where(unit, 1, most)))
    high = np.where(high <= low, low + 1, high)
    if not known.all():
        guess = "-1 to 1" if unit.all() else "the least and the largest of each component"
        say(f"bounds of actions are not declared: taken as {guess}")
    names = tuple(f"{name} {sign}" for name in declared.names for sign in "-+") if len(declared.names) == width else ()
    return Coding(ActionSpace("continuous", width, names, low=tuple(low.tolist()), high=tuple(high.tolist())))
