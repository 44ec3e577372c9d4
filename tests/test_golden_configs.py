"""Runs that earlier versions wrote load with the fields' present names.

``goldens/configs.json`` was written by the code of 2026-11-24: a run of every stage and family, with renamed fields
away from their defaults. It cannot be regenerated: it has the old names.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from reverie import config
from reverie.actions import ActionSpace
from reverie.errors import ReverieError
from reverie.models.dynamics.causal import CausalConfig
from reverie.models.dynamics.diffusion import DiffusionConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.dynamics.shortcut import ShortcutConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers.dreamer4 import Dreamer4Config
from reverie.models.tokenizers.mae import MAEConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import FSQConfig, VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.presets.comparison import comparison
from reverie.training.engine import Run
from reverie.training.objectives import DynamicsObjective, LatentActionObjective, TokenizerObjective

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "configs.json").read_text("utf-8"))
NET = TransformerConfig(
    width=16,
    depth=4,
    heads=2,
    kv_heads=1,
    hidden=24,
    activation="gelu",
    layout="alternate",
    time_every=2,
    window=5,
    position_embeddings=False,
    qk_norm=False,
    soft_cap=3.0,
    registers=1,
    scan=True,
    remat="dots",
    dtype="float32",
)
FLAT = TransformerConfig(width=8, depth=1, heads=1, time_every=0, space=False, position_embeddings=False)
SPACE = ActionSpace("discrete", 2, ("left", "right"), ("a", "d"))
NOISE = {"width": 3, "grid": (2, 2), "transformer": FLAT, "image_share": 0.2, "short_length": 4, "long_share": 0.3}
VQ = VQConfig(codes=9, width=5, commitment=0.5, decay=0.9, restart_after=4, rate_penalty=0.02)
OBJECTIVES = {
    "vqvae": TokenizerObjective(
        tokenizer=VQVAEConfig(frame=(8, 8, 3), patch=4, encoder=NET, decoder=FLAT, quantiser=VQ, motion_weight=2.0)
    ),
    "fsq": TokenizerObjective(
        tokenizer=VQVAEConfig(frame=(8, 8, 3), encoder=FLAT, decoder=FLAT, quantiser=FSQConfig(levels=(3, 4)))
    ),
    "mae": TokenizerObjective(
        tokenizer=MAEConfig(frame=(8, 8, 3), patch=4, width=3, encoder=FLAT, decoder=FLAT, mask_max=0.5)
    ),
    "dreamer4": TokenizerObjective(
        tokenizer=Dreamer4Config(
            patch=4, latents=4, bottleneck=2, packing=2, encoder=FLAT, decoder=FLAT, perceptual_weight=0.1
        )
    ),
    "tokens": LatentActionObjective(
        lam=TokenLAMConfig(
            tokens=9,
            grid=(2, 2),
            actions=3,
            latent=2,
            encoder=FLAT,
            decoder=FLAT,
            changed_weight=4.0,
            continuous_share=0.25,
            rate_target=(2.0, 0.5),
            distance_weight=0.04,
        ),
        tokenizer="../eye",
    ),
    "pixels": LatentActionObjective(
        lam=PixelLAMConfig(
            patch=4,
            encoder=FLAT,
            decoder=FLAT,
            quantiser=VQConfig(codes=3, width=4, rate_penalty=0.1),
            motion_weight=1.0,
        ),
        tokenizer="",
    ),
    "maskgit": DynamicsObjective(
        dynamics=MaskGITConfig(
            codes=9,
            grid=(2, 2),
            actions=SPACE,
            transformer=NET,
            conditioning="add",
            context="hidden",
            previous=True,
            mask_min=0.3,
            changed_weight=1.0,
            passes=3,
            schedule="geometric",
            temperature=0.5,
        ),
        lam="../lam",
        context=2,
        action_noise=0.2,
    ),
    "causal": DynamicsObjective(
        dynamics=CausalConfig(
            codes=9,
            actions=SPACE,
            transformer=FLAT,
            block=2,
            previous=False,
            changed_weight=1.0,
            top_k=3,
            top_p=0.9,
        ),
        lam=PixelLAMConfig(patch=2, encoder=FLAT, decoder=FLAT),
        frozen=("tokenizer",),
    ),
    "diffusion": DynamicsObjective(
        dynamics=DiffusionConfig(
            conditioning="prepend",
            context="forcing",
            predict="v",
            previous=False,
            context_level=0.8,
            passes=3,
            **NOISE,
        )
    ),
    "shortcut": DynamicsObjective(
        dynamics=ShortcutConfig(levels=8, bootstrap=0.5, velocity_clip=2.0, ema_teacher=0.9, passes=2, **NOISE)
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_written_under_old_names_is_the_run_it_was(name):
    run = Run(objective=OBJECTIVES[name], data="../data", augment_below=77, batch=3, length=5, steps=7, seed=11, keep=1)
    assert config.from_json(GOLDEN[name]) == run


def test_every_old_name_is_in_the_goldens_and_has_a_field():
    """``Comparison`` is checked by itself: it is no part of a run."""
    used = {}

    def look(data):
        if isinstance(data, list):
            return [look(item) for item in data]
        if isinstance(data, dict):
            used.setdefault(str(data.get(config.CLASS)).rpartition(":")[2], set()).update(data)
            look(list(data.values()))

    look(GOLDEN)
    classes = {type(value).__name__: type(value) for each in OBJECTIVES.values() for value in parts(each)}
    classes |= {"Run": Run, "Comparison": type(comparison("toy"))}
    used["Comparison"] = {"arithmetic"}
    for name, fields in config.RENAMED.items():
        assert fields.keys() <= used[name]
        present = {f.name for f in dataclasses.fields(classes[name])}
        assert set(fields.values()) <= present and not fields.keys() & present


def parts(value):
    """A config and all configs in it."""
    yield value
    for field in dataclasses.fields(value):
        if dataclasses.is_dataclass(child := getattr(value, field.name)):
            yield from parts(child)


def test_an_old_comparison_is_the_present_one():
    made = comparison("toy")
    data = config.to_json(made)
    data["arithmetic"] = data.pop("flops")
    assert config.from_json(data) == made


def test_a_field_under_both_names_is_refused():
    data = config.to_json(VQConfig()) | {"thrift": 0.5}
    with pytest.raises(ReverieError, match="VQConfig has 'rate_penalty' twice"):
        config.from_json(data)
