"""The objectives of the stages: tokenizer, latent actions, dynamics. ``engine.Objective`` is their contract.

Shapes: B batch, T time, H W C image, N tokens per frame.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from reverie import config
from reverie.actions import ActionSpace
from reverie.data.episode import Dataset, Spec
from reverie.errors import ReverieError
from reverie.models.dynamics import DynamicsConfig
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.lams import LAMConfig
from reverie.models.lams.pixels import PixelLAMConfig
from reverie.models.lams.tokens import TokenLAMConfig
from reverie.models.tokenizers import TokenizerConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.batch import Loss, draw_rows, fold_keys, split_keys
from reverie.nn.embed import random_actions
from reverie.nn.image import psnr
from reverie.nn.patch import to_uint8
from reverie.nn.quantise import usage
from reverie.nn.transformer import unstack_layers
from reverie.training.checkpoint import load
from reverie.training.tokens import Joined, cached
from reverie.world import WorldConfig, WorldModel, rollout

Scalars = dict[str, Array]
Encode = Callable[[Any, dict[str, Array]], dict[str, Array]]  # (model, batch) -> what the step reads besides the data
SHOWN = 4  # clips in a report's picture


@dataclass(frozen=True, kw_only=True)
class TokenizerObjective:
    """Train a tokenizer: encode a frame as a few codes or vectors, and decode it."""

    tokenizer: TokenizerConfig = field(kw_only=False, default_factory=VQVAEConfig)
    frozen: tuple[str, ...] = ()  # parts of the model that are not trained

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> nnx.Module:
        """Return a new tokenizer for frames of ``spec``."""
        return config.replace(self.tokenizer, frame=spec.frame).make(rngs)

    @property
    def reads(self) -> tuple[str, ...]:
        """Frames only."""
        return ("frames",)

    @property
    def encoder(self) -> None:
        """None: a step reads frames as they are."""

    def prepare(self, model: nnx.Module, dataset: Dataset, cache: Path) -> Dataset:
        """Return the dataset itself."""
        return dataset

    def loss(self, model: Any, batch: dict[str, Array], keys_B: Array, progress: Array) -> Loss:
        """Return the tokenizer's loss."""
        return model.loss(batch["frames"], keys_B)

    def report(self, model: Any, batch: dict[str, Array], key: Array) -> dict[str, Array]:
        """Return PSNR of reconstructions, usage of codes, and a picture of frames above their reconstructions."""
        latents = model.encode(batch["frames"])
        decoded = to_uint8(model.decode(latents))
        used = _codes(latents, model.codes) if model.codes else {}
        return {"psnr": jnp.mean(psnr(batch["frames"], decoded)), **used, "picture": _sheet(batch["frames"], decoded)}


@dataclass(frozen=True, kw_only=True)
class LatentActionObjective:
    """Train a latent action model: encode the transition between two frames as one of a few codes."""

    lam: LAMConfig = field(kw_only=False, default_factory=TokenLAMConfig)
    tokenizer: str = "../tokenizer"  # its run's folder, relative to this run's; empty for a model that reads pixels
    frozen: tuple[str, ...] = ("tokenizer",)  # parts of the model that are not trained

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> nnx.Module:
        """Return a new latent action model for frames of ``spec``."""
        tokenizer = _tokenizer(folder / self.tokenizer, spec) if self.tokenizer else None
        model = self.lam.fitted(spec.frame, tokenizer).make(rngs)
        if tokenizer is not None:
            model.tokenizer = tokenizer
        return model

    @property
    def reads(self) -> tuple[str, ...]:
        """Tokens or frames, whichever the model reads."""
        return ("latents",) if self.tokenizer else ("frames",)

    @property
    def encoder(self) -> Encode | None:
        """The tokenizer, where the model reads tokens."""
        return _see if self.tokenizer else None

    def prepare(self, model: Any, dataset: Dataset, cache: Path) -> Dataset:
        """Return the dataset with cached tokens if the model reads tokens, else the dataset itself."""
        if not (encode := self.encoder):
            return dataset
        return Joined(dataset, cached(model, encode, dataset, model.tokenizer.receptive_field, cache, self.frozen))

    def loss(self, model: Any, batch: dict[str, Array], keys_B: Array, progress: Array) -> Loss:
        """Return the model's loss."""
        return model.loss(batch[self.reads[0]], keys_B, progress)

    def report(self, model: Any, batch: dict[str, Array], key: Array) -> dict[str, Array]:
        """Return PSNR of the next frame predicted from the past and a code, usage of codes, and a picture."""
        predicted = to_uint8(model.predict(batch["frames"]))
        codes = model.infer(batch["frames"])[:, 1:]
        truth = batch["frames"][:, 1:]
        numbers = {"psnr": jnp.mean(psnr(truth, predicted)), **_codes(codes, model.codes)}
        return numbers | {"picture": _sheet(truth, predicted)}


@dataclass(frozen=True, kw_only=True)
class DynamicsObjective:
    """Train dynamics: predict the frame that an action leads to, over a frozen tokenizer's latents.

    With ``lam`` the actions are latent, without it recorded. Take "lam" out of ``frozen`` to train it together with the
    dynamics (over pixels). Give a config instead of a folder to train it from scratch.
    """

    dynamics: DynamicsConfig = field(kw_only=False, default_factory=MaskGITConfig)
    tokenizer: str = "../tokenizer"  # folder of the tokenizer's run, relative to this run's
    lam: str | PixelLAMConfig | None = None  # folder of the latent action model's run; None: recorded actions
    context: int = 16  # real frames before a rollout, at most: fewer than a clip in training has
    action_noise: float = 0.0  # share of a frozen model's latent actions replaced by random ones in training
    frozen: tuple[str, ...] = ("tokenizer", "lam")  # parts of the model that are not trained

    def init(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> WorldModel:
        """Return a world with loaded frozen parts and new dynamics."""
        tokenizer, lam = _tokenizer(folder / self.tokenizer, spec), self._lam(rngs, spec, folder)
        actions = spec.actions if lam is None else ActionSpace("latent", lam.codes)
        world = WorldConfig(frame=spec.frame, actions=actions, context=self.context, fps=spec.fps)
        return WorldModel(world, tokenizer, lam, self.dynamics.fitted(tokenizer, actions).make(rngs))

    def _lam(self, rngs: nnx.Rngs, spec: Spec, folder: Path) -> Any:
        if self.lam is None:
            return None
        if isinstance(self.lam, str):
            lam = check_fits(load(folder / self.lam), "infer", "latent action model", folder / self.lam, spec)
        elif self._together:
            lam = self.lam.fitted(spec.frame, None).make(rngs)
        else:
            raise ReverieError("a new latent action model must be trained: take 'lam' out of frozen.")
        if self._together and not hasattr(lam, "relaxed"):
            raise ReverieError(
                f"a {type(lam).__name__} is trained before the dynamics, not with them: give its folder."
            )
        return lam

    @property
    def _together(self) -> bool:
        """Whether the latent action model is trained together with the dynamics."""
        return self.lam is not None and "lam" not in self.frozen

    @property
    def reads(self) -> tuple[str, ...]:
        """Latents and actions; or frames, if the latent action model is trained too."""
        return ("latents", "frames") if self._together else ("latents", "actions")

    @property
    def encoder(self) -> Encode:
        """The tokenizer, and the latent action model unless it is trained along."""
        return _encode_frames if self._together else _encode

    def prepare(self, model: WorldModel, dataset: Dataset, cache: Path) -> Dataset:
        """Return cached latents and actions; with frames only if the latent action model is trained too."""
        lead = model.tokenizer.receptive_field
        if model.lam is not None and not self._together:
            lead = max(lead, model.lam.receptive_field)
        tokens = cached(model, self.encoder, dataset, lead, cache, self.frozen)
        return Joined(dataset, tokens) if self._together else tokens

    def loss(self, model: WorldModel, batch: dict[str, Array], keys_B: Array, progress: Array) -> Loss:
        """Return the dynamics' loss, plus that of the latent action model if it is trained too."""
        if not self._together:
            actions = batch["actions"]
            if self.action_noise and model.lam is not None:
                actions = _with_action_noise(actions, model.config.actions, self.action_noise, fold_keys(keys_B, 1))
            loss = model.dynamics.loss(batch["latents"], actions, keys_B)
            return loss._replace(notes={"dynamics": loss.notes})
        keys_lam, keys_B = split_keys(keys_B, 2)
        actions, lam = model.lam.relaxed(batch["frames"], keys_lam)
        loss = model.dynamics.loss(batch["latents"], actions, keys_B)
        metrics = loss.metrics | {f"lam_{name}": value for name, value in lam.metrics.items()}
        return Loss(loss.terms + lam.terms, metrics, {"dynamics": loss.notes, "lam": lam.notes})

    def report(self, model: WorldModel, batch: dict[str, Array], key: Array) -> dict[str, Array]:
        """Return token accuracy; PSNR of a rollout against the reconstruction, with true and with random actions.

        The rollout generates all frames but the first. The picture shows reconstruction, rollout, and rollout along
        random actions, one below the other.
        """
        model, latents = unstack_layers(model), batch["latents"]
        actions = model.lam.infer(batch["frames"]) if self._together else batch["actions"]
        numbers = model.dynamics.report(latents, actions, key)
        truth = to_uint8(model.tokenizer.decode(latents))
        space = model.config.actions
        others = random_actions(space, key, actions.shape[:2]) if space.size else actions
        start = jnp.asarray(space.start(actions.shape[:1]))

        def generated(along: Array) -> Array:
            state, _ = model.dynamics.observe(model.dynamics.empty(len(latents)), latents[:, 0], start)
            _, steps = rollout(model.dynamics, state, None, along[:, 1:], key, latents.shape[1] - 1)
            frames = jnp.concatenate([latents[:, :1], jnp.swapaxes(steps.latents, 0, 1)], axis=1)
            return to_uint8(model.tokenizer.decode(frames))

        rollouts = jax.vmap(generated)(jnp.stack([actions, others]))  # the same noise, and one program to compile
        near, far = (jnp.mean(psnr(truth[:, 1:], frames[:, 1:])) for frames in rollouts)
        copied = jnp.mean(psnr(truth[:, 1:], jnp.broadcast_to(truth[:, :1], truth[:, 1:].shape)))
        numbers |= {"psnr": near, "psnr_random_actions": far, "delta_psnr": near - far, "psnr_copy_first": copied}
        return numbers | {"picture": _sheet(truth, *rollouts)}


def _with_action_noise(actions_BT: Array, space: ActionSpace, share: float, keys_B: Array) -> Array:
    """Return latent actions with action noise: a share of them is replaced by random ones.

    A latent action encodes the transition, so in the data no action occurs in a state where it is impossible. A player
    chooses it there all the same. A world that was never trained on that loses its player, and does not recover. With
    some noise, an impossible action leads to the usual next frame, and a possible one keeps its meaning (docs/log.md).
    """
    keys_where, keys_other = split_keys(keys_B, 2)
    where = draw_rows(jax.random.uniform, keys_where, actions_BT.shape[1:]) < jnp.float32(share)
    others = draw_rows(lambda key: random_actions(space, key, actions_BT.shape[1:]), keys_other)
    return jnp.where(where & (actions_BT >= 0), others, actions_BT)


def _tokenizer(path: Path, spec: Spec) -> Any:
    return check_fits(load(path), "decode_frame", "tokenizer", path, spec)


def check_fits(model: Any, ability: str, kind: str, path: Path, spec: Spec) -> Any:
    """Return a loaded model; ReverieError unless it is of the right kind and its frames have the data's shape."""
    if not hasattr(model, ability):
        raise ReverieError(f"'{path}' is not a {kind}: it holds {type(model).__name__}.")
    if tuple(model.config.frame) != tuple(spec.frame):
        raise ReverieError(f"the {kind} was trained on frames {model.config.frame}, the data has {spec.frame}.")
    return model


def _see(model: Any, batch: dict[str, Array]) -> dict[str, Array]:
    return {"latents": model.see(batch["frames"])}


def _encode(world: WorldModel, batch: dict[str, Array]) -> dict[str, Array]:
    return {"latents": world.encode(batch["frames"]), "actions": world.actions_of(batch["frames"], batch["actions"])}


def _encode_frames(world: WorldModel, batch: dict[str, Array]) -> dict[str, Array]:
    return {"latents": world.encode(batch["frames"])}


def _codes(codes: Array, number: int) -> Scalars:
    return {f"code_{name}": share.value for name, share in usage(codes, number).items()}


def _sheet(*rows: Array) -> Array:
    """Return a picture (H', W', C) of clips (B, T, H, W, C), one below the other, the rows of a clip together."""
    shown = [row[:SHOWN] for row in rows]
    picture = jnp.stack(shown, axis=1)  # clip, row, time, H, W, C
    clips, kinds, time, height, width, channels = picture.shape
    return jnp.transpose(picture, (0, 1, 3, 2, 4, 5)).reshape(clips * kinds * height, time * width, channels)
