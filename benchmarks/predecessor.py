"""A training step of dynamics with the structure of open replicas of Genie (Jasmine, Jafar), built from our layers.

Only the structure is theirs. The frozen tokenizer and latent action model run in every step, and a runtime condition on
whether actions are trained keeps the backward pass of the latter. Every step decodes its prediction and computes each
top-k separately. Activations are always recomputed; gradients, moments and weight decay cover all weights. The layers
and SSIM are ours, and faster than theirs (docs/speed.md has the time of Jasmine itself).

Shapes: B batch, T time, H W C image, N tokens per frame, V codes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from reverie.actions import ActionSpace
from reverie.data.episode import Dataset, Spec
from reverie.models.dynamics import DynamicsConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.batch import Loss, mean
from reverie.nn.image import psnr, ssim
from reverie.nn.quantise import usage
from reverie.world import WorldConfig, WorldModel


def optimizer() -> optax.GradientTransformation:
    """AdamW as there: nothing clipped, everything decayed, frozen or not, kernel or not."""
    return optax.adamw(1.0, b1=0.9, b2=0.9, weight_decay=1e-4, mu_dtype=jnp.float32)


@dataclass(frozen=True)
class PredecessorObjective:
    """An ``engine.Objective`` whose step does everything at once."""

    tokenizer: VQVAEConfig
    lam: PixelLAMConfig
    dynamics: MaskGITConfig
    trains_actions: bool = False
    reads: ClassVar[tuple[str, ...]] = ("frames",)
    encoder: ClassVar[None] = None
    frozen: tuple[str, ...] = ()  # that is the point: what is called frozen is known to the loss only

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> WorldModel:
        """Build all three models, activations recomputed; the action model's decoder is thrown away after training."""
        tokenizer = replace(
            self.tokenizer, encoder=_remat(self.tokenizer.encoder), decoder=_remat(self.tokenizer.decoder)
        )
        lam = replace(self.lam, encoder=_remat(self.lam.encoder), decoder=replace(self.lam.decoder, depth=0))
        dynamics = replace(self.dynamics, transformer=_remat(self.dynamics.transformer))
        return make_world(tokenizer, lam, dynamics, rngs)

    def prepare(self, model: nnx.Module, dataset: Dataset, cache: Path) -> Dataset:
        """The step reads pixels."""
        return dataset

    def loss(self, model: Any, batch: dict[str, Array], keys_B: Array, progress: Array) -> Loss:
        """Return the dynamics' loss on frames uint8 (B, T, H, W, C), and all that is measured in every step."""
        frames = batch["frames"]
        tokens = jax.lax.stop_gradient(model.tokenizer.encode(frames))
        actions, _ = model.lam.relaxed(frames, keys_B)
        # Both branches are differentiated, so the frozen one carries zeros back through the whole action model.
        actions = jax.lax.cond(self.trains_actions, lambda x: x, jax.lax.stop_gradient, actions)
        x, hidden = model.dynamics._predict_masked(tokens, actions, keys_B)
        logits, target = model.dynamics._logits(x), tokens[:, 1:]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        measured = _measured(model, frames, tokens, actions, logits, hidden)
        return Loss((mean(nats, hidden),), {name: mean(value) for name, value in measured.items()})

    def report(self, model: Any, batch: dict[str, Array], key: Array) -> dict[str, Array]:
        """Everything was measured in the step already."""
        return {}


def make_world(tokenizer: VQVAEConfig, lam: PixelLAMConfig, dynamics: DynamicsConfig, rngs: nnx.Rngs) -> WorldModel:
    """Return a world of latent actions, untrained."""
    eyes, actor = tokenizer.make(rngs), lam.make(rngs)
    actions = ActionSpace("latent", actor.codes)
    return WorldModel(
        WorldConfig(frame=tokenizer.frame, actions=actions, context=16),
        eyes,
        actor,
        dynamics.fitted(eyes, actions).make(rngs),
    )


def _remat(net: Any) -> Any:
    return replace(net, remat="full")


def _measured(model: Any, frames, tokens, actions, logits, hidden) -> dict[str, Array]:
    def share(x: Array) -> Array:
        return jnp.sum(x * hidden) / (jnp.sum(hidden) + 1e-6)

    target = tokens[:, 1:]
    painted = model.tokenizer.decode(tokens.at[:, 1:].set(jnp.argmax(logits, axis=-1).astype(jnp.int32)))

    def found(k: int) -> Array:
        best = jax.lax.top_k(logits, min(k, logits.shape[-1]))[1]
        return jnp.any(best == target[..., None], axis=-1).astype(jnp.float32)

    p = jax.nn.softmax(logits)
    metrics = {f"top{k}": share(found(k)) for k in (1, 2, 5, 16)}
    return metrics | {
        "select_logit": share(jnp.max(logits, axis=-1)),
        "select_p": share(jnp.max(p, axis=-1)),
        "entropy": share(-jnp.sum(p * jnp.log(p + 1e-10), axis=-1)),
        "z_loss": jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1))),
        "psnr": jnp.mean(psnr(frames, painted)),
        "ssim": jnp.mean(ssim(frames, painted)),
        "usage_tokens": usage(tokens, model.tokenizer.codes)["usage"].value,
        "usage_actions": usage(jnp.argmax(actions, axis=-1), model.lam.codes)["usage"].value,
    }
