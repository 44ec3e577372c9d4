"""The three stages of a world, trained for real: what each reads, what it leaves alone, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from contracts.tiny import ACTIONS, FRAME, SMALL, frames, state, tiny, tokenizer
from contracts.tiny import dynamics as tiny_dynamics
from contracts.tiny import lam as tiny_lam
from flax import nnx

from reverie.actions import START, ActionSpace
from reverie.data.arrays import ArrayDataset
from reverie.data.episode import Episode, Spec
from reverie.errors import ReverieError
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.batch import row_keys
from reverie.training import checkpoint
from reverie.training.checkpoint import load
from reverie.training.engine import Run, fit
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig
from reverie.world import WorldConfig, WorldModel

KEY = jax.random.key(0)
GLANCE = dataclasses.replace(SMALL, depth=1, space=False, time_every=0)  # each frame for itself
PAIR = dataclasses.replace(SMALL, depth=1, window=2)


def dataset(lengths=(70, 9, 12), seed=0):
    rng, x = np.random.default_rng(seed), frames(1, sum(lengths), seed)[0]
    episodes, at = [], 0
    for length in lengths:
        actions = rng.integers(0, ACTIONS.size, length).astype(np.int32)
        actions[0] = START
        none = np.zeros(length, np.float32)
        episodes.append(Episode(x[at : at + length], actions, none, none > 0))
        at += length
    return ArrayDataset.from_episodes(Spec(FRAME, ACTIONS, 7.0, "noise"), episodes)


DATA = dataset()


def run(objective, batch=4, steps=2):
    optimizer = OptimConfig(rate=1e-2, warmup=0, weight_decay=0.1)
    clocks = {"log_every": 1, "report_every": 0, "save_every": 0}
    return Run(objective=objective, batch=batch, length=6, steps=steps, optimizer=optimizer, **clocks)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with a tokenizer, a latent action model and dynamics over both, two steps old each."""
    folder = tmp_path_factory.mktemp("world")
    tok = TokenizerObjective(tokenizer=tiny(VQVAEConfig(), GLANCE))
    lam = LatentActionObjective(lam=tiny(TokenLAMConfig(), PAIR))
    dynamics = DynamicsObjective(dynamics=tiny(MaskGITConfig(), PAIR), context=4)
    fit(run(tok), folder / "tokenizer", dataset=DATA, progress=False)
    fit(run(lam), folder / "lam", dataset=DATA, progress=False)
    latent = dataclasses.replace(dynamics, lam="../lam")
    fit(run(latent), folder / "latent", dataset=DATA, progress=False)
    return folder


def same(a: nnx.Module, b: nnx.Module) -> bool:
    a, b = state(a), state(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_frozen_parts_are_those_that_were_loaded_and_are_not_saved_again(stages):
    world = load(stages / "latent")
    assert same(world.tokenizer, load(stages / "tokenizer")) and same(world.lam, load(stages / "lam"))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    _, found = checkpoint.restore(stages / "latent", lambda *_: device, ("weights", "ema", "optimizer"))
    saved = [name for part in found.values() for name in part]
    assert any("dynamics" in name for name in saved)
    assert not [name for name in saved if "tokenizer" in name or "lam" in name]


def test_a_world_knows_how_it_is_played(stages):
    world = load(stages / "latent")
    assert world.config == WorldConfig(frame=FRAME, actions=ActionSpace("latent", world.lam.codes), context=4, fps=7.0)
    assert world.dynamics.config.codes == world.tokenizer.codes and world.dynamics.config.grid == world.tokenizer.grid


def world_of(glance=GLANCE, lam=None):
    lam = tiny_lam(PixelLAMConfig, lam) if lam else None
    actions = ActionSpace("latent", lam.codes) if lam else ACTIONS
    return WorldModel(
        WorldConfig(frame=FRAME, actions=actions, context=4),
        tokenizer(transformer=glance),
        lam,
        tiny_dynamics(actions=actions),
    )


@pytest.mark.parametrize("lam", [None, GLANCE, PAIR], ids=["recorded", "lam of one frame", "lam of two"])
def test_what_a_step_reads_is_what_the_frozen_models_say_of_whole_episodes(tmp_path, lam):
    """The first episode is longer than what is encoded at once."""
    world = world_of(lam=lam)
    kept = DynamicsObjective(lam="../lam" if lam else None).prepare(world, DATA, tmp_path / "cache")
    assert set(kept.arrays) == {"latents", "actions"}
    real = DATA.read(0, 0, 70)
    window = kept.read(0, 0, 70)
    x, actions = real["frames"][None], real["actions"][None]
    np.testing.assert_array_equal(window["latents"], jax.jit(world.encode)(x)[0])
    np.testing.assert_array_equal(window["actions"], jax.jit(world.actions_of)(x, actions)[0])


def test_slips_hide_which_code_it_was_and_never_a_recorded_action(stages):
    """With noise in every code none matters; a clip keeps its first action; recorded actions get no noise."""
    world, recorded = load(stages / "latent"), load(stages / "latent")
    recorded.lam = None
    rng = np.random.default_rng(0)
    latents = rng.integers(0, world.tokenizer.codes, (4, 6, world.tokenizer.tokens)).astype(np.int32)
    begun, other = rng.integers(0, 2, (2, 4, 6)).astype(np.int32)
    begun[:, 0] = other[:, 0] = START

    def heard(world, action_noise):
        objective = DynamicsObjective(
            dynamics=tiny(MaskGITConfig(), PAIR), lam="../lam", context=4, action_noise=action_noise
        )
        loss = jax.jit(
            lambda actions: objective.loss(world, {"latents": latents, "actions": actions}, row_keys(KEY, 4), 0.0).value
        )
        return bool(loss(begun) != loss(other))

    assert [heard(world, action_noise) for action_noise in (0.0, 0.5, 1.0)] == [True, True, False]
    assert heard(recorded, 1.0)


def test_latent_actions_that_still_learn_are_not_kept(tmp_path):
    objective = DynamicsObjective(lam=tiny(PixelLAMConfig(), PAIR), frozen=("tokenizer",))
    kept = objective.prepare(world_of(lam=PAIR), DATA, tmp_path / "cache")
    assert set(kept.cache.arrays) == {"latents"}
    window = kept.read(0, 3, 6)
    np.testing.assert_array_equal(window["frames"], DATA.read(0, 3, 6)["frames"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer": "../lam"}, "is not a tokenizer: it holds TokenLAM"),
        ({"lam": tiny(PixelLAMConfig(), PAIR)}, "take 'lam' out of frozen"),
        ({"lam": "../lam", "frozen": ("tokenizer",)}, "a TokenLAM is trained before the dynamics"),
        ({"tokenizer": "../latent"}, "is not a tokenizer: it holds WorldModel"),
        ({"lam": "../tokenizer"}, "is not a latent action model: it holds VQVAE"),
        ({"tokenizer": "../nowhere"}, "nowhere"),
        ({"frozen": ("tokenizer", "decoder")}, "'decoder' cannot be frozen"),
    ],
)
def test_stages_that_do_not_fit_are_one_line_and_leave_nothing(stages, changes, says):
    objective = dataclasses.replace(DynamicsObjective(dynamics=tiny(MaskGITConfig(), PAIR)), **changes)
    with pytest.raises(ReverieError, match=says) as error:
        fit(run(objective, batch=8), stages / "bad", dataset=DATA, progress=False)
    assert "\n" not in str(error.value) and not (stages / "bad").exists()


def test_another_size_of_frames_is_refused(stages):
    spec = dataclasses.replace(DATA.spec, frame=(16, 8, 3))
    with pytest.raises(
        ReverieError, match=r"the tokenizer was trained on frames \(8, 8, 3\), the data has \(16, 8, 3\)"
    ):
        DynamicsObjective(dynamics=tiny(MaskGITConfig(), PAIR)).init(nnx.Rngs(0), spec, stages / "x")
    with pytest.raises(ReverieError, match="cannot be cut into 4x4 patches"):
        TokenizerObjective(tokenizer=tiny(VQVAEConfig())).init(
            nnx.Rngs(0), dataclasses.replace(spec, frame=(8, 9, 3)), stages
        )
