"""A group of layers, split over the axes "tensor" and "sequence" of the mesh: each device runs a smaller group.

"tensor" splits heads and hidden units: a device has their columns of the matrices before them, and their rows of the
matrices after them, whose outputs are summed (``nn.linear``; Megatron-LM, arXiv 1909.08053). Matrices are stored with
blocks of columns side by side (q, k and v; value and gate), so columns are dealt out first: a device gets its share of
every block. Only weights move for that, and never activations.

"sequence" splits frames. A device computes its own frames; time attention gathers the keys and values of all frames.

With caches, where a frame is played, groups are not split: every device of these axes does the same.

Shapes: B batch, T time, N tokens per frame, M model width.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from reverie.nn.layers import AttentionInputs, run_group
from reverie.nn.placement import constrained, mesh_here, size, spread


def splits() -> bool:
    """Whether the mesh for which a program is traced splits groups of layers."""
    return size("tensor") > 1 or size("sequence") > 1


def padding(frames: int) -> int:
    """Return how many frames a clip needs more, so that "sequence" divides them."""
    return -frames % size("sequence")


def run_split(graph: Any, weights: Any, x: Array, inputs: AttentionInputs) -> Array:
    """Run a group of layers over whole clips (B, T, N, M), as ``run_group`` without caches, split over the mesh."""
    weights, of_weights = _dealt(inputs.config, weights)
    mesh = mesh_here()
    assert mesh is not None
    rows, *frames = (*spread(mesh, x.shape[:2]), None)[:2]
    clips = PartitionSpec(rows, *frames)
    # Masks for each frame (B*T, N, N), and for each token (B*N, T, T), are divided as clips are.
    space, time = inputs.space_mask, inputs.time_mask
    space = space if space is None or space.ndim == 2 else space.reshape(*x.shape[:2], *space.shape[1:])
    time = time if time is None or time.ndim == 2 else time.reshape(len(x), -1, *time.shape[1:])
    of_space = PartitionSpec() if space is None or space.ndim == 2 else clips
    of_time = PartitionSpec(*frames) if time is None or time.ndim == 2 else PartitionSpec(rows, None, *frames)

    def part(weights: Any, x: Array, space: Any, time: Any, rotation: Any) -> Array:
        space = space if space is None or space.ndim == 2 else space.reshape(-1, *space.shape[2:])
        time = time if time is None or time.ndim == 2 else time.reshape(-1, *time.shape[2:])
        own = inputs._replace(space_mask=space, time_mask=time, time_rotation=rotation)
        return run_group(nnx.merge(graph, weights), x, own, None, None)[0]

    # With check_vma, gradients written by hand would be refused, such as those of ``nn.linear``.
    of_inputs = (of_weights, clips, of_space, of_time, PartitionSpec(*frames))
    split = jax.shard_map(part, mesh=mesh, in_specs=of_inputs, out_specs=clips, check_vma=False)
    return split(weights, x, space, time, inputs.time_rotation)


def _dealt(config: Any, weights: Any) -> tuple[Any, Any]:
    """Return a group's weights with dealt columns, and how each is divided over "tensor"."""
    c, kv = config, config.kv_heads or config.heads
    hidden = (c.hidden or 4 * c.width,) * (1 + (c.activation == "swiglu"))
    sizes = {"qkv": (c.heads * c.head, kv * c.head, kv * c.head), "up": hidden}
    heads, units = _divides("heads and key/value heads", c.heads, kv), _divides("hidden units", *hidden)
    cut = {"qkv": heads, "out": heads, "up": units, "down": units}
    specs = []

    def deal(path: Any, weight: Array) -> Array:
        name = next(
            (key for key in cut if key in jax.tree_util.keystr(path, simple=True, separator=".").split(".")), ""
        )
        columns = (*[None] * (weight.ndim - 1), "tensor")
        if not cut.get(name):
            specs.append(PartitionSpec())
            return constrained(weight)
        specs.append(PartitionSpec(*columns) if name in sizes else PartitionSpec("tensor"))
        return constrained(_in_shares(weight, sizes[name]), *columns) if name in sizes else weight

    weights = jax.tree_util.tree_map_with_path(deal, weights)
    return weights, jax.tree.unflatten(jax.tree.structure(weights), specs)


def _in_shares(weight: Array, sizes: Sequence[int]) -> Array:
    """Reorder columns, which are blocks of these ``sizes``: one device's share of all blocks, then the next one's."""
    blocks = jnp.split(weight, np.cumsum(sizes)[:-1].tolist(), axis=-1)
    shares = [block.reshape(*block.shape[:-1], size("tensor"), -1) for block in blocks]
    reordered = jnp.concatenate(shares, axis=-1).reshape(weight.shape)
    # Rows of a matrix stay where they are until its columns are in order: one exchange, not one for each block.
    return constrained(reordered, "tensor", None) if weight.ndim == 2 else reordered


def _divides(what: str, *counts: int) -> bool:
    """Whether "tensor" divides each of these counts; a line says so if it does not."""
    if whole := any(count % size("tensor") for count in counts):
        _say_whole(f"all {what} ({', '.join(map(str, counts))})", size("tensor"))
    return not whole


@cache  # once for each
def _say_whole(what: str, size: int) -> None:
    if jax.process_index() == 0:
        print(f"Every device computes {what}, since these cannot be divided by tensor={size}.", flush=True)
