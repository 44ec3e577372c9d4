"""Several runs of one recipe as one row: the mean over seeds and its confidence interval.

Intervals over clips say how well one trained world was measured. They say nothing about the next seed, and seeds differ
by more. Seeds are few, so the interval is Student's t over one number per run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from reverie.errors import ReverieError
from reverie.evaluation.control import student
from reverie.evaluation.meaning import Numbers

# What all runs must agree in, and what is copied instead of averaged.
RULES = ("action_source", "context", "horizon", "clips", "seed", "dataset", "fingerprint", "drift_frames")
COPIED = (*RULES, "temperature", "fps", "device")


def pool(runs: Sequence[Numbers]) -> Numbers:
    """Return the numbers of several runs (what ``evaluate`` returns, or an eval.json) as one.

    Each number is the mean over runs, entry by entry where it is a list, with ``*_ci`` [low, high], the 95 % t-interval
    over runs. For a single run it is None, since its interval over clips means something else. "runs" is their number.
    A number that one of the runs lacks is None. Raises ReverieError for no runs, or runs measured on other clips.
    """
    if not runs:
        raise ReverieError("there are no runs to pool.")
    for rule in RULES:
        found = [run.get(rule) for run in runs]
        if any(value != found[0] for value in found):
            raise ReverieError(f"these runs were measured differently ({rule}: {found}): measure them alike.")
    pooled: Numbers = {"runs": len(runs)}
    for name in {name: None for run in runs for name in run}:
        values = [run.get(name) for run in runs]
        if name in COPIED:
            pooled[name] = values[0] if all(value == values[0] for value in values) else None
        elif not name.endswith("_ci"):
            pooled |= _pooled(name, values)
    return pooled


def _pooled(name: str, values: list[Any]) -> Numbers:
    try:
        table = np.array(values, np.float64)  # None becomes nan, and so does the mean of what has one
    except (TypeError, ValueError):  # words, or lists of different lengths
        return {name: None, f"{name}_ci": None}
    if not np.isfinite(table).all():
        return {name: None, f"{name}_ci": None}
    count, mean = len(table), table.mean(0)
    if count < 2:
        return {name: mean.tolist(), f"{name}_ci": None}
    reach = student(count - 1) * table.std(0, ddof=1) / np.sqrt(count)
    return {name: mean.tolist(), f"{name}_ci": np.stack([mean - reach, mean + reach], axis=-1).tolist()}
