"""The short path through the whole package, run on every supported Python and in both of flax's modes."""

import numpy as np
import pytest

import reverie
from reverie.data.sources.square import SquareConfig
from reverie.data.store import write_store
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.training.engine import Run, fit
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective

NET = TransformerConfig(width=16, depth=1, heads=2, window=4)
STAGES = {
    "tokenizer": TokenizerObjective(
        tokenizer=VQVAEConfig(patch=8, encoder=NET, decoder=NET, quantiser=VQConfig(codes=32, width=8))
    ),
    "lam": LatentActionObjective(lam=TokenLAMConfig(actions=4, encoder=NET, decoder=NET)),
    "dynamics": DynamicsObjective(dynamics=MaskGITConfig(transformer=NET, passes=2), lam="../lam", context=4),
}


@pytest.mark.smoke
def test_from_pixels_to_a_played_frame(tmp_path):
    world = tmp_path / "world"
    source = SquareConfig(count=12, frames=12)
    write_store(world / "data", source.spec(), source.episodes())
    reports = {"dynamics": 2}  # a report is one more program
    for stage, objective in STAGES.items():
        fit(
            Run(objective=objective, batch=8, length=6, steps=2, report_every=reports.get(stage, 0), report_clips=2),
            world / stage,
            progress=False,
        )

    frames = next(iter(source.episodes())).frames[:3]
    pictures, model = [], reverie.load(world)
    for _ in range(2):  # the same seed gives the same frames
        session = reverie.Session(model, seed=1)
        session.reset(frames, None)
        pictures.append(np.stack([session.step(action) for action in (0, 3, 1, 2, 0, 0)]))
    assert pictures[0].shape == (6, *source.spec().frame)
    assert pictures[0].dtype == np.uint8
    assert np.array_equal(*pictures)
