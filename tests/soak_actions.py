"""Worlds pushed by vectors are learned: the true push explains the next frame better than another one's."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from reverie.data.arrays import ArrayDataset
from reverie.data.loader import clips
from reverie.data.sources.square import SIDE, SquareConfig, X, Y
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.tokenizers.mae import MAEConfig
from reverie.nn.transformer import TransformerConfig
from reverie.training.checkpoint import load
from reverie.training.engine import Run, fit
from reverie.training.objectives import DynamicsObjective, TokenizerObjective
from reverie.training.optim import OptimConfig

TILE = TransformerConfig(width=32, depth=1, heads=1, hidden=64, space=False, time_every=0)
NOW = TransformerConfig(width=48, depth=2, heads=2, hidden=96, time_every=2, window=2)
QUIET = {"report_every": 0, "save_every": 0, "log_every": 50}


def white_on_black(source: SquareConfig) -> ArrayDataset:
    """The bouncing square without its colours, which would take minutes to learn and say nothing about pushes."""
    episodes = list(source.episodes())
    for episode in episodes:
        for frame, state in zip(episode.frames, episode.arrays()["states"], strict=True):
            frame[:] = 0
            frame[state[Y] : state[Y] + state[SIDE], state[X] : state[X] + state[SIDE]] = 255
    return ArrayDataset.from_episodes(source.spec(), episodes)


@pytest.mark.soak
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("kind", ["binary", "continuous", "multi"])
def test_the_push_that_was_taken_explains_the_next_frame(kind, tmp_path):
    source = SquareConfig(count=256, frames=17, actions=kind)
    data = white_on_black(source)
    adam = OptimConfig(rate=6e-3, warmup=20, decay=0.3, floor=0.02)
    see = TokenizerObjective(tokenizer=MAEConfig(patch=4, width=8, encoder=TILE, decoder=TILE, mask_max=0.0))
    run = Run(objective=see, batch=16, length=2, steps=150, optimizer=adam, **QUIET)
    fit(run, tmp_path / "tokenizer", dataset=data, progress=False)
    act = DynamicsObjective(dynamics=DiffusionConfig(transformer=NOW, changed_weight=5.0, passes=4), context=1)
    run = Run(objective=act, batch=16, length=2, steps=400, optimizer=replace(adam, kind="muon", rate=4e-3), **QUIET)
    fit(run, tmp_path / "dynamics", dataset=data, progress=False)

    world = load(tmp_path / "dynamics")
    found = clips(white_on_black(replace(source, seed=1, count=16)), length=2, count=64, seed=0)
    latents = jax.jit(world.encode)(found["frames"])
    error = jax.jit(lambda actions: world.dynamics.report(latents, actions, jax.random.key(0))["error_changed"])
    true, shuffled = (float(error(np.roll(found["actions"], by, axis=0))) for by in (0, 7))
    print(f"{kind}: {true:.3f} with the true actions, {shuffled:.3f} with shuffled ones")
    assert shuffled > 1.25 * true
