"""From imagined rewards to a policy's loss: lambda-returns, PMPO, REINFORCE.

A step t takes action a_t in state s_t and leads to s_{t+1}. ``rewards[t]`` and ``continues[t]`` arrived with s_{t+1};
``values[t]`` is that of s_t, and there is one more of them: the last state has a value and no action.

Shapes: T steps of a rollout, B rows.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from reverie.nn.batch import Mean, mean


def lambda_returns(rewards_TB: Array, continues_TB: Array, values_TB: Array, gamma: float, lam: float) -> Array:
    """Return R_t = r_t + gamma c_t ((1 - lam) v_{t+1} + lam R_{t+1}), (T, B), with R_T = v_T; values are (T+1, B).

    Source: DreamerV3, and Dreamer 4 eq. 10 with v_{t+1}, as in all code, for its printed v_t.
    """
    gamma, lam = jnp.float32(gamma), jnp.float32(lam)

    def step(following: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, go_on, value = inputs
        found = reward + gamma * go_on * ((1 - lam) * value + lam * following)
        return found, found

    return jax.lax.scan(step, values_TB[-1], (rewards_TB, continues_TB, values_TB[1:]), reverse=True)[1]


def alive(continues_TB: Array) -> Array:
    """Return the probability that a rollout is still going on when step t is taken, (T, B): 1 at the first."""
    past = jnp.concatenate([jnp.ones_like(continues_TB[:1]), continues_TB[:-1]])
    return jnp.cumprod(past, axis=0)


@dataclass(frozen=True, kw_only=True)
class PMPO:
    """Preference optimisation by the sign of the advantage (Dreamer 4, eq. 11; arXiv 2410.04166)."""

    alpha: float = 0.5  # weight of the good actions; the bad ones have the rest
    beta: float = 0.3  # weight of the KL divergence from the prior

    def terms(self, log_prob: Array, advantages: Array, kl: Array, entropy: Array, weights: Array) -> tuple[Mean, ...]:
        """Return the means whose sum is minimised; all arguments are (T, B), ``weights`` how much each step counts.

        Good and bad actions are averaged separately, each over batch and time; an empty set counts as 0.
        """
        good = (advantages >= 0).astype(jnp.float32)
        raised = mean(log_prob, weights * good).times(-self.alpha)
        lowered = mean(log_prob, weights * (1 - good)).times(1 - self.alpha)
        return raised, lowered, mean(kl, weights).times(self.beta)


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """Policy gradient with the value as baseline; advantages come divided by their running deviation."""

    entropy: float = 3e-3  # weight of the entropy bonus
    beta: float = 0.0  # weight of the KL divergence from the prior

    def terms(self, log_prob: Array, advantages: Array, kl: Array, entropy: Array, weights: Array) -> tuple[Mean, ...]:
        """Return the means whose sum is minimised; see ``PMPO.terms``."""
        gain = mean(jax.lax.stop_gradient(advantages) * log_prob, weights)
        return gain.times(-1), mean(entropy, weights).times(-self.entropy), mean(kl, weights).times(self.beta)
