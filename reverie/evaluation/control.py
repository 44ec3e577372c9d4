"""Controllability: action swap against the simulator, latent codes against recorded actions; confidence intervals.

A rollout can look right and ignore its player, because few pixels move and PSNR hardly changes. If a dataset comes from
a simulator and keeps its states, controllability can be measured exactly. From one state every action is tried in the
simulator. The frame generated for an action must be nearest to the frame that this action really leads to.

Legend: B clips, A actions, S size of a simulator's state, H W C image.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri, stdtrit

from reverie.errors import ReverieError


def outcomes(simulator, states_BS: np.ndarray, frames_BHWC: np.ndarray) -> np.ndarray:
    """Return the simulator's next frame for every action from every state, uint8 (B, A, H, W, C).

    ``frames_BHWC`` are the recorded frames of the states. Raises ReverieError if the simulator draws other ones, since
    the states are then not those of this dataset.
    """
    for state, frame in zip(states_BS, frames_BHWC, strict=True):
        if not np.array_equal(simulator.render(state), frame):
            raise ReverieError("the simulator does not draw this dataset's frames from its states: record it again.")
    actions = simulator.actions.nth(range(simulator.actions.count))
    return np.stack(
        [np.stack([simulator.render(_next(simulator, state, action)) for action in actions]) for state in states_BS]
    )


def held(simulator, state_S: np.ndarray, action, length: int) -> np.ndarray:
    """Return the simulator's frames while ``action`` is held from a state, uint8 (length, H, W, C)."""
    frames = []
    for _ in range(length):
        state_S = _next(simulator, state_S, action)
        frames.append(simulator.render(state_S))
    return np.stack(frames)


def _next(simulator, state_S: np.ndarray, action) -> np.ndarray:
    return simulator.step(state_S, action if np.ndim(action) else int(action))[0]


def action_swap(made_BAHWC: np.ndarray, true_BAHWC: np.ndarray, recorded_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Return, per clip, how often the frame generated for another action than the recorded one is nearest to its truth.

    All frames are uint8: generated and true next frames of every action, and the next frame that was recorded. A pair
    (clip, action) counts if its true frame differs from the recorded one. Distance is the squared error over the whole
    frame. Actions that lead to the same frame are one outcome. A tie between outcomes is a miss.

    Keys, each (B,): "right" and "asked" pairs; "chance": the sum over asked pairs of 1 / (number of outcomes), which is
    the score of guessing. "blind": the best score of a frame that is the same for all actions.
    """
    counts = {name: [] for name in ("right", "asked", "chance", "blind")}
    for generated, true, recorded in zip(made_BAHWC, true_BAHWC, recorded_BHWC, strict=True):
        same = np.array([[np.array_equal(a, b) for b in true] for a in true])
        asked = np.array([not np.array_equal(frame, recorded) for frame in true])
        errors = generated[:, None].astype(np.int32) - true[None].astype(np.int32)
        distance = np.square(errors).sum((2, 3, 4), dtype=np.int64)
        rival = np.where(same, np.iinfo(np.int64).max, distance).min(1)  # nearest frame that is not this action's
        right = np.diagonal(distance) < rival
        distinct = len({frame.tobytes() for frame in true})
        counts["right"].append((right & asked).sum())
        counts["asked"].append(asked.sum())
        counts["chance"].append(asked.sum() / distinct)
        counts["blind"].append((same[asked][:, asked]).sum(1).max(initial=0))
    return {name: np.array(values) for name, values in counts.items()}


def agreement(codes: np.ndarray, actions: np.ndarray) -> dict[str, float]:
    """Return how well latent codes predict recorded actions; both are integers >= 0 of one shape.

    "accuracy": of the best map from code to action, which reads each code as the action it most often goes with. It is
    fitted and scored on the same pairs, so it is a little too high for few pairs. "chance": always the most frequent
    action. "nmi": mutual information over the mean of the two entropies, 0 (independent) to 1 (the same up to names).
    """
    joint = _joint(codes, actions, int(codes.max(initial=0)) + 1)
    joint = joint / joint.sum()
    of_codes, of_actions = entropy(joint.sum(1)), entropy(joint.sum(0))
    mutual = of_codes + of_actions - entropy(joint.ravel())
    mean = (of_codes + of_actions) / 2
    return {
        "accuracy": float(joint.max(1).sum()),
        "chance": float(joint.sum(0).max()),
        "nmi": float(np.clip(mutual / mean, 0.0, 1.0)) if mean > 0 else 0.0,
    }


def meanings(codes: np.ndarray, actions: np.ndarray, size: int) -> list[int | None]:
    """Return for each of ``size`` latent codes the recorded action it stands for, None if it stands for none.

    A code stands for the action of more than half of its steps, unless another code has more steps with that action.
    """
    joint = _joint(codes, actions, size)
    mostly = np.where(2 * joint > joint.sum(1, keepdims=True), joint, 0)
    return [
        int(row.argmax()) if row.any() and code == mostly[:, row.argmax()].argmax() else None
        for code, row in enumerate(mostly)
    ]


def _joint(codes: np.ndarray, actions: np.ndarray, size: int) -> np.ndarray:
    """Return how often each of ``size`` codes goes with each action."""
    joint = np.zeros((size, actions.max(initial=0) + 1), int)
    np.add.at(joint, (codes.ravel(), actions.ravel()), 1)
    return joint


def entropy(shares: np.ndarray) -> float:
    """Return the entropy of a distribution, in nats."""
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def interval(
    values: np.ndarray, weights: np.ndarray | None = None, groups: np.ndarray | None = None, draws: int = 2000
) -> np.ndarray:
    """Return the 95 % interval of the mean over the first axis, (..., 2), by bootstrap over groups of rows.

    ``groups``: a number for each row; rows of one group are resampled together, since clips of one episode are alike
    and may overlap. None: each row is a group. With ``weights`` (one per row) it is the interval of
    ``sum(values) / sum(weights)``, for shares of pairs if clips have different numbers of pairs. One group gives NaN.
    A bootstrap of few groups is too narrow, so it is widened as Student's t is (for 5 groups, by 1.6).
    """
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    count = int(group.max()) + 1
    if count < 2:
        return np.full((*values.shape[1:], 2), np.nan)
    sums, totals = np.zeros((count, *values.shape[1:])), np.zeros(count)
    np.add.at(sums, group, values)
    np.add.at(totals, group, weights)
    picks = np.random.default_rng(0).integers(0, count, (draws, count))
    picks = picks[totals[picks].sum(1) > 0]
    means = np.stack([sums[pick].sum(0) / totals[pick].sum() for pick in picks])
    centre = sums.sum(0) / totals.sum()
    wider = student(count - 1) / ndtri(0.975) * np.sqrt(count / (count - 1))
    return np.moveaxis(centre + wider * (np.quantile(means, [0.025, 0.975], axis=0) - centre), 0, -1)


def student(freedom: int) -> float:
    """Return the half width of a 95 % interval in standard errors, for these degrees of freedom."""
    return float(stdtrit(freedom, 0.975))


def crosswise(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (even, odd) and (odd, even) rows, so that no rollout is compared with its own truth."""
    even, odd = rows[rows % 2 == 0], rows[rows % 2 == 1]
    return [(even, odd), (odd, even)]


def jackknife(statistic: Callable[[np.ndarray], float], episodes: np.ndarray, groups: int = 10) -> list[float] | None:
    """Return the 95 % interval of a distance between sets of clips by a grouped jackknife; None for too few clips.

    ``statistic`` maps the rows that remain to the distance. ``episodes``: the episode of each row. Rows of one episode
    are left out together, and so are neighbours (2k, 2k+1), since such statistics compare even rows with odd ones. A
    bootstrap is no substitute: clips drawn twice make a set narrower, and so every distance larger.
    """
    clips = len(episodes)
    pairs = np.arange(clips) // 2 * 2
    unit = np.unique(episodes[pairs], return_inverse=True)[1]  # a pair goes with its first clip
    groups = min(groups, clips // 4, int(unit.max(initial=-1)) + 1)
    if groups < 2:
        return None
    group = unit % groups
    without = np.array([statistic(np.flatnonzero(group != left_out)) for left_out in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    centre, reach = statistic(np.arange(clips)), student(groups - 1) * float(error)
    return [max(centre - reach, 0.0), centre + reach]
