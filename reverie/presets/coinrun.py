"""CoinRun, with our own settings and with those of two open replicas of Genie."""

from dataclasses import replace
from typing import Any

from reverie.data.sources.coinrun import CoinRunConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.dreamer4 import Dreamer4Config
from reverie.models.tokenizers.mae import MAEConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.presets.published import DREAMER4
from reverie.presets.recipe import Recipe, stage
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig


def coinrun(*, width: int, depth: int, patch: int, steps: int, takes: str, remat: Any = "dots") -> Recipe:
    """CoinRun with our own choices: clean context, EMA weights, tokens no larger than what moves, latent actions.

    Memory of the largest stage in bfloat16 with a flash kernel, for ``remat`` none, dots and full: width 512 needs 170,
    53 and 16 GB (dynamics, compiled for an H100 of 80 GB). Width 256 needs about 17, 5 and 1 GB for activations, and a
    tenth to a third more in all. Keeping only matmuls costs 3 % more FLOPs.
    """
    net = TransformerConfig(width=width, depth=depth, heads=width // 64, window=8, scan=True, remat=remat)
    see = replace(net, depth=max(2, depth // 2))
    optimizer = OptimConfig(rate=3e-4, warmup=steps // 50, decay=0.1, weight_decay=1e-2, ema=0.999)
    codebook = VQConfig(codes=1024, width=32, rate_penalty=0.01)
    tokenizer = VQVAEConfig(patch=patch, encoder=see, decoder=see, quantiser=codebook, motion_weight=4.0)
    lam = TokenLAMConfig(actions=8, encoder=replace(see, position_embeddings=False), decoder=see)
    dynamics = MaskGITConfig(transformer=net, changed_weight=4.0, passes=12)
    common: Any = {"batch": 32, "length": 16, "optimizer": optimizer, "every": 5000}
    return Recipe(
        about=f"CoinRun, latent actions, width {width}",
        takes=takes,
        source=CoinRunConfig(count=1000 if width < 256 else 10_000),
        tokenizer=stage(TokenizerObjective(tokenizer=tokenizer), steps=steps, **common),
        lam=stage(LatentActionObjective(lam=lam), steps=steps // 2, **common),
        dynamics=stage(DynamicsObjective(dynamics=dynamics, lam="../lam", context=8), steps=steps, **common),
    )


def vectors(like: VQVAEConfig) -> MAEConfig:
    """A tokenizer of the same size whose tokens are vectors."""
    return MAEConfig(
        patch=like.patch, width=16, encoder=like.encoder, decoder=like.decoder, motion_weight=like.motion_weight
    )


def shortcut() -> Recipe:
    """Dreamer 4's world model (arXiv 2509.24527) as its paper has it, at a size for one GPU.

    From the paper: the tokenizer, three space layers to one of time, action and level as tokens, registers, short clips
    and occasional long ones, longer than the window, images, 4 passes. From open-dreamer, since the paper is silent:
    Muon at 3e-4, decay, averaged weights, a tenth of rows whole. Sizes are ours. Not trained to the end by us yet.
    Logits are not capped, as the paper's are: QK-norm bounds them already, and no flash kernel knows a cap. Memory on
    one GPU: 25 GB for the tokenizer, 17 GB for dynamics.
    """
    look = TransformerConfig(width=256, depth=8, heads=4, layout="alternate", time_every=4, window=16, scan=True)
    net = replace(look, width=512, depth=12, heads=8, kv_heads=2, window=48, registers=4)
    muon = OptimConfig(kind="muon", rate=3e-4, warmup=2000, decay=0.1, weight_decay=0.1, ema=0.999)
    common: Any = {"optimizer": muon, "every": 5000}
    tokenizer = Dreamer4Config(patch=8, latents=32, bottleneck=16, packing=2, encoder=look, decoder=look)
    dynamics = ShortcutConfig(transformer=net, **DREAMER4, short_length=16, long_share=0.1)
    return Recipe(
        about="CoinRun, recorded actions, Dreamer 4's tokenizer and shortcut forcing",
        takes="a day on a large GPU",
        source=CoinRunConfig(count=10_000, frames=1000),
        tokenizer=stage(TokenizerObjective(tokenizer=tokenizer), batch=32, length=16, steps=100_000, **common),
        lam=None,
        dynamics=stage(DynamicsObjective(dynamics=dynamics, context=32), batch=16, length=64, steps=200_000, **common),
    )


def jafar() -> Recipe:
    """The case study of Genie (arXiv 2402.15391, appendix F) with the hyper-parameters of its open replica, Jafar."""
    # The tokenizer of 256 tokens needs about 53 GB, without remat 120.
    net = TransformerConfig(
        width=512, depth=8, heads=8, hidden=512, activation="gelu", qk_norm=False, window=16, scan=True, remat="dots"
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
        takes="days on a GPU of 80 GB",
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
        takes="days on a GPU",  # of 8 GB
    )


def _replica(about, net, patch, dynamics, conditioning, tokenizer_rate, rate, takes) -> Recipe:
    """What both replicas share: 64x64, 16 frames, 1024 codes of width 32, 6 actions, masks from 0.5, 25 passes."""
    tokenizer = VQVAEConfig(patch=patch, encoder=net, decoder=net, quantiser=VQConfig(codes=1024, width=32))
    lam = PixelLAMConfig(patch=16, encoder=net, decoder=net, quantiser=VQConfig(codes=6, width=32), motion_weight=0.0)
    maskgit = MaskGITConfig(transformer=dynamics, conditioning=conditioning, context="hidden", mask_min=0.5, passes=25)
    common: Any = {"length": 16, "every": 20_000}
    smaller: Any = {"batch": 36, "steps": 200_000, "optimizer": rate}
    return Recipe(
        about=about,
        takes=takes,
        source=CoinRunConfig(count=10_000, frames=1000),
        tokenizer=stage(
            TokenizerObjective(tokenizer=tokenizer), batch=48, steps=300_000, optimizer=tokenizer_rate, **common
        ),
        lam=stage(LatentActionObjective(lam=lam, tokenizer="", frozen=()), **common, **smaller),
        dynamics=stage(DynamicsObjective(dynamics=maskgit, lam="../lam", context=15), **common, **smaller),
    )
