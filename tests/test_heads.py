"""Heads against hand computation: two-hot numbers, distributions over actions of every kind, returns, PMPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from reverie.actions import ActionSpace
from reverie.data.sources.square import SPACES
from reverie.errors import ReverieError
from reverie.nn.embed import random_actions
from reverie.nn.heads import ActionDistribution, Head, HeadConfig, TwoHot, bernoulli_nll
from reverie.nn.returns import PMPO, Reinforce, alive, lambda_returns

SMALL = TwoHot(bins=5, reach=2.0)
KINDS = {kind: SPACES[kind] for kind in ("discrete", "binary", "continuous")}
KINDS["ragged"] = ActionSpace("multi", 2, sizes=(2, 5))


def outputs(space, rows=1, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 1.5, (rows, ActionDistribution(space).parameters)), jnp.float32)


def test_bins_are_antisymmetric_and_equal_logits_are_exactly_zero():
    for config in (SMALL, TwoHot(), TwoHot(bins=63, reach=3.2)):
        np.testing.assert_array_equal(config.values, -config.values[::-1])
        assert config.values[config.bins // 2] == 0 and (np.diff(config.values) > 0).all()
        assert float(config.mean(jnp.zeros(config.bins))) == 0
    np.testing.assert_allclose(TwoHot().values[-1], np.expm1(20), rtol=1e-6)
    with pytest.raises(ValueError, match="odd"):
        TwoHot(bins=4)


def test_two_hot_weights_interpolate_in_real_space():
    """By hand: bins -e^2+1, -e+1, 0, e-1, e^2-1; 1.0 is 1 / (e - 1) of the way from bin 2 to bin 3."""
    share = 1 / (np.e - 1)
    logits = jnp.asarray([0.3, -1.0, 0.2, 0.9, 0.0])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    cases = {1.0: (1 - share) * log_p[2] + share * log_p[3], 0.0: log_p[2], 99.0: log_p[4], -99.0: log_p[0]}
    for number, expected in cases.items():
        np.testing.assert_allclose(SMALL.nll(logits, jnp.float32(number)), -expected, atol=1e-5)
    grad = jax.grad(lambda logits: SMALL.nll(logits, jnp.float32(1.0)))(logits)
    np.testing.assert_allclose(grad, np.exp(log_p) - [0, 0, 1 - share, share, 0], atol=1e-5)
    np.testing.assert_allclose(SMALL.mean(logits), np.exp(log_p) @ SMALL.values, atol=1e-5)


def test_the_mean_of_noisy_numbers_is_learned_without_bias():
    """Where no gradient is left, the prediction is the mean of the targets, not of their logarithms."""
    targets = jnp.asarray([0.0, 0.0, 0.0, 6.0])
    logits = jnp.zeros(SMALL.bins)
    slope = jax.jit(jax.grad(lambda logits: jnp.mean(SMALL.nll(jnp.tile(logits, (4, 1)), targets))))
    for _ in range(400):
        logits = logits - 2 * slope(logits)
    np.testing.assert_allclose(SMALL.mean(logits), 1.5, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distribution_is_fitted_to_actions(kind):
    """It has the moments of many samples; of a single action, that is its mode, and others stay possible."""
    space = ActionDistribution(KINDS[kind])
    given = outputs(KINDS[kind], rows=3)

    @jax.jit
    def work(given):
        drawn = space.sample(jnp.broadcast_to(given, (1000, *given.shape)), jax.random.key(0))
        found, one = space.fitted(drawn), space.fitted(drawn[:1])
        again = space.sample(jnp.broadcast_to(found, (1000, *found.shape)), jax.random.key(1))
        return drawn.astype(jnp.float32), again.astype(jnp.float32), space.mode(one), space.log_prob(one, drawn[1])

    drawn, again, mode, other = work(given)
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(moment(again, axis=0), moment(drawn, axis=0), atol=0.12)
    np.testing.assert_allclose(mode, drawn[0], atol=0.01)
    assert np.isfinite(other).all()


def test_events_by_hand():
    logits, events = jnp.asarray([0.0, 2.0, -1.0]), jnp.asarray([True, False, True])
    p = 1 / (1 + np.exp(-np.asarray(logits)))
    np.testing.assert_allclose(bernoulli_nll(logits, events), -np.log(np.where(events, p, 1 - p)), atol=1e-5)


@pytest.mark.parametrize("queries", [0, 2])
def test_a_head_starts_at_zero_and_keeps_tokens_apart(queries):
    head = Head(HeadConfig(width=8, queries=queries), (4, 6), (2, 3), rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(0), (5, 4, 6))
    assert head(h).shape == (5, 2, 3) and not head(h).any()
    head.out.kernel[...] = jax.random.normal(jax.random.key(1), head.out.kernel.shape)
    bare = jnp.tile(jnp.mean(h, axis=1, keepdims=True), (1, 4, 1))
    assert jnp.abs(head(h) - head(bare)).max() > 0.1, "a mean over tokens would lose what is where"


def test_convolutions_see_the_tokens_around_and_know_no_place():
    """Through attention alone, a pattern moved over the grid reads the same; a mirrored one does not."""
    head = Head(HeadConfig(width=8, convolutions=1, channels=4, queries=2), (42, 6), (3,), 1, (6, 7), rngs=nnx.Rngs(0))
    head.out.kernel[...] = jax.random.normal(jax.random.key(1), head.out.kernel.shape)
    pattern = jax.random.normal(jax.random.key(0), (2, 2, 6))
    here, there = (jnp.zeros((6, 7, 6)).at[r : r + 2, c : c + 2].set(pattern) for r, c in ((1, 1), (3, 4)))
    read = head(jnp.stack([here, there]).reshape(2, 42, 6), task=1)
    np.testing.assert_allclose(*read, atol=1e-5)
    other = head(here[:, ::-1].reshape(42, 6), task=1)
    assert jnp.abs(read[0] - other).max() > 1e-3
    flat = Head(HeadConfig(width=8, convolutions=1, channels=4), (42, 6), (3,), grid=(6, 7), rngs=nnx.Rngs(0))
    random = jax.random.normal(jax.random.key(2), (42, 6))
    slope = jax.jacobian(lambda h: flat._convolved(h)[24])(random)  # of row 3, column 3
    seen = jnp.abs(slope).max((0, 2)).reshape(6, 7) > 0
    assert seen[2:5, 2:5].all() and seen.sum() == 9
    with pytest.raises(ReverieError, match="let head.convolutions be 0"):
        Head(HeadConfig(convolutions=1), (4, 6), (3,), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_policy_is_uniform_and_takes_actions_of_its_space(kind):
    space, zeros = KINDS[kind], jnp.zeros((64, ActionDistribution(KINDS[kind]).parameters))
    policy, key = ActionDistribution(space), jax.random.key(0)
    for actions in (policy.sample(zeros, key), policy.mode(zeros)):
        assert actions.shape == (64, *space.shape) and actions.dtype == space.dtype
        assert space.is_action(np.asarray(actions)).all()
    if kind != "continuous":
        some = random_actions(space, key, (64,))
        np.testing.assert_allclose(policy.log_prob(zeros, some), -np.log(space.count), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "continuous"])
def test_probabilities_entropy_and_divergence_of_counted_actions(kind):
    """Against the sum over all actions; and samples come as often as they should."""
    space = KINDS[kind]
    policy, every = ActionDistribution(space), jnp.asarray(space.nth(range(space.count)))
    p, q = (outputs(space, seed=seed) for seed in (0, 1))
    log_p, log_q = (np.asarray(policy.log_prob(jnp.tile(each, (space.count, 1)), every)) for each in (p, q))
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-5)
    np.testing.assert_allclose(policy.entropy(p), [-(np.exp(log_p) * log_p).sum()], atol=1e-5)
    np.testing.assert_allclose(policy.kl(p, q), [(np.exp(log_p) * (log_p - log_q)).sum()], atol=1e-5)
    assert (policy.mode(p)[0] == every[int(log_p.argmax())]).all()
    drawn = np.asarray(policy.sample(jnp.tile(p, (4000, 1)), jax.random.key(0)))
    for action, known in zip(np.asarray(every), np.exp(log_p), strict=True):
        share = (drawn.reshape(4000, -1) == action).all(1).mean()
        assert abs(share - known) < 4 * np.sqrt(known / 4000) + 1e-3


def test_continuous_actions_have_the_density_of_the_action_really_taken():
    """Against scipy, and entropy and divergence against the mean over samples; bounds are never left, codes finite."""
    space = ActionSpace("continuous", 2, low=(-1.0, 0.0), high=(1.0, 5.0))
    policy, (p, q) = ActionDistribution(space), (outputs(space, 3000, 0)[:1], outputs(space, 3000, 1)[:1])
    many = jnp.tile(p, (3000, 1))
    drawn = policy.sample(many, jax.random.key(0))
    a, b = np.split(1 + np.log1p(np.exp(np.asarray(p[0], np.float64))), 2)
    shares = (np.asarray(drawn) - space.low) / (np.array(space.high) - space.low)
    expected = scipy.stats.beta.logpdf(np.clip(shares, 1e-3, 1 - 1e-3), a, b).sum(1) - np.log(2 * 5)
    found = policy.log_prob(many, drawn)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(policy.entropy(p), [scipy.stats.beta(a, b).entropy().sum() + np.log(10)], atol=1e-4)
    others = policy.log_prob(jnp.tile(q, (3000, 1)), drawn)
    np.testing.assert_allclose(policy.kl(p, q), [float((found - others).mean())], rtol=0.1)
    at_bounds = jnp.asarray([space.low, space.high, space.start(), space.unlabelled()], jnp.float32)
    assert jnp.isfinite(policy.log_prob(many[:4], at_bounds)).all()
    best = policy.mode(p)
    assert (policy.log_prob(many[:50], drawn[:50]) <= policy.log_prob(p, best) + 1e-4).all()


def test_an_agent_needs_actions():
    with pytest.raises(ReverieError, match="none"):
        ActionDistribution(ActionSpace())


# -- returns and losses ----------------------------------------------------------------------------------------------


def test_lambda_returns_by_hand():
    """Three steps; the second rollout ends with its second step, so what comes after it counts for nothing."""
    rewards = jnp.asarray([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    continues = jnp.asarray([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    values = jnp.asarray([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0], [40.0, 40.0]])
    gamma, lam = 0.9, 0.8
    r2 = 4 + gamma * 40  # (1 - lam) v_3 + lam R_3, where R_3 = v_3
    r1 = 2 + gamma * (0.2 * 30 + 0.8 * r2)
    r0 = 1 + gamma * (0.2 * 20 + 0.8 * r1)
    ended = 1 + gamma * (0.2 * 20 + 0.8 * 2)
    expected = [[r0, ended], [r1, 2.0], [r2, r2]]
    np.testing.assert_allclose(lambda_returns(rewards, continues, values, gamma, lam), expected, rtol=1e-6)
    np.testing.assert_allclose(alive(continues), [[1, 1], [1, 1], [1, 0]])


def learned(learner, advantages, weights, kl=None):
    """Return the gradient of a learner's loss in the log-probabilities of the actions."""

    def loss(log_prob):
        terms = learner.terms(log_prob, advantages, jnp.zeros_like(log_prob) if kl is None else kl * log_prob,
                              log_prob, weights)  # fmt: skip
        return sum(term.value for term in terms)

    return np.asarray(jax.grad(loss)(jnp.zeros_like(advantages)))


def test_pmpo_raises_good_actions_and_lowers_bad_ones_by_hand():
    """Only signs count; each set is averaged by itself; a step after the end counts in neither."""
    advantages = jnp.asarray([[3.0, -0.1], [0.0, -7.0], [5.0, 2.0]])
    weights = jnp.asarray([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    expected = [[-0.5 / 3, 0.5 / 2], [-0.5 / 3, 0.5 / 2], [-0.5 / 3, 0.0]]
    np.testing.assert_allclose(learned(PMPO(), advantages, weights), expected, atol=1e-6)
    held = np.array(expected) + 0.3 * np.asarray(weights) / 5
    np.testing.assert_allclose(learned(PMPO(), advantages, weights, kl=1.0), held, atol=1e-6)
    one_sided = learned(PMPO(alpha=0.75), jnp.ones((3, 2)), jnp.ones((3, 2)))
    np.testing.assert_allclose(one_sided, np.full((3, 2), -0.75 / 6), atol=1e-6)


def test_reinforce_follows_the_size_of_advantages_by_hand():
    advantages, weights = jnp.asarray([[3.0, -1.0], [0.5, -7.0]]), jnp.asarray([[1.0, 1.0], [1.0, 0.0]])
    found = learned(Reinforce(entropy=0.1), advantages, weights)
    np.testing.assert_allclose(found, (-np.asarray(advantages) - 0.1) * np.asarray(weights) / 3, atol=1e-6)
