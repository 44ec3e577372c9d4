"""The loss over codes in parts: the numbers of the whole, without the logits of all codes in memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import SMALL, clip, dynamics, lam
from flax import nnx

from reverie.errors import ReverieError
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.nn.batch import row_keys
from reverie.nn.codes import AT_ONCE, nll, scores
from reverie.nn.linear import Linear

KEY = jax.random.key(0)


def problem(number, width=6, tokens=10, **options):
    """Return a head with a bias, features, and codes that include the first and the last."""
    head = Linear(width, number, rngs=nnx.Rngs(1), **options)
    if head.bias is not None:
        head.bias[...] = jax.random.normal(KEY, (number,))
    codes = jax.random.randint(KEY, (2, tokens), 0, number).at[0, :2].set(jnp.array([0, number - 1]))
    return head, 3 * jax.random.normal(jax.random.key(1), (2, tokens, width)), codes


def weighted(score, head, x):
    """Return the value of a weighted sum of nll, its gradients in weights and features, and the counts beside it."""
    graph, state = nnx.split(head)

    def total(state, x):
        nats, ahead = score(nnx.merge(graph, state), x)
        return jnp.sum(nats * jnp.arange(nats.size, dtype=jnp.float32).reshape(nats.shape)) / nats.size, ahead

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(state, x)


@pytest.mark.parametrize(
    ("number", "at_once", "best", "options"),
    [(37, 8, 16, {}), (64, 16, 1, {}), (5, 1, 1, {}), (40, 39, 16, {"use_bias": False})],
)
def test_parts_give_the_loss_the_gradients_and_the_ranks_of_the_whole(number, at_once, best, options):
    head, x, codes = problem(number, **options)

    def whole(head, x):
        logits = head(x)
        own = jnp.take_along_axis(logits, codes[..., None], axis=-1)
        return nll(logits, codes), jnp.sum(logits > own, axis=-1)

    expected = weighted(whole, head, x)
    found = weighted(lambda head, x: scores(head, x, codes, at_once, best), head, x)
    np.testing.assert_array_equal(np.minimum(found[0][1], best), np.minimum(expected[0][1], best))
    assert len(np.unique(expected[0][1])) > 2
    for ours, theirs in zip(
        jax.tree.leaves((found[0][0], found[1])), jax.tree.leaves((expected[0][0], expected[1])), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_small_vocabulary_is_not_divided_and_keeps_its_bits():
    head, x, codes = problem(24)
    found = weighted(lambda head, x: scores(head, x, codes), head, x)
    np.testing.assert_array_equal(found[0][0], weighted(lambda head, x: (nll(head(x), codes), codes), head, x)[0][0])
    assert "scan" not in str(jax.make_jaxpr(lambda x: scores(head, x, codes))(x)) and AT_ONCE >= 24


def test_no_code_is_right_where_logits_are_no_numbers():
    head, x, codes = problem(24)
    whole, parts = jax.jit(lambda x: [scores(head, x, codes, at_once)[1] for at_once in (24, 7)])(x * jnp.nan)
    assert np.all(np.asarray(whole) > 0) and np.all(np.asarray(parts) > 0)


def test_parts_need_a_fraction_of_the_memory():
    """Of 4096 codes for 640 tokens a part of 256 is held: less than a third of 10 MB of logits, in the gradient too."""
    head, x, codes = problem(4096, tokens=320)
    graph, state = nnx.split(head)

    def temporaries(at_once):
        def loss(state, x):
            return jnp.mean(scores(nnx.merge(graph, state), x, codes, at_once)[0])

        program: Any = jax.jit(jax.grad(loss, (0, 1))).lower(state, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) > 4096 * 640 * 4 > 3 * temporaries(256)


@pytest.mark.parametrize("family", [MaskGITConfig, CausalConfig, "lam"])
def test_models_compute_their_losses_and_reports_in_parts(family):
    """No array of a traced loss and its gradient, or of a report, has the logits of all 32 codes of a clip."""
    net = dataclasses.replace(SMALL, hidden=24)
    model = lam(transformer=net) if family == "lam" else dynamics(family, transformer=net)
    latents, actions = clip()
    keys = row_keys(KEY, 2)

    def traced(at_once):
        model.config = dataclasses.replace(model.config, codes_at_once=at_once)
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            whole = nnx.merge(graph, params, rest)
            given = (latents, keys, jnp.float32(0)) if family == "lam" else (latents, actions, keys)
            return whole.loss(*given).value

        programs = [jax.make_jaxpr(jax.grad(loss))(params)]
        if family != "lam":
            programs.append(jax.make_jaxpr(lambda: model.report(latents, actions, KEY))())
        return ["f32[2,7,4,32]" in str(program) for program in programs]

    assert all(traced(32)) and not any(traced(5))


def test_no_codes_at_once_are_refused():
    head, x, codes = problem(24)
    with pytest.raises(ReverieError, match="codes_at_once 0 is not a number of codes: it must be 1 or more"):
        scores(head, x, codes, 0)
