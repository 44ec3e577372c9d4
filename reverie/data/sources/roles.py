"""What an array of an episode is, by the name that some program gave it.

Names are compared without case; of a path ("obs/agentview_image", "next.reward") the last part counts.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from reverie.errors import ReverieError, did_you_mean

ACTIONS = ("action", "actions", "act", "acts", "buttons", "control", "controls", "a")
REWARDS = ("reward", "rewards", "rew", "rews", "r")
TERMINALS = (
    *("is_terminal", "terminal", "terminals", "terminated", "terminateds"),
    *("termination", "terminations", "ends", "end"),
)
DONES = ("done", "dones")  # of the world or of the recording: most programs do not say which
STOPS = ("is_last", "truncated", "truncateds", "truncation", "truncations", "timeout", "timeouts")
FIRSTS = ("is_first", "first")
OF_STEPS = {
    "actions": ACTIONS,
    "rewards": REWARDS,
    "terminals": TERMINALS,
    "dones": DONES,
    "stops": STOPS,
    "firsts": FIRSTS,
    "discounts": ("discount", "discounts"),
    "goes": ("not_done", "not_dones", "nonterminal", "nonterminals", "continue", "continues", "cont"),
}
KNOWN = {name for names in OF_STEPS.values() for name in names}
LOOSE = ("rewards", "terminals", "dones", "stops")  # roles whose arrays may have longer names ("env_reward")
NOT_TAKEN = {  # words of a longer name that give it another meaning ("action_mask", "next_done")
    *("not", "mask", "prev", "previous", "next"),
    *("log", "logp", "logprob", "logprobs", "prob", "probs", "value", "dim"),
}
TASKS = ("language_instruction", "natural_language_instruction", "instruction", "task")
HELD = ("buttons", "keys")  # components that may be 1 together
FRAMES = (  # the first of these that is there shows the world
    *("image", "images", "rgb", "frame", "frames", "pixels", "screen", "screens", "video"),
    *("observation", "observations", "obs", "state", "states"),
)
NOT_SHOWN = ("depth", "mask", "segm", "semantic", "goal")  # in names of pictures that are taken last, or never


def last(name: str) -> str:
    """Return the part of a path that names the array."""
    return re.split(r"[/.]", name.lower())[-1]


def shows(name: str) -> bool:
    """Return whether the name of an array says that it holds pictures."""
    return last(name) in FRAMES or any(word in name.lower() for word in ("image", "img", "rgb", "pixels"))


def is_next(name: str) -> bool:
    """Return whether an array is of the moment after a step ("next_obs/image")."""
    return any(part.startswith("next_") or part.endswith("_next") for part in name.lower().split("/"))


def is_part(name: str, wanted: tuple[str, ...]) -> bool:
    """Return whether an array lies in a group that means one of ``wanted`` ("action/gripper")."""
    return any(part in wanted for part in re.split(r"[/.]", name.lower())[:-1])


def find(names: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """Return the name that means one of ``wanted``; the earlier in ``wanted`` and the shorter path win."""
    found = [(wanted.index(last(name)), len(re.split(r"[/.]", name)), name) for name in names if last(name) in wanted]
    return min(found)[2] if found else None


def like(names: Iterable[str], wanted: tuple[str, ...]) -> list[str]:
    """Return names without a known role that contain a word of ``wanted``, and no word of another role."""
    telling = {word for word in wanted if len(word) > 3} - {"ends"}  # "end" is also of an arm, "r" right or red
    words = {name: {*re.split(r"[^a-z]+", last(name))} for name in names if last(name) not in KNOWN}
    return [name for name, own in words.items() if own & telling and not own & NOT_TAKEN]


def acting(key: str, names: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Return the arrays of ``names`` that make an action, side by side: those a user named, else those that say so."""
    if key:
        return [chosen(one, names, "array of actions") for one in key.split(",") if one]
    if (name := find(names, ACTIONS)) is not None:
        return [name]
    parts = [name for name in names if is_part(name, ACTIONS)]
    if len(parts) > 1:
        say(f"an action has the parts {', '.join(parts)[:200]}: read as one vector; --actions takes some")
    near = like(names, ACTIONS[:2])
    if parts or not names:
        return parts
    if len(near) == 1:
        say(f"'{near[0]}' counts as the actions; --actions names another array")
        return near
    say(f"which of {', '.join(near or names)[:200]} holds the actions is not clear: unlabelled; --actions names one")
    return []


def chosen(key: str, names: Iterable[str], what: str) -> str:
    """Return the name that a user meant by ``key``: all of it, or its end; ReverieError lists the names."""
    names = list(names)
    if key in names:
        return key
    for before in ("[/.]", "[/._]"):  # of "a/image" and "a/wrist_image", "image" is the first
        near = [name for name in names if re.search(rf"(^|{before}){re.escape(key)}$", name)]
        if len(near) == 1:
            return near[0]
    if near:
        raise ReverieError(f"'{key}' could be several {what}: {', '.join(near)[:300]}.")
    some = did_you_mean(key, names) if names else " There are none."
    raise ReverieError(f"there is no {what} '{key}'.{some[:400]}")


def by_likeness(names: Iterable[str]) -> list[str]:
    """Return names of pictures, the one that shows the world first; else in the order they came in."""
    names = list(names)

    def rank(name: str) -> tuple[bool, int, int]:
        odd = any(word in name.lower() for word in NOT_SHOWN)
        own = last(name)
        exact = FRAMES.index(own) if own in FRAMES else len(FRAMES)
        return odd, exact, names.index(name)

    return sorted(names, key=rank)


def cameras(camera: str, options: Sequence[str], say: Callable[[str], None]) -> tuple[str, ...]:
    """Return the cameras that a user named, one or several after a comma; of several without a name, the first."""
    if camera == "all":
        return tuple(options)
    if camera:
        return tuple(chosen(key, options, "camera") for key in camera.split(","))
    if len(options) > 1:
        rest = ", ".join(options[1:])[:200]
        say(f"of {len(options)} cameras, {options[0]} is read; --camera takes another or several ({rest}; all)")
    return (options[0],)


def is_set(flags: Any) -> np.ndarray:
    """Return where flags are set, bool; one that is missing (nan) is not: many files name the last step alone."""
    return np.nan_to_num(np.asarray(flags)) != 0


def rate(value: Any) -> float:
    """Return a declared rate in frames per second; 0 unless it is a number above 0, of 240 at most."""
    return float(value) if isinstance(value, int | float | np.number) and 0 < value <= 240 else 0.0
