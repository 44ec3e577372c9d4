"""The second part of an evaluation: do actions lower the loss, long dreams, whole sets of clips, actions read back.

Everything is of the clips that the first part dreamed, so a number here belongs to the picture there.

Legend: B clips, T time, N tokens per frame.
"""

from typing import Any

import numpy as np

from reverie.data.episode import Dataset
from reverie.evaluation import drift, frechet, inverse
from reverie.evaluation.control import interval
from reverie.evaluation.dreams import Clips, Dreams

Numbers = dict[str, Any]

LONG = 4  # a long dream is so many times the clips in training
LONG_CLIPS = 32  # dreamed so long, at most: the longest part of an evaluation


def measured(
    dreams: Dreams,
    given: Clips,
    tokens_BTN: np.ndarray,
    views: dict[str, np.ndarray],
    trained: int,
    practice: Dataset | None = None,
    features: frechet.Features | None = None,
) -> Numbers:
    """Return the numbers of the second part; what cannot be had is left out.

    ``tokens``: latents of the clips' frames. ``views``: frames by name ("dream", "floor", "copy_last" and, where there
    are actions, "random"), of the length of ``given.truth``. ``trained``: frames of a clip in training. ``practice``:
    episodes with actions.
    """
    sets = {name: frames for name, frames in ({"truth": given.truth} | views).items() if name in frechet.SUFFIXES}
    numbers = _shuffled(dreams, given, tokens_BTN) | _drift(dreams, given, views["dream"], LONG * trained)
    at_random = frechet.at_random(sets)
    if at_random:
        numbers |= frechet.distances("frechet_random", at_random, given.episodes)
    if features is not None:
        numbers |= frechet.distances("frechet_user", frechet.by_function(features, sets), given.episodes)
    return numbers | _read_back(given, views, practice, dreams.seed)


def _shuffled(dreams: Dreams, given: Clips, tokens_BTN: np.ndarray) -> Numbers:
    """The loss with the actions of other clips over that with the true ones."""
    count = len(given.actions)
    if count < 2 or not dreams.space.is_action(given.actions).any():
        return {}
    order = np.random.default_rng(dreams.seed).permutation(count)
    others = np.empty_like(given.actions)
    others[order] = given.actions[np.roll(order, 1)]  # every clip gets another's
    true, shuffled = dreams.losses(tokens_BTN, given.actions, others).astype(np.float64).T
    if not true.sum() > 0:
        return {}
    band = interval(shuffled, true, given.episodes).tolist()
    return {"action_shuffle_ratio": float(shuffled.sum() / true.sum()), "action_shuffle_ratio_ci": band}


def _drift(dreams: Dreams, given: Clips, dreamed: np.ndarray, length: int) -> Numbers:
    """How a long dream ends; along the clip's actions, then along those of other clips, one clip after another."""
    rows = np.arange(len(dreamed))
    if length > dreamed.shape[1]:
        rows = np.unique(np.linspace(0, len(rows) - 1, min(LONG_CLIPS, len(rows))).astype(int))
        before, after = given.actions[:, : given.context], given.actions[:, given.context :]
        turns = [np.roll(after, -turn, axis=0) for turn in range(-(-length // after.shape[1]))]
        actions = np.concatenate([before, *turns], axis=1)[rows, : given.context + length]
        dreamed = dreams.dream(given.seen[rows], actions)
    return drift.measured(dreamed, given.frames[rows], given.seen[rows, -1], given.episodes[rows])


def _read_back(given: Clips, views: dict[str, np.ndarray], practice: Dataset | None, seed: int) -> Numbers:
    """How often a reader of real frames names the recorded action between two dreamed frames."""
    if practice is None or practice.spec.actions.shape or given.truth.shape[1] < 2:  # one action of so many is named
        return {}
    actions = given.recorded[:, given.context :]
    known = actions[:, 1:][actions[:, 1:] >= 0]
    reader = inverse.learned(practice, seed) if known.size else None
    if reader is None:
        return {}
    numbers: Numbers = {"idm_chance": float(np.bincount(known).max() / known.size)}
    for name, frames in (("", views["dream"]), ("_real", given.truth), ("_floor", views["floor"])):
        found = inverse.read(reader, frames, actions)
        numbers[f"idm_accuracy{name}"] = float(found["right"].sum() / found["asked"].sum())
        band = interval(found["right"], found["asked"], given.episodes)
        numbers[f"idm_accuracy{name}_ci"] = np.clip(band, 0, 1).tolist()
    return numbers
