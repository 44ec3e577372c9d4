"""Whether actions belong to the frames they are stored with: inverse dynamics by ridge regression.

From how a frame moved, the regression predicts the action that is stored ``lag`` frames later. In data whose actions
lead *to* their frames the prediction is best at lag 0. Actions that are stored one row too early, those taken *at* a
frame, are best predicted at lag -1.

Legend: S steps, D features, V values to predict.
"""

from collections.abc import Sequence

import numpy as np

from reverie.actions import ActionSpace
from reverie.data.doctor.look import Looked

LAGS = range(-3, 4)
RANDOM = 96  # random features of the motion: enough for "left and not right", whatever the speed
STEPS = 20_000  # of which the regression learns, at most
RIDGE = 1.0
FEWEST = 200  # steps with actions, or nothing is said
CLEAR = 0.05  # explained variance by which a lag must be better than none, and a third better at that
EPISODE, STEPS_OF_ONE = 0.4, 24  # the same for single episodes, which must be so long, where actions are known at all


def lag_of(seen: Sequence[Looked], space: ActionSpace) -> tuple[int, dict[int, float], list[int]]:
    """Return the best lag of all episodes, the explained variance at each, and the places of episodes that differ.

    The lag is 0 if actions are not predictable at all. Half of the episodes are predicted from the other half.
    """
    usable = [place for place, one in enumerate(seen) if not one.damage and one.length > 2 * len(LAGS)]
    if space.kind == "none" or len(usable) < 2 or sum(seen[place].length for place in usable) < FEWEST:
        return 0, {}, []
    parts = {place: (_features(seen[place].motion), _values(seen[place].actions, space)) for place in usable}
    parts = {place: part for place, part in parts.items() if np.isfinite(part[1]).any()}
    errors = {lag: _errors(parts, lag) for lag in LAGS}
    scores = {lag: _explained(list(found.values())) for lag, found in errors.items()}
    best = max(scores, key=scores.__getitem__)
    if scores[best] < max(scores[0] + CLEAR, 1.33 * scores[0]):
        best = 0
    return best, scores, _odd(errors, best) if scores[best] > EPISODE else []


def _odd(errors: dict[int, dict[int, tuple]], best: int) -> list[int]:
    """Return the episodes that are predicted much better at another lag than the others are."""
    odd = []
    for place in errors[best]:
        scores = {lag: _explained([of[place]]) for lag, of in errors.items() if place in of}
        other = max(scores, key=scores.__getitem__)
        clear = scores[other] > max(scores[best], 0) + EPISODE and scores[best] < EPISODE / 2
        if other != best and errors[best][place][2] >= STEPS_OF_ONE and clear:
            odd.append(place)
    return odd


def _errors(parts: dict[int, tuple[np.ndarray, np.ndarray]], lag: int) -> dict[int, tuple]:
    """Return, for each episode, the squared error, that of the mean action, and the number of steps."""
    shifted = {}
    for place, (features, values) in parts.items():
        rows = np.arange(max(1, 1 - lag), min(len(values), len(values) - lag))
        known = rows[np.isfinite(values[rows + lag]).all(1)]
        if len(known):
            shifted[place] = features[known], values[known + lag]
    places, found = sorted(shifted), {}
    for half in (0, 1):
        learn, tell = places[half::2], places[1 - half :: 2]
        if not learn or not tell:
            continue
        x, y = (np.concatenate([shifted[place][index] for place in learn])[:STEPS] for index in (0, 1))
        mean = y.mean(0)
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - mean))
        for place in tell:
            features, values = shifted[place]
            found[place] = (
                float(((values - mean - features @ weights) ** 2).sum()),
                float(((values - mean) ** 2).sum()),
                len(values),
            )
    return found


def _explained(errors: list[tuple]) -> float:
    return 1 - sum(error[0] for error in errors) / max(sum(error[1] for error in errors), 1e-9)


def _features(motion: np.ndarray) -> np.ndarray:
    """Return (T, D): the motion, and random nonlinear features of it."""
    rng = np.random.default_rng(0)
    weights, shift = rng.normal(size=(motion.shape[1], RANDOM)), rng.normal(size=RANDOM)
    return np.concatenate([motion, np.maximum(motion @ weights + shift, 0), np.ones((len(motion), 1))], 1)


def _values(actions: np.ndarray, space: ActionSpace) -> np.ndarray:
    """Return (T, V): whether each value of each component was chosen; numbers if continuous; nan where unknown."""
    known = space.is_action(actions)
    if space.kind == "continuous":
        values = (actions - np.array(space.low)) / (np.array(space.high) - np.array(space.low))
    else:
        components = actions if space.shape else actions[:, None]
        levels = [min(level, 64) for level in space.levels]  # of 121 camera bins, one number says enough
        values = np.concatenate(
            [_chosen(components[:, a], count, levels[a]) for a, count in enumerate(space.levels)], 1
        )
    return np.where(known[:, None], values, np.nan)


def _chosen(component: np.ndarray, count: int, most: int) -> np.ndarray:
    if count > most:
        return component[:, None] / count
    return (component[:, None] == np.arange(count)).astype(float)
