"""Where further episodes begin in one table of steps, by arrays beside it that count, number or mark them.

A name is only a hint. Values must fit the number of rows as well, so that an array of another meaning cuts nothing.
"""

import re
from collections.abc import Callable

import numpy as np

from reverie.data.sources import roles

# Words in the name of an array with a number for each episode: how long it is, where it starts or ends.
LENGTHS, STARTS, ENDS = {"length", "lengths", "len", "lens"}, {"start", "starts", "begin", "begins"}, {"end", "ends"}
EPISODES, PLACES = {"episode", "episodes", "ep", "traj", "trajectory"}, {"idx", "index", "indices", "offsets", "ptr"}
# Names of arrays with an entry for each row: the number of its episode, 1 where one begins, its place in its episode.
NUMBERS = ("episode", "episodes", "episode_id", "episode_ids", "episode_index", "episode_idx", "episode_number",
           "ep_id", "ep_idx", "traj_id", "traj_ids", "trajectory_id", "trajectory_ids", "trajectory_index")  # fmt: skip
BEGINS = ("episode_start", "episode_starts", "starts", "is_start", "begins")
STEPS = ("frame_index", "frame_idx", "step", "steps", "step_index", "timestep", "timesteps", "time_step")
MOST = 2**22  # episodes


def is_list(name: str, shape: tuple[int, ...], kind: str) -> bool:
    """Return whether an array may have a number for each episode, by its name, shape and type."""
    words = _words(name)
    named = words & (LENGTHS | STARTS | ENDS) or (words & EPISODES and words & PLACES)
    return bool(named) and len(shape) == 1 and 0 < shape[0] <= MOST and kind[0] in "iu"


def of_list(name: str, values: np.ndarray, rows: int) -> list[int] | None:
    """Return where further episodes begin, by the lengths, ends or starts of all; None if they do not fit ``rows``."""
    words, values = _words(name), values.astype(np.int64)
    if words & LENGTHS:
        return np.cumsum(values)[:-1].tolist() if values.min() >= 0 and values.sum() == rows else None
    if values[0] < 0 or (np.diff(values) < 0).any() or values[-1] > rows:
        return None
    if values[-1] == rows:
        return values[:-1].tolist()  # an end is the start of the next
    if values[-1] == rows - 1 and not words & STARTS:
        return (values[:-1] + 1).tolist()  # the last row of each
    return values[1:].tolist() if values[0] == 0 and not words & ENDS else None


def of_rows(find: Callable[[tuple[str, ...]], np.ndarray | None]) -> list[int]:
    """Return where further episodes begin, by an array with an entry a row; ``find`` looks one up by its names."""
    if (numbers := find(NUMBERS)) is not None and (begins := _after(numbers[1:] != numbers[:-1])):
        return begins
    if (starts := find(BEGINS)) is not None and np.isin(np.nan_to_num(starts), (0, 1)).all():
        return _after(roles.is_set(starts)[1:])
    if (steps := find(STEPS)) is None or (steps == steps[:1]).all():
        return []
    back = _after(steps[1:] <= steps[:-1])
    return back if all(steps[row] == steps[0] for row in back) else []


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", roles.last(name)))


def _after(marks: np.ndarray) -> list[int]:
    return (np.flatnonzero(marks) + 1).tolist()
