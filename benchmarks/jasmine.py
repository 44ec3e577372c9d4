"""Jasmine itself beside us, from a checkout of it: its training step and its sampler, at equal sizes and as it ships.

``python -m benchmarks.jasmine CHECKOUT`` (https://github.com/p-doom/jasmine, measured at 420859b) needs ``dm-pix``,
``tyro`` and ``wandb`` besides. Everything of Jasmine is called, nothing is copied: its step is a closure inside its
``main``, and is cut out of there. Its own defaults stay, except for the sizes, float32 (a CPU has no other fast type)
and flash attention, which it has on GPUs only.

Shapes: B batch, T time, H W C image.
"""

import argparse
import ast
import dataclasses
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.predecessor import make_world
from benchmarks.timing import Figure, interleaved, milliseconds, ratio, tell
from benchmarks.training import Sizes, sides
from reverie.world import Session, with_passes

TRAINED = (Sizes(), Sizes(patch=8))
FEWER = (4, 2, 1)  # sampling passes
PLAYED = tuple(Sizes(patch=patch, width=256, hidden=1024) for patch in (16, 4))
STEP = ("dynamics_loss_fn", "train_step")  # closures inside its main()


class Jasmine:
    """The modules of a checkout."""

    def __init__(self, checkout: Path):
        sys.path.insert(0, str(checkout))
        self.script: Any = import_module("jasmine.baselines.maskgit.train_dynamics_maskgit")
        blocks: Any = import_module("jasmine.utils.nn").AxialTransformer
        keep = blocks.__setattr__
        # It holds its layers in a plain list, which flax no longer takes for modules.
        blocks.__setattr__ = lambda net, name, value: keep(
            net, name, nnx.List(value) if isinstance(value, list) else value
        )

    def model(self, sizes: Sizes) -> tuple[Any, Any]:
        """Return its arguments for these sizes, and tokenizer, latent action model and dynamics in one module."""
        names = {"dim": sizes.width, "ffn_dim": sizes.hidden, "num_blocks": sizes.depth, "num_heads": sizes.heads}
        nets = {f"{part}_{name}": size for part in ("tokenizer", "lam", "dyna") for name, size in names.items()}
        args = self.script.Args(
            **nets,
            batch_size=sizes.batch,
            seq_len=sizes.length,
            image_height=sizes.frame[0],
            image_width=sizes.frame[1],
            patch_size=sizes.patch,
            lam_patch_size=sizes.patch,
            latent_patch_dim=sizes.latent,
            latent_action_dim=sizes.latent,
            num_patch_latents=sizes.codes,
            num_actions=sizes.actions,
            lam_checkpoint="trained before",
            use_flash_attention=False,
        )
        args.dtype = jnp.float32
        return args, self.script.build_model(args, jax.random.key(0))[0]

    def training(self, sizes: Sizes, frames: np.ndarray) -> Callable[[], Any]:
        """Return its step over frames uint8 (B, T, H, W, C), as a call."""
        args, model = self.model(sizes)
        optimizer = self.script.build_optimizer(model, args)
        tree = ast.parse(Path(self.script.__file__).read_text("utf8"))
        step: list[ast.stmt] = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in STEP
        ]
        space = vars(self.script) | {"args": args}
        exec(compile(ast.Module(step, []), self.script.__file__, "exec"), space)
        return lambda: space["train_step"](optimizer, {"videos": frames, "rng": jax.random.key(0)})

    def playing(self, sizes: Sizes, frames: np.ndarray, passes: int) -> Callable[[], Any]:
        """Return a call that generates one frame after frames uint8 (1, T, H, W, C), the picture on the host."""
        model, length = self.model(sizes)[1], frames.shape[1]
        model.eval()
        actions = jnp.zeros((length, 1), jnp.int32)
        batch = {"videos": frames / np.float32(255), "latent_actions": actions, "rng": jax.random.key(0)}
        sample = nnx.jit(lambda model, batch: model.sample(batch, length + 1, 1.0, False, passes)[0][:, -1])
        return lambda: np.asarray(sample(model, batch))


def training(peer: Jasmine, sizes: Sizes, seconds: float) -> Iterator[Figure]:
    """Yield a training step of each, and theirs by ours. ``hidden`` trains as it does; ``clean`` is our default."""
    ours = sides(sizes)
    calls = {
        "jasmine": peer.training(sizes, sizes.noise(sizes.batch)),
        "hidden": ours["hidden"],
        "clean": ours["clean"],
    }
    yield from figures("train_step", "ms/step", calls, sizes, seconds)


def playing(peer: Jasmine, sizes: Sizes, seconds: float) -> Iterator[Figure]:
    """Yield the time of a frame after 16 others, from the action to the picture, and theirs by ours.

    Its 25 passes stand against our 25, and against the fewer that cost a trained world nothing (docs/speed.md).
    """
    length = sizes.length + 1  # 16 frames and the new one
    tokenizer, lam, dynamics = dataclasses.replace(sizes, length=length).models("clean")
    world, frames = make_world(tokenizer, lam, dynamics, nnx.Rngs(0)), sizes.noise(1)

    def ours(passes: int) -> Callable[[], Any]:
        session = Session(with_passes(world, passes))
        session.reset(frames[0])
        return lambda: session.step(0)

    calls = {"jasmine": peer.playing(sizes, frames, dynamics.passes), "reverie": ours(dynamics.passes)}
    calls |= {f"reverie_{passes}_passes": ours(passes) for passes in FEWER}
    yield from figures("played_frame", "ms/frame", calls, sizes, seconds)


def figures(name: str, unit: str, calls: dict[str, Callable], sizes: Sizes, seconds: float) -> Iterator[Figure]:
    """Yield the time of every side, and Jasmine's by each of the others'."""
    times = interleaved(calls, seconds=seconds)
    names = {side: f"{name}_{side}_{sizes.tokens}" for side in calls}
    about = dataclasses.asdict(sizes)
    for side, taken in times.items():
        yield Figure(names[side], milliseconds(taken), unit, config=about)
    for side in list(calls)[1:]:
        gain = ratio(times["jasmine"], times[side])
        yield Figure(f"{name}_{side}_vs_jasmine_{sizes.tokens}", gain, "x", (names["jasmine"], names[side]), about)


def measure(checkout: Path, seconds: float = 30.0) -> Iterator[Figure]:
    """Yield all figures."""
    peer = Jasmine(checkout)
    for sizes in PLAYED:
        yield from playing(peer, sizes, seconds)
    for sizes in TRAINED:
        yield from training(peer, sizes, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jasmine", description=__doc__)
    parser.add_argument("checkout", type=Path, help="the folder that holds its pyproject.toml")
    tell(measure(parser.parse_args().checkout))
