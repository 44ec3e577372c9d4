"""A recipe for anybody's data, sized for the time there is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reverie.data.episode import Spec
from reverie.data.splits import labelled
from reverie.data.store import open_dataset
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.presets.recipe import Recipe, stage
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig

ENOUGH = 0.5  # of the recordings must have actions for the model to learn from those
SAMPLED = 64  # episodes of a store that are looked at
AUGMENT_BELOW = 6000  # frames: 4400 overfit in six minutes; at 8700 augmentation costs more than it gives (docs/log.md)


def fitting(spec: Spec, source: Any, minutes: float) -> Recipe:
    """Return a recipe for any data, sized for ``minutes`` on two CPU cores (steps follow from the machine itself).

    Frames are looked at one by one and in coarse patches: with so little time, every token must pay. Recorded actions
    are used where at least half of the recordings have some; else actions are inferred from the pictures of all.
    """
    width = 96 if minutes < 20 else 128 if minutes < 120 else 256
    patch = next(
        (p for p in ((8, 4, 2) if minutes < 120 else (4, 2)) if not spec.frame[0] % p and not spec.frame[1] % p), 1
    )
    look = TransformerConfig(width=width, depth=2, heads=width // 32, time_every=0)
    # A window shorter than the clips: else every frame in training sees its clip's beginning, and is lost without it.
    net = TransformerConfig(width=width, depth=4, heads=width // 32, time_every=2, window=4)
    optimizer = OptimConfig(kind="muon", rate=3e-3, warmup=100, decay=0.3, floor=0.02, weight_decay=1e-3)
    codebook = VQConfig(codes=512, width=16, rate_penalty=0.01)
    tokenizer = VQVAEConfig(patch=patch, encoder=look, decoder=look, quantiser=codebook, motion_weight=8.0)
    lam = latent_actions(tokenizer)
    maskgit = MaskGITConfig(
        transformer=net,
        context="hidden",
        previous=True,
        changed_weight=4.0,
        passes=8,
        temperature=0.5,
        schedule="geometric",
    )
    latent = is_latent(spec, source)
    common: Any = {"optimizer": optimizer, "every": 500, "augment_below": AUGMENT_BELOW}
    act = DynamicsObjective(dynamics=maskgit, lam="../lam" if latent else None, context=4, action_noise=0.1)
    return Recipe(
        about=f"made for {spec.source}, {minutes:g} minutes",
        takes=f"{minutes:g} minutes",
        source=source,
        tokenizer=stage(TokenizerObjective(tokenizer=tokenizer), batch=16, length=2, steps=2000, **common),
        lam=stage(LatentActionObjective(lam=lam), batch=12, length=3, steps=1500, **common) if latent else None,
        dynamics=stage(act, batch=8, length=8, steps=2000, **common),
    )


def is_latent(spec: Spec, source: Any) -> bool:
    """Whether actions are inferred from the pictures: too few recordings have some."""
    return spec.actions.kind == "none" or _labelled(source) < ENOUGH


def latent_actions(tokenizer: Any) -> TokenLAMConfig:
    """Return a latent action model of six codes that looks at frames as a tokenizer's encoder does."""
    look = tokenizer.encoder
    return TokenLAMConfig(actions=6, encoder=replace(look, position_embeddings=False), decoder=look)


def _labelled(source: Any) -> float:
    """Return the share of recordings with actions: of a store's episodes, or what a source reports, else all."""
    if not isinstance(source, str | Path):
        return source.labelled() if hasattr(source, "labelled") else 1.0
    dataset = open_dataset(source)
    long = np.flatnonzero(dataset.lengths > 1)
    known = labelled(dataset, long[:: max(1, -(-len(long) // SAMPLED))].tolist())
    return sum(known) / len(known) if known else 1.0
