"""Named recipes: which source, which models, how long. ``reverie train NAME`` follows one; every field is a flag.

A recipe is three runs over one dataset: tokenizer, latent action model (where actions are not recorded, or shall not be
used), dynamics. Names are (world)-(dynamics)-(variant).
"""

from dataclasses import dataclass, replace
from typing import Any

from flax import nnx

from reverie import config
from reverie.actions import ActionSpace
from reverie.data.episode import Spec
from reverie.data.sources.coinrun import CoinRunConfig
from reverie.data.sources.platformer import PlatformerConfig
from reverie.errors import ReverieError, did_you_mean
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.mae import MAEConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.training.engine import Run
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig


@dataclass(frozen=True)
class Recipe:
    """How a world is made: ``source`` gives episodes, each run is a stage; no ``lam`` where actions are recorded."""

    about: str
    takes: str  # how long it takes, for people
    source: Any
    tokenizer: Run
    lam: Run | None
    dynamics: Run
    clips: int = 64  # evaluation: held-out clips,
    horizon: int = 16  # and frames dreamed


def presets() -> dict[str, Recipe]:
    """Return every named recipe."""
    return {
        "toy-maskgit": toy(),
        "toy-maskgit-latent": toy(latent=True),
        "toy-causal": causal(),
        "toy-diffusion": diffusion(),
        "toy-shortcut": shortcut(),
        "toy-maskgit-shipped": shipped(),
        "toy-maskgit-smooth": smooth(),
        "coinrun-maskgit-tiny": coinrun(
            width=128, depth=4, patch=8, steps=20_000, takes="hours on a CPU, minutes on a GPU"
        ),
        "coinrun-maskgit-small": coinrun(width=256, depth=6, patch=8, steps=100_000, takes="hours on a GPU"),
        "coinrun-maskgit-base": coinrun(width=512, depth=8, patch=4, steps=200_000, takes="a day on a large GPU"),
        "coinrun-maskgit-jafar": jafar(),
        "coinrun-maskgit-jasmine": jasmine(),
    }


def preset(name: str) -> Recipe:
    """Return one recipe by name; ReverieError with the nearest name when there is none."""
    known = presets()
    if name not in known:
        raise ReverieError(f"there is no preset '{name}'.{did_you_mean(name, known)}")
    return known[name]


def parameters(recipe: Any) -> int:
    """Return how many weights a recipe's models have together; nothing is computed, only shapes are looked at."""
    spec = recipe.source.spec()

    def shapes(made: Any) -> Any:
        return nnx.eval_shape(lambda: made.make(nnx.Rngs(0)))

    tokenizer = shapes(config.replace(recipe.tokenizer.objective.tokenizer, frame=spec.frame))
    models = [tokenizer]
    if recipe.lam is not None:
        models.append(shapes(recipe.lam.objective.lam.fitted(spec.frame, tokenizer)))
    actions = ActionSpace("latent", models[1].codes) if recipe.lam is not None else spec.actions
    models.append(shapes(recipe.dynamics.objective.dynamics.fitted(tokenizer, actions)))
    return sum(
        leaf.size
        for model in models
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if path[0] != "tokenizer" or model is tokenizer
    )


def _run(objective: Any, batch: int, length: int, steps: int, optimizer: OptimConfig, every: int) -> Run:
    """A run that reports and saves ``every`` so many steps."""
    return Run(
        objective, batch=batch, length=length, steps=steps, optimizer=optimizer, report_every=every, save_every=every
    )


def toy(latent: bool = False) -> Recipe:
    """A world two CPU cores learn in minutes: everything moves by whole tiles, and a token is a tile.

    Sizes are as small as the world allows, since many small steps, not few big ones, teach it to obey: one picture
    tells all there is to know, so the frame before is the whole memory; tiles do not depend on their neighbours, so the
    tokenizer looks at one at a time.
    """
    tile = TransformerConfig(width=64, depth=1, heads=2, hidden=256, space=False, time_every=0)
    now = TransformerConfig(width=64, depth=3, heads=2, hidden=256, time_every=0)
    optimizer = OptimConfig(kind="muon", rate=4e-3, warmup=50, decay=0.3, floor=0.02, weight_decay=1e-4)
    by_tile = OptimConfig(rate=6e-3, warmup=50, decay=0.3, floor=0.02, weight_decay=1e-4)
    tokenizer = VQVAEConfig(patch=8, encoder=tile, decoder=tile, quantiser=VQConfig(256, 16), motion_weight=10.0)
    glance = replace(now, depth=2)
    lam = TokenLAMConfig(actions=6, encoder=replace(glance, places=False), decoder=now)
    # A world without chance is played without it: at a higher temperature what is rare in training happens too often,
    # since `changed_weight` teaches the model to expect change.
    dynamics = MaskGITConfig(
        transformer=now, context="hidden", previous=True, changed_weight=5.0, passes=6, temperature=0.0
    )
    return Recipe(
        about="tile platformer, " + ("latent actions: learned from pictures alone" if latent else "recorded actions"),
        takes=f"{'five' if latent else 'two'} minutes on two CPU cores",
        source=PlatformerConfig(tiles=6, count=400, frames=48, themes=2),
        tokenizer=_run(TokenizerObjective(tokenizer), batch=32, length=2, steps=500, optimizer=by_tile, every=500),
        lam=_run(LatentActionObjective(lam), batch=16, length=3, steps=3000, optimizer=optimizer, every=500)
        if latent
        else None,
        dynamics=_run(
            DynamicsObjective(dynamics, lam="../lam" if latent else None, context=1),
            batch=8,
            length=4,
            steps=2000,
            optimizer=optimizer,
            every=500,
        ),
    )


def causal() -> Recipe:
    """The same world, a frame's tokens one after another."""
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
    """The same world, a frame's latents out of noise: a tile is a vector."""
    small = toy()
    seen: Any = small.tokenizer.objective
    tile, now = seen.tokenizer.encoder, replace(seen.tokenizer.encoder, space=True, depth=3, time_every=3, window=2)
    tokenizer = MAEConfig(patch=8, width=8, encoder=tile, decoder=tile, mask_max=0.0, motion_weight=10.0)
    dynamics = DiffusionConfig(transformer=now, changed_weight=5.0, passes=6, temperature=0.0)
    return replace(
        small,
        about="tile platformer, recorded actions, out of noise",
        takes="four minutes on two CPU cores",
        tokenizer=replace(small.tokenizer, objective=TokenizerObjective(tokenizer)),
        dynamics=replace(small.dynamics, objective=DynamicsObjective(dynamics, context=1)),
    )


def shortcut() -> Recipe:
    """The same world, a frame out of noise in four steps."""
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
    source = PlatformerConfig(tiles=8, count=1000, frames=64, themes=6)
    return replace(
        small,
        about="tile platformer, larger and longer: the world that 'reverie play' opens",
        takes="about fifteen minutes on two CPU cores",
        source=source,
        tokenizer=replace(
            small.tokenizer,
            objective=config.replace(small.tokenizer.objective, **{"tokenizer.quantiser.codes": 512}),
            steps=1500,
        ),
        dynamics=replace(small.dynamics, steps=5000, report_every=1000),
    )


def smooth() -> Recipe:
    """The platformer as games move: two pixels a frame, tokens that look around and back."""
    net = TransformerConfig(width=128, depth=4, heads=4, window=4)
    see = replace(net, depth=2)
    optimizer = OptimConfig(rate=1e-3, warmup=200, decay=0.2, floor=0.02, weight_decay=1e-2)
    tokenizer = VQVAEConfig(patch=4, encoder=see, decoder=see, quantiser=VQConfig(1024, 32), motion_weight=10.0)
    dynamics = MaskGITConfig(transformer=net, changed_weight=5.0, passes=8)
    return Recipe(
        about="platformer with smooth motion, recorded actions",
        takes="a day on two CPU cores, an hour on a GPU",
        source=PlatformerConfig(speed=2, count=2000, frames=160),
        tokenizer=_run(
            TokenizerObjective(tokenizer), batch=16, length=8, steps=20_000, optimizer=optimizer, every=2000
        ),
        lam=None,
        dynamics=_run(
            DynamicsObjective(dynamics, context=4), batch=16, length=8, steps=40_000, optimizer=optimizer, every=2000
        ),
    )


def coinrun(*, width: int, depth: int, patch: int, steps: int, takes: str) -> Recipe:
    """CoinRun by our own lights: clean context, EMA weights, tokens no larger than what moves, latent actions."""
    net = TransformerConfig(width=width, depth=depth, heads=width // 64, window=8, scan=True)
    see = replace(net, depth=max(2, depth // 2))
    optimizer = OptimConfig(rate=3e-4, warmup=steps // 50, decay=0.1, weight_decay=1e-2, ema=0.999)
    tokenizer = VQVAEConfig(patch=patch, encoder=see, decoder=see, quantiser=VQConfig(1024, 32), motion_weight=4.0)
    lam = TokenLAMConfig(actions=8, encoder=replace(see, places=False), decoder=see)
    dynamics = MaskGITConfig(transformer=net, changed_weight=4.0, passes=12)
    return Recipe(
        about=f"CoinRun, latent actions, width {width}",
        takes=takes,
        source=CoinRunConfig(count=1000 if width < 256 else 10_000),
        tokenizer=_run(
            TokenizerObjective(tokenizer), batch=32, length=16, steps=steps, optimizer=optimizer, every=5000
        ),
        lam=_run(LatentActionObjective(lam), batch=32, length=16, steps=steps // 2, optimizer=optimizer, every=5000),
        dynamics=_run(
            DynamicsObjective(dynamics, lam="../lam", context=8),
            batch=32,
            length=16,
            steps=steps,
            optimizer=optimizer,
            every=5000,
        ),
    )


def jafar() -> Recipe:
    """The case study of Genie (arXiv 2402.15391, appendix F) with the hyper-parameters of its open replica, Jafar."""
    net = TransformerConfig(
        width=512, depth=8, heads=8, hidden=512, activation="gelu", qk_norm=False, window=16, scan=True
    )
    adam = OptimConfig(
        rate=3e-5, schedule="cosine", warmup=5000, floor=0.1, b1=0.9, b2=0.9, weight_decay=1e-4, clip=0.0
    )
    return _replica(
        about="CoinRun as in Genie's appendix F and Jafar",
        net=net,
        patch=4,
        dynamics=replace(net, depth=12),
        conditioning="add",
        tokenizer_rate=replace(adam, rate=3e-4, schedule="constant", warmup=10_000),
        rate=adam,
    )


def jasmine() -> Recipe:
    """The defaults of Jasmine (arXiv 2510.27002): fewer, wider layers, actions as tokens, WSD."""
    net = TransformerConfig(
        width=512, depth=4, heads=8, hidden=2048, activation="gelu", qk_norm=False, window=16, scan=True
    )
    adam = OptimConfig(rate=3e-5, warmup=5000, decay=0.1, b1=0.9, b2=0.9, weight_decay=1e-4, clip=0.0)
    return _replica(
        about="CoinRun with Jasmine's defaults",
        net=net,
        patch=16,
        dynamics=replace(net, depth=6),
        conditioning="prepend",
        tokenizer_rate=replace(adam, rate=3e-4, warmup=10_000),
        rate=adam,
    )


def _replica(about, net, patch, dynamics, conditioning, tokenizer_rate, rate) -> Recipe:
    """What both replicas share: 64x64, 16 frames, 1024 codes of width 32, 6 actions, masks from 0.5, 25 passes."""
    tokenizer = VQVAEConfig(patch=patch, encoder=net, decoder=net, quantiser=VQConfig(1024, 32))
    lam = PixelLAMConfig(patch=16, encoder=net, decoder=net, quantiser=VQConfig(6, 32), motion_weight=0.0)
    maskgit = MaskGITConfig(transformer=dynamics, conditioning=conditioning, context="hidden", mask_min=0.5, passes=25)
    return Recipe(
        about=about,
        takes="days on a GPU",
        source=CoinRunConfig(count=10_000, frames=1000),
        tokenizer=_run(
            TokenizerObjective(tokenizer), batch=48, length=16, steps=300_000, optimizer=tokenizer_rate, every=20000
        ),
        lam=_run(
            LatentActionObjective(lam, tokenizer="", frozen=()),
            batch=36,
            length=16,
            steps=200_000,
            optimizer=rate,
            every=20000,
        ),
        dynamics=_run(
            DynamicsObjective(maskgit, lam="../lam", context=15),
            batch=36,
            length=16,
            steps=200_000,
            optimizer=rate,
            every=20000,
        ),
    )


def fitting(spec: Spec, source: Any, minutes: float) -> Recipe:
    """Return a recipe for any data, sized for ``minutes`` on two CPU cores (steps follow from the machine itself).

    Frames are looked at one by one and in coarse patches: with so little time, every token must pay. Where actions were
    recorded they are used, where not they are inferred.
    """
    width = 96 if minutes < 20 else 128 if minutes < 120 else 256
    patch = next(
        (p for p in ((8, 4, 2) if minutes < 120 else (4, 2)) if not spec.frame[0] % p and not spec.frame[1] % p), 1
    )
    look = TransformerConfig(width=width, depth=2, heads=width // 32, time_every=0)
    # A window shorter than the clips: else every frame in training sees its clip's beginning, and is lost without it.
    net = TransformerConfig(width=width, depth=4, heads=width // 32, time_every=2, window=4)
    optimizer = OptimConfig(kind="muon", rate=3e-3, warmup=100, decay=0.3, floor=0.02, weight_decay=1e-3)
    tokenizer = VQVAEConfig(patch=patch, encoder=look, decoder=look, quantiser=VQConfig(512, 16), motion_weight=8.0)
    lam = TokenLAMConfig(actions=6, encoder=replace(look, places=False), decoder=look)
    maskgit = MaskGITConfig(
        transformer=net, context="hidden", previous=True, changed_weight=4.0, passes=8, temperature=0.5
    )
    latent = spec.actions.kind == "none"
    return Recipe(
        about=f"made for {spec.source}, {minutes:g} minutes",
        takes=f"{minutes:g} minutes",
        source=source,
        tokenizer=_run(TokenizerObjective(tokenizer), batch=16, length=2, steps=2000, optimizer=optimizer, every=500),
        lam=_run(LatentActionObjective(lam), batch=12, length=3, steps=1500, optimizer=optimizer, every=500)
        if latent
        else None,
        dynamics=_run(
            DynamicsObjective(maskgit, lam="../lam" if latent else None, context=4),
            batch=8,
            length=8,
            steps=2000,
            optimizer=optimizer,
            every=500,
        ),
    )
