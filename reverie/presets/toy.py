"""Worlds that two CPU cores learn: the tile platformer, once for each family of dynamics."""

from dataclasses import replace
from typing import Any

from reverie import config
from reverie.data.sources.platformer import PlatformerConfig
from reverie.models.agent import AgentConfig
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.mae import MAEConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.heads import HeadConfig, TwoHot
from reverie.nn.quantise import VQConfig
from reverie.nn.returns import PMPO
from reverie.nn.transformer import TransformerConfig
from reverie.presets.recipe import Recipe, stage
from reverie.training.agents import BehaviourObjective, ImaginationObjective
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig


def toy(latent: bool = False) -> Recipe:
    """A world that two CPU cores can learn in minutes: everything moves by whole tiles, and a token is a tile.

    Models are as small as the world allows, since controllability needs many steps more than large ones. One frame
    shows the whole state, so the window is the previous frame. Tiles do not depend on their neighbours, so the
    tokenizer encodes each by itself.
    """
    tile = TransformerConfig(width=64, depth=1, heads=2, hidden=256, space=False, time_every=0)
    now = TransformerConfig(width=64, depth=3, heads=2, hidden=256, time_every=0)
    optimizer = OptimConfig(kind="muon", rate=4e-3, warmup=50, decay=0.3, floor=0.02, weight_decay=1e-4)
    by_tile = OptimConfig(rate=6e-3, warmup=50, decay=0.3, floor=0.02, weight_decay=1e-4)
    codebook = VQConfig(codes=256, width=16)
    tokenizer = VQVAEConfig(patch=8, encoder=tile, decoder=tile, quantiser=codebook, motion_weight=10.0)
    glance = replace(now, depth=2)
    lam = TokenLAMConfig(actions=6, encoder=replace(glance, position_embeddings=False), decoder=now)
    # A deterministic world is sampled at temperature 0: above it, what is rare in training happens too often,
    # since `changed_weight` teaches the model to expect change.
    # The last four are what keeps the player there for a thousand frames (docs/log.md).
    dynamics = MaskGITConfig(
        transformer=now,
        context="hidden",
        previous=True,
        changed_weight=5.0,
        passes=6,
        temperature=0.0,
        neighbours=1,
        context_noise=0.1,
        mask_min=0.2,
        schedule="single",
    )
    objective = DynamicsObjective(dynamics=dynamics, context=1)
    if latent:  # a code leaves more open than a key does, and can be asked for where it never happens
        by_code = replace(dynamics, passes=8)
        objective = replace(objective, dynamics=by_code, lam="../lam", action_noise=0.1)
    seen, common = TokenizerObjective(tokenizer=tokenizer), {"optimizer": optimizer, "every": 500}
    return Recipe(
        about="tile platformer, " + ("latent actions: learned from pictures alone" if latent else "recorded actions"),
        takes=f"{'six' if latent else 'two'} minutes on two CPU cores",
        source=PlatformerConfig(tiles=6, count=400, frames=48, themes=2),
        tokenizer=stage(seen, batch=32, length=2, steps=500, optimizer=by_tile, every=500),
        lam=stage(LatentActionObjective(lam=lam), batch=16, length=3, steps=3000, **common) if latent else None,
        dynamics=stage(objective, batch=8, length=4, steps=4000 if latent else 2000, **common),
    )


def causal() -> Recipe:
    """The same world with causal dynamics, which generate a frame token by token."""
    small = toy()
    objective: Any = small.dynamics.objective
    masked = objective.dynamics
    dynamics = CausalConfig(
        transformer=replace(masked.transformer, time_every=3, window=2),
        changed_weight=masked.changed_weight,
        temperature=masked.temperature,
    )
    return replace(
        small,
        about="tile platformer, recorded actions, token by token",
        takes="four minutes on two CPU cores",
        dynamics=replace(small.dynamics, objective=replace(objective, dynamics=dynamics)),
    )


def diffusion() -> Recipe:
    """The same world with diffusion dynamics: tiles are encoded as vectors."""
    small = toy()
    seen: Any = small.tokenizer.objective
    tile, now = seen.tokenizer.encoder, replace(seen.tokenizer.encoder, space=True, depth=3, time_every=3, window=2)
    tokenizer = MAEConfig(patch=8, width=8, encoder=tile, decoder=tile, mask_max=0.0, motion_weight=10.0)
    dynamics = DiffusionConfig(transformer=now, changed_weight=5.0, passes=6, temperature=0.0)
    return replace(
        small,
        about="tile platformer, recorded actions, out of noise",
        takes="four minutes on two CPU cores",
        tokenizer=replace(small.tokenizer, objective=TokenizerObjective(tokenizer=tokenizer)),
        dynamics=replace(small.dynamics, objective=DynamicsObjective(dynamics=dynamics, context=1)),
    )


def shortcut() -> Recipe:
    """The same world with shortcut forcing: four passes generate a frame."""
    slow = diffusion()
    objective: Any = slow.dynamics.objective
    of = objective.dynamics
    dynamics = ShortcutConfig(
        transformer=of.transformer, changed_weight=of.changed_weight, temperature=of.temperature, levels=8
    )
    return replace(
        slow,
        about="tile platformer, recorded actions, out of noise in four steps",
        dynamics=replace(slow.dynamics, objective=replace(objective, dynamics=dynamics)),
    )


def shipped() -> Recipe:
    """The world that comes with the package: larger levels, all six themes, trained longer."""
    small = toy()
    source = PlatformerConfig(tiles=8, count=2000, frames=32, themes=6, anywhere=True)
    return replace(
        small,
        about="tile platformer, larger and longer: the world that 'reverie play' opens",
        takes="about twenty minutes on two CPU cores",
        source=source,
        tokenizer=replace(
            small.tokenizer,
            objective=config.replace(small.tokenizer.objective, **{"tokenizer.quantiser.codes": 512}),
            steps=1500,
        ),
        dynamics=replace(small.dynamics, steps=8000, report_every=2500),
    )


def agent(latent: bool = False) -> Recipe:
    """Recorded play of mixed quality in the same world, and an agent that learns to take all coins in it.

    An episode is over after 16 steps: the best play needs 7, random play succeeds in 3 % of the levels. ``latent``: the
    world is learned from pictures alone, and the agent acts in its codes.
    """
    small = toy(latent)
    optimizer = OptimConfig(rate=2e-3, schedule="wsd", decay=0.5, warmup=20, weight_decay=0.0)
    # A coin or the player may be anywhere: what a head learns of one tile must hold for all of them. A reward is a coin
    # or none, a value three coins at most.
    seen = HeadConfig(convolutions=2, queries=4)
    rewards, values = TwoHot(bins=63, reach=1.4), TwoHot(bins=63, reach=1.8)
    # Embeddings of tokens show what was where, now and before. With MaskGIT's features instead the same agent took all
    # coins in 24 % of the levels, not in 93 %.
    heads = AgentConfig(head=seen, inputs=True, ahead=1, rewards=rewards, values=values)
    # The cloned policy is almost uniform, so it is a weak prior.
    learner = PMPO(beta=0.05)
    imagine = ImaginationObjective(learner=learner, horizon=16, context=4, gamma=0.95, critic_steps=30, passes=1)
    return replace(
        small,
        about=f"tile platformer, {'latent' if latent else 'recorded'} actions of mixed quality: a world, and an agent "
        + ("that acts in its codes" if latent else "that takes all coins in it"),
        takes=f"{'an hour' if latent else 'three quarters of an hour'} on two busy CPU cores",
        source=PlatformerConfig(tiles=6, count=2000, frames=17, themes=2, play="mixed", goal="coins"),
        # Clips with a coin or an end: cloning them takes all coins half as often again as cloning everything.
        agent=replace(
            stage(BehaviourObjective(agent=heads), batch=64, length=8, steps=600, optimizer=optimizer, every=100),
            relevant=0.5,
        ),
        policy=stage(imagine, batch=64, length=8, steps=600, optimizer=optimizer, every=100),
    )


def smooth() -> Recipe:
    """The platformer as games move: two pixels a frame, tokens that look around and back."""
    net = TransformerConfig(width=128, depth=4, heads=4, window=4)
    see = replace(net, depth=2)
    optimizer = OptimConfig(rate=1e-3, warmup=200, decay=0.2, floor=0.02, weight_decay=1e-2)
    codebook = VQConfig(codes=1024, width=32, rate_penalty=0.01)
    tokenizer = VQVAEConfig(patch=4, encoder=see, decoder=see, quantiser=codebook, motion_weight=10.0)
    common: Any = {"length": 8, "batch": 16, "optimizer": optimizer, "every": 2000}
    dynamics = MaskGITConfig(transformer=net, changed_weight=5.0, passes=8)
    return Recipe(
        about="platformer with smooth motion, recorded actions",
        takes="a day on two CPU cores, an hour on a GPU",
        source=PlatformerConfig(speed=2, count=2000, frames=160),
        tokenizer=stage(TokenizerObjective(tokenizer=tokenizer), steps=20_000, **common),
        lam=None,
        dynamics=stage(DynamicsObjective(dynamics=dynamics, context=4), steps=40_000, **common),
    )
