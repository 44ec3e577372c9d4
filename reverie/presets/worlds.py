"""Worlds of real games that two CPU cores learn in hours, small enough to share."""

from dataclasses import replace
from typing import Any

from reverie.data.sources.atari import AtariConfig
from reverie.data.sources.carracing import CarRacingConfig
from reverie.data.sources.procgen import ProcgenConfig
from reverie.data.sources.vizdoom import ViZDoomConfig
from reverie.models.agent import AgentConfig
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.tokenizers.mae import MAEConfig
from reverie.nn.heads import HeadConfig, TwoHot
from reverie.nn.returns import PMPO, Reinforce
from reverie.nn.transformer import TransformerConfig
from reverie.presets.recipe import Recipe, stage
from reverie.training.agents import BehaviourObjective, ImaginationObjective
from reverie.training.objectives import DynamicsObjective, TokenizerObjective
from reverie.training.optim import OptimConfig

SAVED = 100  # steps between checkpoints, a few minutes of two cores: such a run shares its machine and is interrupted


def coinrun() -> Recipe:
    """CoinRun with the single theme of its "easy" mode, where every episode is another level.

    A scripted player heads for the coin with 20 to 100 % of an episode's choices and takes it in a third of the levels.
    Its other choices show what the other keys do. A frame is 16 tokens of 64 numbers. As 64 tokens of 16 it costs four
    times as much, and the tokenizer had 41.3 instead of 35.1 dB on held-out levels (docs/log.md).
    """
    look = TransformerConfig(width=128, depth=2, heads=4, time_every=0)
    # Velocity shows in two frames. Two layers of time with a window of four reach six frames back, less than a clip.
    net = replace(look, depth=8, time_every=4, window=4)
    muon = OptimConfig(kind="muon", rate=3e-3, warmup=200, decay=0.3, floor=0.02, weight_decay=1e-3)
    tokenizer = MAEConfig(patch=16, width=64, encoder=look, decoder=replace(look, depth=3), mask_max=0.0)
    tokenizer = replace(tokenizer, motion_weight=1.0)
    # With a tenth of noise in the context rollouts of small worlds lose what they need (docs/log.md).
    dynamics = DiffusionConfig(transformer=net, changed_weight=2.0, context_level=0.95, passes=4, temperature=0.5)
    common: Any = {"every": 500}
    encode = stage(TokenizerObjective(tokenizer=tokenizer), batch=16, length=2, steps=2500, optimizer=muon, **common)
    averaged = replace(muon, rate=2e-3, ema=0.999)
    act = DynamicsObjective(dynamics=dynamics, context=4)
    predict = stage(act, batch=12, length=8, steps=4000, optimizer=averaged, **common)
    return Recipe(
        about="CoinRun, recorded actions of a scripted player: a world to play",
        takes="an hour and a half on two CPU cores",
        source=ProcgenConfig(game="coinrun", mode="easy", policy="mixed", count=2000, frames=128),
        tokenizer=replace(encode, save_every=SAVED),
        lam=None,
        dynamics=replace(predict, save_every=SAVED),
    )


def coinrun_agent() -> Recipe:
    """The same world, and an agent that learns in it; a reward is 10 at the coin, which ends the level."""
    world = coinrun()
    optimizer = OptimConfig(rate=1e-3, schedule="wsd", decay=0.5, warmup=20, weight_decay=0.0)
    bins = TwoHot(bins=63, reach=2.5)
    heads = AgentConfig(head=HeadConfig(queries=4), ahead=1, rewards=bins, values=bins)
    clone = stage(BehaviourObjective(agent=heads), batch=64, length=16, steps=600, optimizer=optimizer, every=100)
    # A level takes some 60 steps and has one reward. With rollouts of 16 steps the real return was 3.4 (REINFORCE) and
    # 1.5 (PMPO, which reads signs), below cloning with 4.0; with 64 steps it is 5.4 to 6.3 (docs/log.md).
    learner = Reinforce(beta=0.03)
    long: Any = {"horizon": 64, "context": 8, "gamma": 0.99, "critic_steps": 60, "replay": 1.0, "passes": 2}
    act = stage(
        ImaginationObjective(learner=learner, **long), batch=10, length=24, steps=300, optimizer=optimizer, every=50
    )
    return replace(
        world,
        about="CoinRun, recorded actions of a scripted player: a world, and an agent",
        takes="two hours on two CPU cores",
        agent=clone,
        policy=replace(act, relevant=0.25),
    )


def atari_agent() -> Recipe:
    """Boxing (Atari): a punch that lands is worth 1, and one that is taken -1, so rewards are dense.

    In each episode the recorded player prefers actions of its own, so some episodes are better than others.
    """
    learned: Any = coinrun_agent()
    values = learned.agent.objective.agent.values
    heads = replace(learned.agent.objective.agent, rewards=replace(values, reach=1.4))
    clone = replace(learned.agent.objective, agent=heads)
    short: Any = {"learner": PMPO(beta=0.1), "horizon": 16, "gamma": 0.95, "critic_steps": 80, "replay": 0.0}
    act = replace(learned.policy, objective=replace(learned.policy.objective, **short), batch=32, relevant=0.5)
    return replace(
        learned,
        about="Boxing (Atari), recorded actions of mixed quality: a world, and an agent",
        source=AtariConfig(path="ALE/Boxing-v5", policy="mixed", count=1000, frames=128, size=(64, 64), fps=15.0),
        agent=replace(learned.agent, objective=clone),
        policy=act,
    )


def vizdoom() -> Recipe:
    """The field of ViZDoom's "health gathering" with Freedoom's textures, over which a scripted player walks.

    In the rooms of "my way home" the player often stood before a wall, and the world showed little else (docs/log.md).
    """
    return replace(
        coinrun(),
        about="first-person field (ViZDoom, Freedoom), recorded actions of a scripted player: a world to play",
        source=ViZDoomConfig(
            path="VizdoomHealthGathering-v1", walk=True, skip=3, size=(48, 64), count=1500, frames=128
        ),
    )


def carracing() -> Recipe:
    """A racing car on a road (Gymnasium's CarRacing), whose driver follows the road in most moments.

    Uniformly random keys leave the road within seconds, and then all is grass.
    """
    return replace(
        coinrun(),
        about="racing car (Gymnasium's CarRacing), recorded actions of a driver: a world to play",
        source=CarRacingConfig(drive=True, size=(64, 64), count=1000, frames=128),
    )
