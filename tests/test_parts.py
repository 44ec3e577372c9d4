"""A batch in parts, on any number of devices, trains the same model: losses, weights and statistics.

Everything that is trained is here in its smallest form. Float32 adds up in another order, and no more may differ.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.tiny import ACTIONS, FRAME, SMALL, eyes, frames, tiny, tokenizer

from reverie.actions import START, ActionSpace
from reverie.data.episode import Spec
from reverie.models import dynamics, lams, tokenizers
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.batch import Loss, Mean, Rows, draw_rows, gradient, mean, row_keys
from reverie.nn.quantise import FSQConfig, VQConfig
from reverie.training import flops, sharding
from reverie.training.blueprint import Blueprint
from reverie.training.engine import Pace, Run, TrainState, train_step
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig
from reverie.world import WorldConfig, WorldModel

BATCH, T, STEPS = 8, 4, 3
NET = dataclasses.replace(SMALL, depth=1)
EYES = tiny(VQVAEConfig(), NET)
# Steps large enough for a wrong gradient to show, small enough for float32 not to.
OPTIMIZER = OptimConfig(rate=1e-3, warmup=0, eps=1e-3)


@dataclasses.dataclass(frozen=True)
class World(DynamicsObjective):
    """Dynamics over a tokenizer that was never trained, so that no folder is needed."""

    def init(self, rngs, spec, folder):
        lam = self._lam(rngs, spec, folder)
        actions = ActionSpace("latent", 3 if lam is None else lam.codes)
        own = self.dynamics.fitted(eyes(type(self.dynamics)), actions)
        return WorldModel(
            WorldConfig(frame=FRAME, actions=actions, context=4), eyes(type(self.dynamics)), lam, own.make(rngs)
        )


@dataclasses.dataclass(frozen=True)
class Lam(LatentActionObjective):
    """A latent action model beside such a tokenizer."""

    def init(self, rngs, spec, folder):
        return self.lam.fitted(FRAME, tokenizer()).make(rngs)


def kinds():
    """Everything that is trained, by name."""
    made: dict[str, Any] = {
        f"tokenizer {n}": TokenizerObjective(tokenizer=tiny(c(), NET)) for n, c in tokenizers.families().items()
    }
    restless = VQConfig(codes=32, width=4, restart_after=0, rate_penalty=0.01)  # every idle code restarts in every step
    vq = dataclasses.replace(EYES, quantiser=restless, motion_weight=3.0)
    made["tokenizer of motion whose codes restart"] = TokenizerObjective(tokenizer=vq)
    made["tokenizer of FSQ"] = TokenizerObjective(
        tokenizer=dataclasses.replace(EYES, quantiser=FSQConfig(levels=(4, 3)))
    )
    for name, config in lams.families().items():
        reads = "../tokenizer" if config is TokenLAMConfig else ""
        soon = (
            {"continuous_share": 0.2} if config is TokenLAMConfig else {}
        )  # the first step without codes, the last with them
        small = dataclasses.replace(tiny(config(), NET), **soon)
        made[f"lam {name}"] = Lam(lam=small, tokenizer=reads, frozen=("tokenizer",) if reads else ())
    for name, config in dynamics.families().items():
        weighted = tiny(dataclasses.replace(config(), changed_weight=2.0), NET)
        made[f"dynamics {name}"] = World(dynamics=weighted, frozen=("tokenizer", "lam"))
    guess = tiny(MaskGITConfig(changed_weight=2.0), NET)
    made["dynamics and lam together"] = World(dynamics=guess, lam=tiny(PixelLAMConfig(), NET), frozen=("tokenizer",))
    paper = {"ema_teacher": 0.9, "image_share": 0.3, "short_length": 2, "long_share": 0.3, "bootstrap": 0.7}
    made["dynamics taught by an average"] = World(
        dynamics=dataclasses.replace(tiny(ShortcutConfig(changed_weight=2.0), NET), **paper)
    )
    return made


KINDS = kinds()
# Each of these is also in a kind that has more to it, or keeps no statistics: contracts/ has its loss and gradients on
# four devices. tests/soak_parts.py tries all.
WITHIN = {"tokenizer vqvae", "lam pixels", "dynamics maskgit", "dynamics shortcut"}
WITHIN |= {"tokenizer of FSQ", "tokenizer mae", "dynamics causal", "dynamics diffusion"}


def batch(objective):
    """Clips in which something moves, and what a step of ``objective`` reads of them."""
    x = frames(BATCH, T).copy()
    x[:, 1:, :4] = x[:, :-1, :4]  # half of each picture stands still for one frame
    rng = np.random.default_rng(1)
    actions = rng.integers(0, 3, (BATCH, T)).astype(np.int32)
    actions[:, 0] = START
    if isinstance(objective, Lam) and objective.tokenizer:
        return {"latents": np.asarray(jax.jit(tokenizer().encode)(x))}
    if isinstance(objective, World):
        latents = np.asarray(jax.jit(eyes(type(objective.dynamics)).encode)(x))
        return {"latents": latents, "actions": actions, "frames": x}
    return {"frames": x}


@functools.cache
def started(kind):
    """Return the blueprint of a kind, and its weights at the start, on the host."""
    blueprint = Blueprint(KINDS[kind], Spec(FRAME, ACTIONS, 7.0, "noise"), 0, Path())
    one = sharding.everywhere(sharding.make_mesh("data", jax.devices()[:1]))
    return blueprint, jax.device_get(blueprint.build(lambda *_: one)), jax.device_get(batch(KINDS[kind]))


def trained(kind, accumulate=1, devices=1):
    """Return what a few steps logged, the state after them, and the FLOPs of a step."""
    objective, (blueprint, weights, rows) = KINDS[kind], started(kind)
    run = Run(objective=objective, batch=BATCH, length=T, steps=STEPS, accumulate=accumulate, optimizer=OPTIMIZER)
    mesh = sharding.make_mesh("data", jax.devices()[:devices])
    weights = sharding.put(weights, sharding.everywhere(mesh))
    params, rest, frozen = ({n: weights[n] for n in blueprint.parts[part]} for part in blueprint.parts)
    tx, zero = OPTIMIZER.make(), sharding.put(np.int32(0), sharding.everywhere(mesh))
    state = TrainState(zero, params, rest, {}, jax.jit(tx.init, out_shardings=sharding.everywhere(mesh))(params), zero)
    rows = sharding.put_batch(mesh, rows)
    step, logged = None, []
    for n in range(STEPS):
        inputs = (state, frozen, rows, Pace(np.float32(1e-3), np.float32(n / STEPS)))
        if step is None:
            made = functools.partial(train_step, run, blueprint, tx)
            traced = jax.jit(made, out_shardings=sharding.everywhere(mesh)).trace(*inputs)
            step = traced.lower().compile()
        state, metrics = step(*inputs)
        logged.append({name: float(value) for name, value in metrics.items()})
    after = {name: np.asarray(leaf) for name, leaf in (state.params | state.rest).items()}
    return logged, after, flops.count(traced.jaxpr)


whole = functools.cache(trained)


def assert_same(one, other):
    for step, (a, b) in enumerate(zip(one[0], other[0], strict=True)):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-5, rtol=1e-5, err_msg=f"{name} of step {step}")
    for name, leaf in one[1].items():
        np.testing.assert_allclose(leaf, other[1][name], atol=1e-5, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(one[2], other[2], rtol=1e-6, err_msg="parts do more work than the whole")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHIN])
def test_parts_on_several_devices_train_the_model_that_one_batch_does(kind):
    """Two parts on four devices: each part's rows are one on each device. tests/soak_parts.py has all other cuts."""
    one = whole(kind)
    assert_same(one, trained(kind, accumulate=2, devices=4))
    _, start, _ = started(kind)
    assert any(not np.array_equal(leaf, one[1][name]) for name, leaf in start.items() if name in one[1])


def noisy(parts):
    """What noise the rows of a batch were given, in their order, and the loss and gradient that came of it."""

    def loss(weight, rows):
        x, keys = rows
        drawn = draw_rows(jax.random.normal, keys, (3,))
        return Loss((mean(jnp.square(drawn * weight - x[:, None]), jnp.abs(x[:, None])),), {}, Rows(drawn))

    @jax.jit
    def step(weight, x):
        grad, found = gradient(loss, weight, (x, row_keys(jax.random.key(0), 8)), parts)
        return found.notes.array, found.value, grad

    return step(jnp.float32(2), jnp.arange(8, dtype=jnp.float32))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_every_row_of_every_part_has_its_own_randomness_and_weight(parts):
    drawn, *numbers = noisy(parts)
    assert len(np.unique(drawn)) == drawn.size == 24
    np.testing.assert_array_equal(drawn, noisy(1)[0])
    np.testing.assert_allclose(numbers, noisy(1)[1:], rtol=1e-6)


def test_a_step_gives_each_part_its_own_randomness():
    """Planted: were parts given the same keys, a batch of one clip in copies would be as good as a part of it."""
    kind = "tokenizer mae"
    blueprint, weights, rows = started(kind)
    rows = jax.tree.map(lambda x: np.repeat(x[:1], BATCH, axis=0), rows)
    model: Any = blueprint.merge(jax.tree.map(jnp.asarray, weights))
    hidden = jax.jit(lambda key: model.loss(rows["frames"], row_keys(key, BATCH)).value)
    assert hidden(jax.random.key(0)) != hidden(jax.random.key(1)), "the model draws nothing"
    tx, zero = OPTIMIZER.make(), jnp.int32(0)
    params = {name: jnp.asarray(weights[name]) for name in blueprint.parts["params"]}
    state = TrainState(zero, params, {}, {}, tx.init(params), zero)
    losses = []
    for accumulate in (1, 4):
        run = Run(objective=KINDS[kind], batch=BATCH, length=T, accumulate=accumulate, optimizer=OPTIMIZER)
        step = jax.jit(functools.partial(train_step, run, blueprint, tx))
        losses.append(step(state, {}, rows, Pace(np.float32(0), np.float32(0)))[1]["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_mean_of_nothing_is_nothing():
    assert Mean(jnp.zeros(()), jnp.zeros(())).value == 0
