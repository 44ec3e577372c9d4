"""CoinRun: by our own lights, and as two open replicas of Genie do it."""

from dataclasses import replace

from reverie.data.sources.coinrun import CoinRunConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.mae import MAEConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.presets.recipe import Recipe, stage
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig


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
        tokenizer=stage(
            TokenizerObjective(tokenizer), batch=32, length=16, steps=steps, optimizer=optimizer, every=5000
        ),
        lam=stage(LatentActionObjective(lam), batch=32, length=16, steps=steps // 2, optimizer=optimizer, every=5000),
        dynamics=stage(
            DynamicsObjective(dynamics, lam="../lam", context=8),
            batch=32,
            length=16,
            steps=steps,
            optimizer=optimizer,
            every=5000,
        ),
    )


def vectors(like: VQVAEConfig) -> MAEConfig:
    """A tokenizer of the same size whose tokens are vectors."""
    return MAEConfig(
        patch=like.patch, width=16, encoder=like.encoder, decoder=like.decoder, motion_weight=like.motion_weight
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
        tokenizer=stage(
            TokenizerObjective(tokenizer), batch=48, length=16, steps=300_000, optimizer=tokenizer_rate, every=20000
        ),
        lam=stage(
            LatentActionObjective(lam, tokenizer="", frozen=()),
            batch=36,
            length=16,
            steps=200_000,
            optimizer=rate,
            every=20000,
        ),
        dynamics=stage(
            DynamicsObjective(maskgit, lam="../lam", context=15),
            batch=36,
            length=16,
            steps=200_000,
            optimizer=rate,
            every=20000,
        ),
    )
