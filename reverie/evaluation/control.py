"""Does the dream obey? Exact action swap against the simulator, and how latent codes relate to true actions.

A dream can look right and ignore its player: the pixels that move are few and PSNR hardly sees them. Where a dataset
comes from a simulator and keeps its states, the question has an exact answer: from one state every action is tried in
the simulator, and a dream that was asked for action a must be nearest to the frame which a really leads to.

Legend: B clips, A actions, S size of a simulator's state, H W C image.
"""

import numpy as np

from reverie.errors import ReverieError


def outcomes(simulator, states_BS: np.ndarray, frames_BHWC: np.ndarray) -> np.ndarray:
    """Return the simulator's next frame for every action from every state, uint8 (B, A, H, W, C).

    ``frames_BHWC`` are the recorded frames of the states; when the simulator draws others, its states are not those
    of this dataset and ReverieError is raised.
    """
    for state, frame in zip(states_BS, frames_BHWC, strict=True):
        if not np.array_equal(simulator.render(state), frame):
            raise ReverieError("the simulator does not draw this dataset's frames from its states: record it again.")
    actions = simulator.actions.nth(range(simulator.actions.count))
    return np.stack(
        [np.stack([simulator.render(_next(simulator, state, action)) for action in actions]) for state in states_BS]
    )


def held(simulator, state_S: np.ndarray, action, length: int) -> np.ndarray:
    """Return what the simulator shows while ``action`` is held from a state, uint8 (length, H, W, C)."""
    frames = []
    for _ in range(length):
        state_S = _next(simulator, state_S, action)
        frames.append(simulator.render(state_S))
    return np.stack(frames)


def _next(simulator, state_S: np.ndarray, action) -> np.ndarray:
    return simulator.step(state_S, action if np.ndim(action) else int(action))[0]


def action_swap(dreamed_BAHWC: np.ndarray, true_BAHWC: np.ndarray, recorded_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Return, per clip, how often a dream of another action than the recorded one is nearest to its true frame.

    All frames are uint8: dreamed and true next frames of every action, and the next frame that was recorded. A pair
    (clip, action) counts when its true frame differs from the recorded one. Distance is the squared error over the
    whole frame; actions which lead to the same frame are one outcome; a tie between outcomes is a miss.

    Keys, each (B,): "right" and "asked" pairs; "chance", the sum over asked pairs of 1 / (number of outcomes), which is
    what guessing an outcome gets; "blind", the most that a dream can get which is the same whatever the action.
    """
    counts = {name: [] for name in ("right", "asked", "chance", "blind")}
    for dreamed, true, recorded in zip(dreamed_BAHWC, true_BAHWC, recorded_BHWC, strict=True):
        same = np.array([[np.array_equal(a, b) for b in true] for a in true])
        asked = np.array([not np.array_equal(frame, recorded) for frame in true])
        errors = dreamed[:, None].astype(np.int32) - true[None].astype(np.int32)
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
    """Return how much latent codes tell about true actions; both are integers >= 0 of one shape.

    "accuracy": of the best map from code to action, each code read as the action it most often goes with (chosen and
    scored on the same pairs: a little flattering when pairs are few); "chance": always the most frequent action;
    "nmi": mutual information over the mean of the two entropies, 0 (independent) to 1 (the same up to renaming).
    """
    joint = np.zeros((codes.max(initial=0) + 1, actions.max(initial=0) + 1))
    np.add.at(joint, (codes.ravel(), actions.ravel()), 1)
    joint /= joint.sum()
    of_codes, of_actions = entropy(joint.sum(1)), entropy(joint.sum(0))
    mutual = of_codes + of_actions - entropy(joint.ravel())
    mean = (of_codes + of_actions) / 2
    return {
        "accuracy": float(joint.max(1).sum()),
        "chance": float(joint.sum(0).max()),
        "nmi": float(np.clip(mutual / mean, 0.0, 1.0)) if mean > 0 else 0.0,
    }


def entropy(shares: np.ndarray) -> float:
    """Return the entropy of a distribution, in nats."""
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def interval(values: np.ndarray, weights: np.ndarray | None = None, draws: int = 2000) -> np.ndarray:
    """Return the 95 % interval of the mean over the first axis, (..., 2), by bootstrap over it.

    Clips are redrawn whole, so that what happens within one clip may hang together. With ``weights`` (one per clip) it
    is the interval of ``sum(values) / sum(weights)``, a share of pairs of which clips have different numbers.
    """
    count = len(values)
    picks = np.random.default_rng(0).integers(0, count, (draws, count))
    if weights is None:
        means = np.stack([values[pick].mean(0) for pick in picks])
    else:
        totals = weights[picks].sum(1)
        means = (values[picks].sum(1) / np.maximum(totals, 1))[totals > 0]
    return np.moveaxis(np.quantile(means, [0.025, 0.975], axis=0), 0, -1)
