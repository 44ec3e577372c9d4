"""Models at published size, for ``reverie plan``: which machines hold them. None of them was trained by us."""

from dataclasses import replace
from typing import Any

from reverie.data.sources.vpt import VPTConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.tokenizers.dreamer4 import Dreamer4Config
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.presets.recipe import Recipe, stage
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective
from reverie.training.optim import OptimConfig

# Dreamer 4's dynamics as its paper (arXiv 2509.24527) has them, at any size.
DREAMER4: Any = {"conditioning": "prepend", "context": "forcing", "previous": False, "image_share": 0.3}
# What lets them fit a chip of 16 GB. Tokens between groups are as exact as the inputs of matmuls.
SAVING: Any = {"remat": "layers", "attention_parts": 8, "stream": "bfloat16"}
PLANNED = "not trained by us: see docs/scaling.md"


def dreamer4() -> Recipe:
    """Dreamer 4 in Minecraft (arXiv 2509.24527): 400 M parameters of tokenizer, 1.67 B of dynamics.

    From the paper: frames of 384x640 in patches of 16, 512 latents of 16 numbers as 256 tokens of 32, three space
    layers to one of time. Clips have 64 or 256 frames, the context is 192, and a device has one clip. Widths are ours,
    since the paper names none: 2048 and 1024 divide among 256 devices (1920 would not, and be replicated). Logits are
    not capped: QK-norm bounds them already.
    """
    see = TransformerConfig(
        width=1024, depth=12, heads=16, layout="alternate", time_every=4, window=16, scan=True, remat="full"
    )
    net = replace(see, width=2048, depth=28, heads=32, kv_heads=4, window=192, registers=6, **SAVING)
    optimizer = OptimConfig(rate=1e-4, warmup=5000, decay=0.1, ema=0.999)
    common: Any = {"batch": 256, "steps": 300_000, "optimizer": optimizer, "every": 5000}
    tokenizer = Dreamer4Config(patch=16, latents=512, bottleneck=16, packing=2, encoder=see, decoder=see)
    dynamics = ShortcutConfig(transformer=net, **DREAMER4, short_length=64)
    objective = DynamicsObjective(dynamics=dynamics, context=192)
    return Recipe(
        about="Minecraft, recorded actions, Dreamer 4 at its published size",
        takes=PLANNED,
        source=VPTConfig(path="data/vpt", size=(384, 640)),
        tokenizer=spread(stage(TokenizerObjective(tokenizer=tokenizer), length=8, **common)),
        lam=None,
        dynamics=spread(stage(objective, length=256, **common)),
    )


def genie() -> Recipe:
    """Genie's largest model (arXiv 2402.15391, section 3): 10 B parameters of dynamics over 16 frames of 960 tokens.

    From the paper: 48 layers of width 5120, patches of 4 and 1024 codes of width 32, 8 latent actions, 512 clips per
    step. Two attentions per layer alone make its 10.1 B parameters, so the feed-forward layers are narrow. Heads are
    40, which divide the width, for the paper's 36. Frames are 96x160, so that patches fit; the paper's are 90x160.
    """
    see = TransformerConfig(width=1024, depth=8, heads=16, qk_norm=False, window=16, scan=True, remat="full")
    net = replace(see, width=5120, depth=48, heads=40, hidden=512, activation="gelu", qk_norm=True, **SAVING)
    optimizer = OptimConfig(rate=3e-5, schedule="cosine", floor=0.1, warmup=5000, b1=0.9, b2=0.9, weight_decay=1e-4)
    common: Any = {"batch": 512, "length": 16, "optimizer": optimizer, "every": 5000}
    book = VQConfig(codes=1024, width=32)
    tokenizer = VQVAEConfig(patch=4, encoder=replace(see, depth=6), decoder=replace(see, depth=6), quantiser=book)
    lam = PixelLAMConfig(patch=16, encoder=see, decoder=see, quantiser=VQConfig(codes=8, width=32))
    dynamics = MaskGITConfig(transformer=net, conditioning="add", context="hidden", passes=25)
    objective = DynamicsObjective(dynamics=dynamics, lam="../lam", context=15)
    return Recipe(
        about="Minecraft, latent actions, Genie at its published size",
        takes=PLANNED,
        source=VPTConfig(path="data/vpt", size=(96, 160)),
        tokenizer=spread(stage(TokenizerObjective(tokenizer=tokenizer), steps=300_000, **common)),
        lam=spread(stage(LatentActionObjective(lam=lam, tokenizer="", frozen=()), steps=200_000, **common)),
        dynamics=spread(stage(objective, steps=125_000, **common)),
    )


def spread(run: Any) -> Any:
    """Return a run whose weights are divided among devices."""
    return replace(run, mesh="fsdp")
