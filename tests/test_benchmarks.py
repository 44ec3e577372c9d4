"""The benchmarks run, and the two sides of each compute the same thing. How long they take is not a test's business."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from contracts import tiny
from flax import nnx
from playground import tiny_world

from benchmarks import dispatch, imagination, loader, passes, play, players, tokens, training
from benchmarks.timing import interleaved, ratio
from reverie.library import shipped
from reverie.models.agent import AgentConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.nn.batch import row_keys
from reverie.nn.heads import HeadConfig, TwoHot
from reverie.nn.transformer import TransformerConfig

TINY = training.Sizes(frame=(16, 16, 3), patch=8, width=16, hidden=32, depth=1, heads=2, codes=16, batch=2, length=4)
NET = TransformerConfig(width=16, depth=2, heads=2, window=3)


@pytest.fixture(autouse=True)
def optax_may_promote():
    """The predecessor's optimiser is plain optax, which mixes integers with floats on purpose."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def steps():
    """Training steps of the smallest size, compiled once for this file."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return training.sides(TINY)


def test_sides_take_turns_and_the_first_round_is_not_counted():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0, least=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}
    assert ratio(np.array([2.0, 30.0, 8.0]), np.array([1.0, 10.0, 1.0])) == 3.0  # each round within itself


@pytest.mark.parametrize("grid", [(2, 2), (3, 4)])
def test_a_frame_with_memory_is_the_frame_without(grid):
    config = replace(play.SMALL, codes=16, grid=grid, transformer=NET, passes=3)
    frames = {name: np.asarray(call()) for name, call in play.Sides(config, context=5).calls.items()}
    np.testing.assert_array_equal(frames["cached"], frames["uncached"])


def test_compiled_and_nnx_jit_compute_the_same():
    results = [np.asarray(call()) for call in dispatch.sides(dispatch.model(width=8, depth=1)).values()]
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_the_predecessors_step_and_ours_minimise_the_same_loss(steps):
    """Same weights, tokens, actions and masks: the loss is equal, and so is its gradient in the dynamics."""
    theirs, ours = steps["predecessor"], steps["hidden"]
    assert set(ours.state.params) < set(theirs.state.params)
    for name, weight in ours.state.params.items():
        np.testing.assert_array_equal(weight, theirs.state.params[name], err_msg=name)

    def gradient(side):
        keys = row_keys(jax.random.key(1), len(next(iter(side.batch.values()))))

        def loss(params):
            model = side.blueprint.merge(side.frozen, params, side.state.rest)
            return side.objective.loss(model, side.batch, keys, np.float32(0)).value

        return jax.jit(jax.value_and_grad(loss))(side.state.params)

    (their_loss, their_gradient), (our_loss, our_gradient) = gradient(theirs), gradient(ours)
    np.testing.assert_allclose(our_loss, their_loss, rtol=1e-5)
    for name, value in our_gradient.items():
        np.testing.assert_allclose(value, their_gradient[name], rtol=1e-3, atol=1e-6, err_msg=name)
    assert not any(np.asarray(value).any() for name, value in their_gradient.items() if name.startswith("tokenizer"))
    assert theirs.gflop() > ours.gflop()  # the action model's backward pass, the tokenizer and the painting are there


def test_an_update_that_recomputes_its_past_is_ours_which_does_not_wait_for_the_host(monkeypatch):
    """After more frames than the window: the same actions, rewards and returns, so the same loss."""
    monkeypatch.setattr(imagination, "SEGMENT", 2)
    heads = AgentConfig(head=HeadConfig(width=8, depth=1), ahead=1, rewards=TwoHot(bins=15), values=TwoHot(bins=15))
    cloned, again = (heads.make(tiny.world(ShortcutConfig), nnx.Rngs(0)) for _ in range(2))
    objective = imagination.Imagination(horizon=4, context=2, critic_steps=0)
    agent = objective.begun(cloned, again.policy, nnx.Rngs(1))
    for n, head in enumerate((agent.policy, agent.reward, agent.ends, agent.prior, agent.value)):
        head.out.kernel[...] = jax.random.normal(jax.random.key(n), head.out.kernel.shape)
    latents, actions = tiny.clip(2, 4, of=ShortcutConfig)
    batch = {"latents": latents, "actions": actions, "rewards": np.zeros((2, 4), np.float32)}
    graph, weights, rest = nnx.split(agent, nnx.Param, ...)

    def loss(weights, objective=objective):
        found = objective.loss(nnx.merge(graph, weights, rest), batch, row_keys(jax.random.key(0), 2), np.float32(0))
        return found.value, {name: each.value for name, each in found.metrics.items()}

    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(weights).compile()
    (ours, metrics), _ = program(weights)
    theirs, again = jax.jit(partial(loss, objective=imagination.Recomputed(**vars(objective))))(weights)
    assert metrics["kl"] > 0.01 and metrics["entropy"] > 0.1 and metrics["value_error"] > 0.01
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), (ours, metrics), (theirs, again))
    assert not imagination.waits_for_host(program.as_text())


def test_a_program_that_waits_for_the_host_is_noticed():
    def doubled(x):
        return 2 * jax.pure_callback(lambda x: x, x, x)

    assert imagination.waits_for_host(jax.jit(doubled).lower(np.float32(1)).compile().as_text())


def test_every_figure_has_a_name_a_value_and_a_unit(steps):
    small = replace(play.SMALL, codes=16, grid=(2, 2), transformer=NET, passes=2)
    figures = [
        *dispatch.measure(seconds=0, calls=1),
        *loader.measure(seconds=0, episodes=2, frames=6, batch=2, length=3),
        *tokens.measure(seconds=0, episodes=2, frames=6, batch=2, length=3),
        *training.figures(TINY, steps | {"int8": steps["hidden"]}, seconds=0, peak=16),
        *play.caching(small, 0, context=3, peak=16),
        *play.imagining("x", small, seconds=0, rows=2, length=2),
        *play.demo(frames=3),
        *players.playing("noise", tiny_world(), seconds=0.1, rounds=1),
    ]
    assert all(np.isfinite(side.metrics["loss"]) for side in steps.values())
    listed = {figure.name for figure in figures}
    for figure in figures:
        line = json.loads(json.dumps(figure.line()))
        assert set(line) == {"name", "value", "unit", "ratio_of", "config"} and line["value"] > 0
        assert figure.ratio_of is None or set(figure.ratio_of) <= listed


def test_the_knee_of_passes_is_the_fewest_that_cost_nothing():
    measured = json.loads((shipped()["platformer"] / "eval.json").read_text("utf8")) | {"passes": 8}
    row = passes.row(measured) | {"ms_per_frame": 1.0}
    assert row["psnr"] == pytest.approx(np.mean(measured["psnr"]), abs=1e-3) and row["lost"] == [0.0, 0.0]
    few, most = row | {"passes": 4, "psnr": row["psnr"] - 0.1}, row | {"passes": 16, "psnr": row["psnr"] + 0.05}
    assert passes.knee([row, few, most]) == 4
    assert passes.knee([row, few | {"lost": [0.1, 0.0]}, most]) == 8, "a session more was lost"
    assert passes.knee([row, few | {"psnr": row["psnr"] - 0.3}, most]) == 8, "too far below the best"
    assert passes.table([few, row]).count("\n") == 3 and "| 4 |" in passes.table([few, row])


def test_an_unknown_name_is_refused_with_those_there_are():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "speed"], capture_output=True, text=True)
    assert done.returncode == 2 and "dispatch, loader, tokens, training, play, players" in done.stderr
