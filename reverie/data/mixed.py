"""Demonstrations of mixed quality: each episode is played by one policy, drawn at its start and noted in its source.

Agents learn more from such data than from expert play or random play alone, and "better than the data" has a meaning.
"""

from typing import Any

import numpy as np

from reverie.data.episode import Action, Policy

BEHAVIOUR, RANDOM = 0.4, 0.3  # shares of episodes; the others are half good
CHANCE = 0.5, 0.95  # a half-good policy takes a random action with a probability drawn from this range


def draw_policy(simulator: Any, rng: np.random.Generator, chances: tuple[float, float] = CHANCE) -> tuple[str, Policy]:
    """Return the kind and the policy of an episode: the simulator's own behaviour, random, or half good.

    A half-good policy takes ``simulator.best`` or a random action, with a probability that belongs to the episode and
    is drawn from ``chances``.
    """

    def random(state: np.ndarray, rng: np.random.Generator, last_action: Action) -> Action:
        return simulator.actions.drawn(rng)

    def half_good(state: np.ndarray, rng: np.random.Generator, last_action: Action) -> Action:
        return simulator.actions.drawn(rng) if rng.random() < chance else simulator.best(state)

    kind, chance = rng.random(), rng.uniform(*chances)
    if kind < BEHAVIOUR:
        return "behaviour", simulator.policy
    return ("random", random) if kind < BEHAVIOUR + RANDOM else (f"random {chance:.2f}, else best", half_good)
