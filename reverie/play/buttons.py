"""The buttons of the page: what each one sets, and the action while none is pressed."""

from typing import Any

import numpy as np

from reverie.actions import ActionSpace

IDLE = {"stay", "noop", "no-op", "none", "wait", "idle", "nothing"}  # names of a component's level at rest


def rest(space: ActionSpace) -> tuple[int, ...]:
    """Return the level of each component at rest: the middle if continuous, else the one with an idle name, or 0."""
    if space.kind == "continuous":
        return (1,) * space.size
    named = zip(space.named_levels, space.names, strict=False)
    idle = dict(button for button, name in reversed(list(named)) if name.lower() in IDLE)
    return tuple(0 if space.kind == "binary" else idle.get(a, 0) for a in range(len(space.levels)))


def card(space: ActionSpace) -> dict[str, Any]:
    """Return what the page needs to draw buttons and to make action numbers of them; "idle" is that of ``rest``."""
    at_rest = rest(space)
    return {
        "actions": {
            "kind": space.kind,
            "count": space.count,
            "size": len(space.named_levels),
            "buttons": space.named_levels,
            "levels": space.levels,
            "rest": at_rest,
            "names": space.names,
            "keys": space.keys,
        },
        "idle": int(np.ravel_multi_index(at_rest, space.levels)) if at_rest else 0,
    }
