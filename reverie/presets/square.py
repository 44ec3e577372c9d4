"""Presets for the bouncing square on two cores: Dreamer 4's tokenizer, and a plain one."""

from dataclasses import replace
from typing import Any

from reverie.data.sources.square import SquareConfig
from reverie.models.agent import AgentConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.models.tokenizers.dreamer4 import Dreamer4Config
from reverie.models.tokenizers.mae import MAEConfig
from reverie.nn.heads import TwoHot
from reverie.nn.returns import PMPO
from reverie.nn.transformer import TransformerConfig
from reverie.presets.recipe import Recipe, stage
from reverie.training.agents import BehaviourObjective, ImaginationObjective
from reverie.training.objectives import DynamicsObjective, TokenizerObjective
from reverie.training.optim import OptimConfig

# One picture tells where the square is, so tokenizers read one at a time; the dynamics predict where it goes.
LOOK = TransformerConfig(width=64, depth=2, heads=4, hidden=192, time_every=0)
MUON = OptimConfig(kind="muon", rate=4e-3, warmup=50, decay=0.3, floor=0.02, weight_decay=1e-4)
COMMON: Any = {"steps": 12000, "optimizer": MUON, "every": 2000}


def shortcut() -> Recipe:
    """Dreamer 4's tokenizer, 16 latents of 8 numbers in 8 tokens, and shortcut forcing over it."""
    tokenizer = Dreamer4Config(patch=8, latents=16, bottleneck=8, packing=2, encoder=LOOK, decoder=LOOK, mask_max=0.0)
    dynamics = ShortcutConfig(
        transformer=TransformerConfig(width=96, depth=4, heads=3, hidden=384, time_every=2, window=8),
        temperature=0.0,
        levels=8,
        # With a tenth of noise in the context, rollouts lose what they need: the MAE's frames have 25 dB, not 32.
        context_level=0.98,
    )
    return Recipe(
        about="bouncing square, recorded actions: Dreamer 4's tokenizer and shortcut forcing",
        takes="a quarter of an hour on two CPU cores",
        source=SquareConfig(count=2000),
        # Half of these steps gave 28.6 dB in one run and 26.7, more than 3 dB below the reconstruction, in another.
        tokenizer=stage(TokenizerObjective(tokenizer=tokenizer), batch=16, length=1, **COMMON),
        lam=None,
        dynamics=stage(DynamicsObjective(dynamics=dynamics, context=8), batch=8, length=12, **COMMON),
    )


def shortcut_mae() -> Recipe:
    """The same, with a vector for each of 16 patches."""
    whole = shortcut()
    tokenizer = MAEConfig(patch=8, width=8, encoder=LOOK, decoder=LOOK, mask_max=0.0)
    return replace(
        whole,
        about="bouncing square, recorded actions: a vector for each patch and shortcut forcing",
        takes="a quarter of an hour on two CPU cores",
        tokenizer=replace(whole.tokenizer, objective=TokenizerObjective(tokenizer=tokenizer), batch=32, steps=2000),
    )


def agent() -> Recipe:
    """The same tokenizer, smaller dynamics, data of mixed quality, and an agent that learns in the world."""
    whole = shortcut()
    objective: Any = whole.dynamics.objective
    net = TransformerConfig(width=64, depth=4, heads=2, hidden=192, time_every=2, window=4)
    objective = replace(objective, dynamics=replace(objective.dynamics, transformer=net), context=4)
    # Rewards are -19 at least, and values at most ten times that with this gamma: narrow bins are more exact.
    heads = AgentConfig(rewards=TwoHot(reach=3.2), values=TwoHot(reach=5.5))
    optimizer = OptimConfig(rate=1e-3, schedule="constant", warmup=20, weight_decay=0.0)
    falling = replace(optimizer, schedule="wsd", decay=0.5)
    clone = stage(BehaviourObjective(agent=heads), batch=64, length=16, steps=1000, optimizer=falling, every=250)
    # The cloned policy is as poor as its data, so it is a weak prior: with the paper's 0.3 the return is 8 lower.
    imagine = ImaginationObjective(learner=PMPO(beta=0.03), horizon=16, context=8, gamma=0.9, critic_steps=30, passes=1)
    return replace(
        whole,
        about="bouncing square, recorded actions of mixed quality: a world, and an agent that learns in it",
        takes="half an hour on two CPU cores",
        source=SquareConfig(count=2000, play="mixed"),
        tokenizer=replace(whole.tokenizer, steps=8000),
        dynamics=replace(whole.dynamics, objective=objective, batch=16, length=6, steps=7000),
        agent=clone,
        policy=stage(imagine, batch=64, length=24, steps=400, optimizer=optimizer, every=100),
    )
