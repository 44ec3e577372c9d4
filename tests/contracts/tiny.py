"""The smallest model of every family, and worlds made of them.

A family is made tiny by the names and types of its config's fields, so a new file in a folder of models is tested by
being there. B batch, T time, H W C image.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.actions import START, ActionSpace
from reverie.models.dynamics import maskgit
from reverie.models.lams import tokens
from reverie.models.tokenizers import mae, vqvae
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.world import WorldConfig, WorldModel

FRAME = (8, 8, 3)
SMALL = TransformerConfig(width=16, depth=2, heads=2, hidden=32, window=3)
SIZES = {"frame": FRAME, "patch": 4, "latents": 6, "passes": 4}  # by name, where a config has such a field
ACTIONS = ActionSpace("discrete", 3, ("left", "right", "stay"))
T = 8  # longer than the window: the ring buffer wraps


def tiny(config: Any, transformer: TransformerConfig = SMALL) -> Any:
    """Return a config with all that is large in it made small."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, TransformerConfig):
            changes[field.name] = transformer
        elif isinstance(value, VQConfig):
            changes[field.name] = VQConfig(codes=min(value.codes, 32), width=4)
        elif field.name in SIZES:
            changes[field.name] = SIZES[field.name]
    return dataclasses.replace(config, **changes)


def tokenizer(config: type = vqvae.VQVAEConfig, **changes) -> Any:
    return tiny(config(), **changes).make(nnx.Rngs(0))


def dynamics(config: type = maskgit.MaskGITConfig, actions: ActionSpace = ACTIONS, **changes) -> Any:
    """Return dynamics for the latents of ``eyes(config)``."""
    return awake(tiny(config(), **changes).fitted(eyes(config), actions).make(nnx.Rngs(1)))


def eyes(config: Any) -> Any:
    """Return a tokenizer whose latents dynamics of ``config`` are made for: codes, or vectors."""
    codes = any(field.name == "codes" for field in dataclasses.fields(config))
    return tokenizer(vqvae.VQVAEConfig if codes else mae.MAEConfig)


def awake(model: Any) -> Any:
    """Grow weights that begin small as training would: a new head answers the same whatever it is asked."""
    for _, weight in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        spread = float(jnp.std(weight[...]))
        if 0 < spread < 0.05:
            weight[...] = weight[...] * (0.5 / spread)
    return model


def lam(
    config: type = tokens.TokenLAMConfig, transformer: TransformerConfig = SMALL, sees: Any = None, **changes
) -> Any:
    """Return a latent action model for what a tokenizer sees, whose codes lie anywhere."""
    small = dataclasses.replace(tiny(config(), transformer), **changes)
    model = small.fitted(FRAME, sees or tokenizer()).make(nnx.Rngs(2))
    if hasattr(model, "sums"):
        model.sums[...] = jax.random.normal(jax.random.key(0), model.sums.shape)
    return model


def world(config: type = maskgit.MaskGITConfig, latent: bool = False, context: int = 4) -> WorldModel:
    acts = lam() if latent else None
    actions = ActionSpace("latent", acts.codes) if acts else ACTIONS
    return WorldModel(
        WorldConfig(frame=FRAME, actions=actions, context=context), eyes(config), acts, dynamics(config, actions)
    )


def frames(batch: int = 2, length: int = T, seed: int = 0) -> np.ndarray:
    """Flat patches of random colours and a little noise, uint8 (B, T, H, W, C)."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 240, (batch, length, 2, 2, 3)).repeat(4, axis=2).repeat(4, axis=3)
    return (patches + rng.integers(0, 16, (batch, length, *FRAME))).astype(np.uint8)


def clip(batch: int = 2, length: int = T, seed: int = 0, of: Any = maskgit.MaskGITConfig) -> tuple[Array, Array]:
    """Latents of random frames for dynamics of a config, and actions that led to them."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, ACTIONS.size, (batch, length)).astype(np.int32)
    actions[:, 0] = START
    return jax.jit(eyes(of).encode)(frames(batch, length, seed)), jnp.asarray(actions)


def other(latent: Array) -> Array:
    """Another latent: another code, or a vector elsewhere."""
    return (latent + 1) % 32 if jnp.issubdtype(latent.dtype, jnp.integer) else latent + 0.5


def watch(model: Any, latents: Array, actions: Array) -> tuple[Any, Array]:
    """Observe a clip frame by frame: (state, features of every frame, time first)."""

    def observe(state, inputs):
        return model.observe(state, *inputs)

    time_first = (jnp.swapaxes(latents, 0, 1), jnp.swapaxes(actions, 0, 1))
    return jax.lax.scan(observe, model.empty(len(latents)), time_first)


def state(module: nnx.Module) -> dict[str, np.ndarray]:
    """Every variable of a module by its dotted name, copied."""
    return {".".join(map(str, path)): np.array(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(module))}


def rows_over_devices(*arrays: Array) -> list[Array]:
    """Arrays spread by rows over the four CPU devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    return [jax.device_put(array, rows) for array in arrays]
