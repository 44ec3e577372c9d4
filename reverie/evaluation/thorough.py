"""The second part of an evaluation: loss with shuffled actions, drift, Frechet distances, inverse dynamics.

It uses the clips and rollouts of the first part, so its numbers belong to the same pictures.

Legend: B clips, T time, N tokens per frame.
"""

import numpy as np

from reverie.data.episode import Dataset
from reverie.evaluation import drift, frechet, inverse
from reverie.evaluation.control import interval
from reverie.evaluation.meaning import Numbers
from reverie.evaluation.rollouts import Clips, Rollouts

LONG = 4  # length of a long rollout, in training clips
LONG_CLIPS = 32  # the most long rollouts: they take most of the time of an evaluation


def measured(
    rollouts: Rollouts,
    given: Clips,
    tokens_BTN: np.ndarray,
    views: dict[str, np.ndarray],
    trained: int,
    practice: Dataset | None = None,
    features: frechet.Features | None = None,
) -> Numbers:
    """Return the numbers of the second part, without those that cannot be computed for this world or dataset.

    ``tokens``: latents of the clips' frames. ``views``: frames by name ("rollout", "floor", "copy_last" and, if there
    are actions, "random"), as many as in ``given.truth``. ``trained``: frames of a training clip. ``practice``:
    episodes with actions, for the action reader.
    """
    sets = {name: frames for name, frames in ({"truth": given.truth} | views).items() if name in frechet.SUFFIXES}
    numbers = _shuffled(rollouts, given, tokens_BTN) | _drift(rollouts, given, views["rollout"], LONG * trained)
    at_random = frechet.at_random(sets)
    if at_random:
        numbers |= frechet.distances("frechet_random", at_random, given.episodes)
    if features is not None:
        numbers |= frechet.distances("frechet_user", frechet.by_function(features, sets), given.episodes)
    return numbers | _read_back(given, views, practice, rollouts.seed)


def _shuffled(rollouts: Rollouts, given: Clips, tokens_BTN: np.ndarray) -> Numbers:
    """The loss with the actions of other clips, divided by the loss with the clips' own actions."""
    count = len(given.actions)
    if count < 2 or not rollouts.space.is_action(given.actions).any():
        return {}
    order = np.random.default_rng(rollouts.seed).permutation(count)
    others = np.empty_like(given.actions)
    others[order] = given.actions[np.roll(order, 1)]  # every clip gets the actions of another one
    true, shuffled = rollouts.losses(tokens_BTN, given.actions, others).astype(np.float64).T
    if not true.sum() > 0:
        return {}
    band = interval(shuffled, true, given.episodes).tolist()
    return {"action_shuffle_ratio": float(shuffled.sum() / true.sum()), "action_shuffle_ratio_ci": band}


def _drift(rollouts: Rollouts, given: Clips, generated: np.ndarray, length: int) -> Numbers:
    """Drift of long rollouts along the clip's actions, then along those of other clips, one clip after another."""
    rows = np.arange(len(generated))
    if length > generated.shape[1]:
        rows = np.unique(np.linspace(0, len(rows) - 1, min(LONG_CLIPS, len(rows))).astype(int))
        before, after = given.actions[:, : given.context], given.actions[:, given.context :]
        turns = [np.roll(after, -turn, axis=0) for turn in range(-(-length // after.shape[1]))]
        actions = np.concatenate([before, *turns], axis=1)[rows, : given.context + length]
        generated = rollouts.rollout(given.seen[rows], actions)
    return drift.measured(generated, given.frames[rows], given.seen[rows, -1], given.episodes[rows])


def _read_back(given: Clips, views: dict[str, np.ndarray], practice: Dataset | None, seed: int) -> Numbers:
    """Accuracy of the action reader, trained on real frames, between two generated frames."""
    if practice is None or given.truth.shape[1] < 2:
        return {}
    actions = given.recorded[:, given.context :]
    chance = inverse.chance(practice.spec.actions, actions[:, 1:])
    reader = inverse.learned(practice, seed) if chance is not None else None
    if reader is None:
        return {}
    numbers: Numbers = {"idm_chance": chance}
    for name, frames in (("", views["rollout"]), ("_real", given.truth), ("_floor", views["floor"])):
        found = inverse.read(reader, frames, actions)
        numbers[f"idm_accuracy{name}"] = float(found["right"].sum() / found["asked"].sum())
        band = interval(found["right"], found["asked"], given.episodes)
        numbers[f"idm_accuracy{name}_ci"] = np.clip(band, 0, 1).tolist()
    return numbers
