"""Action spaces of every dataset, model and player.

All data follow one convention: ``actions[t]`` is the action that led *to* frame ``t``. So ``actions[0]`` of an episode
is ``START`` (no action led to the first frame). A clip from the middle of an episode keeps its own first action. "No
action yet" and "not recorded" have different codes. Codes are negative, so they mean the same in every dataset. In a
vector every component is the code; if components are continuous, ``FAR`` times the code.

Shapes: A components of an action; ... any leading axes.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from reverie.errors import ReverieError

START = -1  # no action has been taken yet
UNLABELLED = -2  # some action was taken, but not recorded
CODES = 2  # number of codes: an embedding table begins with rows for UNLABELLED and START
MOST = 2**16  # the most actions, or values of all components together
FAR = 1e6  # scale of the codes of continuous actions, whose bounds are at most a tenth of it


@dataclass(frozen=True)
class ActionSpace:
    """The set of possible actions.

    ========== ==================================== =========================================
    kind       an action                            size
    ========== ==================================== =========================================
    discrete   int32, 0..size-1                     how many actions
    latent     the same, inferred, not recorded     how many codes a latent action model has
    multi      int32 (A,), each 0..sizes[a]-1       A
    binary     int32 (A,), each 0 or 1              A, the keys of a keyboard
    continuous float32 (A,), low[a]..high[a]        A
    none       not recorded; only the codes          0
    ========== ==================================== =========================================

    ``names``, ``keys``: of each of the ``named_levels``; keys of a keyboard, as browsers name them ("ArrowLeft", "a",
    " "). Both may be empty; a key is "" if there is none.
    """

    kind: Literal["discrete", "multi", "binary", "continuous", "latent", "none"] = "none"
    size: int = 0
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self):
        if (self.kind == "none") != (self.size == 0) or not 0 <= self.size <= MOST or sum(self.sizes) > MOST:
            raise ValueError(f"an action space of kind {self.kind!r} cannot have {self.size} actions")
        if len(self.sizes) != self.size * (self.kind == "multi") or min(self.sizes, default=1) < 1:
            raise ValueError(f"{self.size} components of kind {self.kind!r} cannot have sizes {self.sizes}")
        bounded = all(-FAR / 10 <= a < b <= FAR / 10 for a, b in zip(self.low, self.high, strict=False))
        if {len(self.low), len(self.high)} != {self.size * (self.kind == "continuous")} or not bounded:
            raise ValueError(f"{self.size} components of kind {self.kind!r} cannot lie in {self.low}..{self.high}")
        for field in (self.names, self.keys):
            if field and len(field) != len(self.named_levels):
                raise ValueError(f"{len(field)} names or keys for {len(self.named_levels)} actions")

    def is_like(self, other: "ActionSpace") -> bool:
        """Whether actions of the other space mean the same, as far as both name them; keys do not count."""
        same = replace(self, names=(), keys=()) == replace(other, names=(), keys=())
        return same and (self.names == other.names or not (self.names and other.names))

    # -- arrays of actions -------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one action: (), or (A,)."""
        return (self.size,) if self.kind in ("multi", "binary", "continuous") else ()

    @property
    def dtype(self) -> type:
        """The dtype of an array of actions."""
        return np.float32 if self.kind == "continuous" else np.int32

    def start(self, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return an array of the code for "no action yet"; ``shape`` is that of the array without components."""
        return np.full((*shape, *self.shape), self._code(START), self.dtype)

    def unlabelled(self, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return an array of the code for "not recorded"."""
        return np.full((*shape, *self.shape), self._code(UNLABELLED), self.dtype)

    def is_start(self, actions: Any) -> Any:
        """Return where actions are "no action yet", bool (...); for NumPy and JAX arrays."""
        return self._first(actions) == self._code(START)

    def is_unlabelled(self, actions: Any) -> Any:
        """Return where actions are "not recorded", bool (...)."""
        return self._first(actions) == self._code(UNLABELLED)

    def is_action(self, actions: np.ndarray) -> Any:
        """Return which entries are possible actions, bool (...): neither codes nor out of bounds."""
        low = np.array(self.low) if self.low else 0
        high = np.array(self.high or self.levels or (0,)) - (not self.high)
        inside = (actions >= low) & (actions <= (high if self.shape else high[0]))
        return inside.all(-1) if self.shape else inside

    def refuse(self, actions: np.ndarray, who: str) -> None:
        """Raise ReverieError unless actions (T, ...) have this space's dtype and shape and are possible or codes."""
        if actions.dtype != self.dtype or actions.shape[1:] != self.shape:
            needed = f"{np.dtype(self.dtype)} {('T', *self.shape)}".replace("'", "")
            raise ReverieError(f"{who} has actions {actions.dtype} {actions.shape}; it needs {needed}.")
        codes = [(actions == self._code(code)).reshape(len(actions), -1).all(-1) for code in (START, UNLABELLED)]
        wrong = actions[~(self.is_action(actions) | codes[0] | codes[1])]
        if len(wrong):
            raise ReverieError(f"{who} has action {wrong[0]}; there are {self.choices}.")

    def taken(self, action: Any) -> np.ndarray:
        """Return a player's choice as an action (0 if kind is "none"); ReverieError if it is not possible."""
        if self.kind == "none" and np.ndim(action) == 0 and action == 0:
            return self.unlabelled()
        try:
            found = self.array(action)
        except (ReverieError, TypeError, ValueError, OverflowError):
            found = np.zeros(0)
        if found.shape != self.shape or not self.is_action(found):
            raise ReverieError(f"there is no action {str(action)[:80]}: this world has {self.choices}.")
        return found

    def array(self, actions: Any) -> np.ndarray:
        """Return actions as an array of this space's dtype; ReverieError if that would change a number."""
        given = np.asarray(actions)
        with np.errstate(invalid="ignore"):  # other numbers are refused below, without a warning
            found = given.astype(self.dtype)
        if self.dtype is np.int32 and not np.array_equal(found, given):
            raise ReverieError(f"actions are whole numbers of 32 bits, not {given.dtype}.")
        return found

    @property
    def choices(self) -> str:
        """The possible actions, in words."""
        return {
            "multi": f"{self.size} whole numbers, each below its of {self.sizes}",
            "binary": f"{self.size} keys, each 0 or 1",
            "continuous": f"{self.size} numbers, from {self.low} to {self.high}",
        }.get(self.kind, f"{self.size}, counted from 0")

    def _code(self, code: int) -> float:
        return code * FAR if self.kind == "continuous" else code

    def _first(self, actions: Any) -> Any:
        return actions[..., 0] if self.shape else actions

    # -- actions by number -------------------------------------------------------------------------------------------

    @property
    def levels(self) -> tuple[int, ...]:
        """The number of values of each component; if continuous: the lowest, the middle and the highest."""
        of = {"multi": self.sizes, "binary": (2,) * self.size, "continuous": (3,) * self.size, "none": ()}
        return of.get(self.kind, (self.size,))

    @property
    def count(self) -> int:
        """The number of actions that ``nth`` can return: all, unless "continuous"; 1 if kind is "none"."""
        return math.prod(self.levels)

    def nth(self, index: Any) -> np.ndarray:
        """Return actions by number (...), 0..count-1: the last component counts fastest."""
        index = np.asarray(index)
        if self.kind == "none":
            return self.unlabelled(index.shape)
        level = np.stack(np.unravel_index(index, self.levels), axis=-1)
        if self.kind == "continuous":
            level = np.array(self.low) + level / 2 * (np.array(self.high) - np.array(self.low))
        return (level if self.shape else level[..., 0]).astype(self.dtype)

    def drawn(self, rng: np.random.Generator) -> Any:
        """Return one action, drawn uniformly: an int, or a vector (A,)."""
        if self.kind == "continuous":
            low, high = np.array(self.low), np.array(self.high)
            return rng.uniform(low, high).astype(np.float32).clip(low.astype(np.float32), high.astype(np.float32))
        action = self.nth(rng.integers(self.count)) if self.count < 2**62 else rng.integers(self.levels)
        return action if self.shape else int(action)

    def number(self, action: Any) -> int:
        """Return the number of an action, as ``nth`` counts; continuous components are taken to the nearest level."""
        if self.kind == "none":
            return 0
        return int(np.ravel_multi_index(self.by_level(np.asarray(action)).tolist(), self.levels))

    def by_level(self, actions: np.ndarray) -> np.ndarray:
        """Return the level of each component, int64 (..., A), -1 where there is no action; continuous: the nearest."""
        components = actions if self.shape else actions[..., None]
        if self.kind == "continuous":
            low, high = np.array(self.low), np.array(self.high)
            components = np.clip(np.rint(2 * (components - low) / (high - low)), 0, 2)
        return np.where(self.is_action(actions)[..., None], components, -1).astype(np.int64)

    @property
    def named_levels(self) -> tuple[tuple[int, int], ...]:
        """(component, level) of each name: all levels, but 1 of binary ones and both ends of continuous ones."""
        levels = {"binary": (1,), "continuous": (0, 2)}
        return tuple((a, k) for a, count in enumerate(self.levels) for k in levels.get(self.kind, range(count)))

    def label(self, index: int) -> str:
        """Return an action's name, for people."""
        if not self.names:
            return f"action {index}" if not self.shape else " ".join(f"{part:g}" for part in self.nth(index))
        level = np.unravel_index(index, self.levels)
        pressed = [name for (a, k), name in zip(self.named_levels, self.names, strict=True) if level[a] == k]
        return " + ".join(pressed) or "nothing"

    def name_of(self, action: Any) -> str:
        """Return the name of one action of an episode, for people; "" for no action yet, "?" if not recorded."""
        if self.is_start(action) or self.kind == "none" or self.is_unlabelled(action):
            return "" if self.is_start(action) else "?"
        values = np.ravel(action)
        if self.kind == "continuous":
            return " ".join(f"{value:+.2f}" for value in values)
        if not self.names:
            return " ".join(str(value) for value in values)
        named = zip(self.named_levels, self.names, strict=True)
        return " + ".join(name for (a, k), name in named if values[a] == k and name != "none") or "nothing"
