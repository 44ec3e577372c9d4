"""Sharding over one mesh of devices with several axes, each of which divides something else.

Rows of a batch are divided over the axes "data" and "fsdp". Weights, moments and averages are replicated over "data"
and divided over "fsdp" (hierarchical sharding, where both are larger than one). "tensor" divides the work of a layer,
and its weights: heads, hidden units, codes. "sequence" divides frames (``nn.split``).

Models do not depend on this. One table decides the sharding of each array by its name and shape, ``nn.placement``
constrains that of activations, and XLA inserts the communication.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from reverie.errors import ReverieError, did_you_mean
from reverie.nn.placement import ROWS, Place, spread

AXES = ("data", "fsdp", "tensor", "sequence")  # the innermost last: its devices are the closest to each other
SPREAD_FROM = 2**14  # elements; smaller arrays are replicated, since gathering them costs more than it saves
# The axis of a weight that "tensor" cuts, by the end of its name, and the axis that it cuts where the weight is used.
# Columns of ``qkv`` and ``up`` are blocks side by side: stored by rows, they are dealt out before use (``nn.split``).
# Weights without a rule are divided where they are stored, and whole where they are used.
RULES = {
    r"(space|time)\.qkv\.kernel": -2,
    r"(space|time)\.out\.kernel": -2,
    r"mlp\.up\.kernel": -2,
    r"mlp\.down\.kernel": -2,
    r"head\.kernel": -1,
}


def connect() -> bool:
    """Connect to the other processes of this job if the environment names any; return whether it does.

    Slurm, Open MPI and slices of Cloud TPUs are recognised by their variables; anywhere else set
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. On a plain machine this does nothing. Call it before
    anything touches JAX.
    """
    env = os.environ
    if jax.distributed.is_initialized():
        return True
    if "JAX_COORDINATOR_ADDRESS" in env and "JAX_PROCESS_ID" in env:
        jax.distributed.initialize(
            env["JAX_COORDINATOR_ADDRESS"],
            int(env.get("JAX_NUM_PROCESSES", "1")),
            int(env["JAX_PROCESS_ID"]),
            cluster_detection_method="deactivate",  # else JAX looks for the package of Kubernetes, and warns
        )
        return True
    several = (
        ("SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", "1")) > 1)
        or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or int(env.get("MEGASCALE_NUM_SLICES", "1")) > 1
    )
    if several:
        jax.distributed.initialize()
    return several


def wait_for_all(what: str) -> None:
    """Wait at a barrier for every process of the job; on one process, return at once."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def by_first(work: Callable[[], Any]) -> None:
    """Run ``work`` on process 0, the coordinator, after a barrier; the others wait for it. Errors: see ``by_all``."""
    by_all(lambda: work() if jax.process_index() == 0 else None)


def by_all(work: Callable[[], Any]) -> None:
    """Run ``work`` on every process after a barrier, and wait for all of them.

    An exception is raised on the process that had it. The others raise a ReverieError, so that none waits for a process
    that ended.
    """
    wait_for_all("what all do")
    failure: BaseException | None = None
    try:
        work()
    except BaseException as error:
        failure = error
    failed = np.array([failure is not None])
    if jax.process_count() > 1:
        with explicit_transfers():
            failed = np.ravel(multihost_utils.process_allgather(failed))
    if failure is not None:
        raise failure
    if failed.any():
        raise ReverieError(f"process {failed.argmax()} of this job has failed; its own error says why.")


def from_first(work: Callable[[], int]) -> int:
    """Run ``work`` as ``by_first`` does, and return its result on every process."""
    found = [0]

    def kept() -> None:
        found[0] = work()

    by_first(kept)
    if jax.process_count() > 1:
        with explicit_transfers():
            found[0] = int(multihost_utils.broadcast_one_to_all(np.int32(found[0])))
    return found[0]


def axes_of(layout: str) -> dict[str, int]:
    """Return the axes that a layout such as "data=2,fsdp=4" names, and their sizes; 0: all devices that are left.

    Raises ReverieError for an unknown axis, one named twice, a size below 1, or two axes without a size.
    """
    found: dict[str, int] = {}
    for part in layout.split(","):
        name, _, size = part.strip().partition("=")
        wrong = ""
        if name not in AXES:
            wrong = f"is not an axis.{did_you_mean(name, AXES)}"
        elif name in found:
            wrong = "names an axis again."
        elif not re.fullmatch(r"(=[1-9]\d{0,6})?", part.strip().removeprefix(name)):
            wrong = "has no size: a whole number above 0."
        if wrong:
            known = f"axes are {', '.join(AXES)}, each at most once, as in 'fsdp' or 'data=2,fsdp=4'."
            raise ReverieError(f"mesh '{layout}': '{part.strip()}' {wrong} The {known}")
        found[name] = int(size or 0)
    if list(found.values()).count(0) > 1:
        raise ReverieError(f"mesh '{layout}': only one axis can take all devices that are left; size the others.")
    return found


def laid_over() -> Sequence[Any]:
    """Return the devices of every process of the job."""
    return jax.devices()


def sizes_of(layout: str, devices: int) -> dict[str, int]:
    """Return the axes of a layout and their sizes; one without a size takes what is left of ``devices``."""
    sizes = axes_of(layout)
    sizes = sizes if 0 in sizes.values() or "data" in sizes else {"data": 0, **sizes}
    taken = math.prod(size for size in sizes.values() if size)
    return {name: size or max(devices // taken, 1) for name, size in sizes.items()}


def sketched(layout: str) -> AbstractMesh:
    """Return a mesh of these sizes without devices, which need not be here: what knows how arrays would lie."""
    sizes = sizes_of(layout, len(laid_over()))
    return AbstractMesh(tuple(sizes.get(name, 1) for name in AXES), AXES)


def make_mesh(layout: str = "data", devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of a layout over ``devices``, ``laid_over()`` if they are not given.

    An axis without a size takes the devices that are left; if each named axis has one, "data" does. Where TPUs form
    several slices, "data" runs over them, so that only gradients pass the network between them. Raises ReverieError if
    the sizes do not multiply to the number of devices, or if the slices do not divide "data".
    """
    devices = laid_over() if devices is None else devices
    sizes = sizes_of(layout, len(devices))
    if math.prod(sizes.values()) != len(devices):
        wanted = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ReverieError(
            f"mesh '{layout}' cannot be laid over {len(devices)} devices ({wanted}): choose other sizes."
        )
    shape = tuple(sizes.get(name, 1) for name in AXES)
    types = (AxisType.Auto,) * len(AXES)
    slices = slices_of(devices)
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    check_slices(layout, shape[0], slices)
    each = shape[0] // slices, *shape[1:]
    between = slices, *[1] * len(shape[1:])
    laid = mesh_utils.create_hybrid_device_mesh(each, between, devices, allow_split_physical_axes=True)
    return Mesh(laid, AXES, axis_types=types)


def slices_of(devices: Sequence[Any]) -> int:
    """Return how many slices of TPUs these devices form: links are fast within a slice, a network joins slices."""
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1


def check_slices(layout: str, data: int, slices: int) -> None:
    """Raise ReverieError unless ``slices`` divide an axis "data" of this size."""
    if data % slices:
        raise ReverieError(
            f"mesh '{layout}' has data {data}, which {slices} slices do not divide: between slices only data can run, "
            f"as in 'data={slices},fsdp'."
        )


def mesh_of(tree: Any) -> Mesh:
    """Return the mesh "data" over all devices that have parts of these arrays."""
    where = next((leaf.sharding for leaf in jax.tree.leaves(tree)), None)
    if where is None:
        return make_mesh()
    found = where.mesh.devices if isinstance(where, NamedSharding) else list(where.device_set)
    return make_mesh("data", list(np.ravel(np.asarray(found))))


def sharding(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding of an array of the training state, by its dotted name and its shape.

    "tensor" cuts the axis that ``RULES`` name. Otherwise a large array is sharded along its largest axis that the size
    of "fsdp" (then that of "tensor") divides; of equals, along the last one.
    """
    if math.prod(shape) < SPREAD_FROM:
        return everywhere(mesh)
    axes = list(in_use(mesh, name, shape).spec)
    for way in ("fsdp", "tensor"):
        free = [axis for axis, size in enumerate(shape) if axes[axis] is None and size % mesh.shape[way] == 0]
        if mesh.shape[way] > 1 and way not in axes and free:
            axes[max(free, key=lambda axis: (shape[axis], axis))] = way
    return NamedSharding(mesh, PartitionSpec(*axes))


def in_use(mesh: Mesh | AbstractMesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding of a weight where a program uses it: whole, but for what "tensor" cuts by ``RULES``."""
    axes: list[str | None] = [None] * len(shape)
    axis = next((axis for end, axis in RULES.items() if re.search(rf"(^|\.){end}$", name)), None)
    size = mesh.shape["tensor"]
    if size > 1 and axis is not None and shape[axis] % size == 0:
        axes[axis] = "tensor"
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """``sharding`` for every array (or ShapeDtypeStruct) of a tree, named by its path in it."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: sharding(mesh, jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape), tree
    )


def place(mesh: Mesh) -> Place:
    """Return the placement of activations and weights in a program that is traced for a mesh."""
    return Place(mesh, partial(sharding, mesh), partial(in_use, mesh))


def say_copied(mesh: Mesh, arrays: dict[str, Any]) -> None:
    """Print a line per job for each axis of the mesh that cannot divide some large arrays, which are then copied."""
    large = {name: a for name, a in arrays.items() if math.prod(a.shape) >= SPREAD_FROM}
    for way in ("fsdp", "tensor"):
        size = mesh.shape[way]
        named = [name for name, a in large.items() if way not in sharding(mesh, name, a.shape).spec]
        said = [f"{n} {large[n].shape} {large[n].size * large[n].dtype.itemsize / 1e6:.3g} MB" for n in named]
        if size > 1 and said and jax.process_index() == 0:
            print(f"Copied along {way}, since no axis can be divided by {size}: {', '.join(said)}.", flush=True)


def whole(mesh: Mesh, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the arrays, replicated on every device."""
    if all(array.is_fully_replicated for array in arrays.values()):
        return arrays
    return jax.jit(lambda arrays: arrays, out_shardings=everywhere(mesh))(arrays)


def everywhere(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a replicated array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, number: int = 0) -> NamedSharding:
    """The sharding of an array by rows; of ``number`` rows, over as many devices as divide these evenly."""
    return NamedSharding(mesh, spread(mesh, (number,)))


def row_parts(mesh: Mesh) -> int:
    """Return into how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape[name] for name in ROWS)


def rows_here(mesh: Mesh) -> tuple[int, int]:
    """Return (i, n): this process reads rows i * B / n up to (i + 1) * B / n, those that its devices hold.

    Processes whose devices share rows read the same. ReverieError if a process holds rows that are far apart.
    """
    number = row_parts(mesh)
    held = rows(mesh).addressable_devices_indices_map((number,)).values()
    at = sorted({part[0].indices(number)[0] for part in held if part})
    if at[-1] - at[0] >= len(at) or at[0] % len(at):
        raise ReverieError(
            f"the devices of process {jax.process_index()} hold rows far apart: choose other mesh sizes."
        )
    return at[0] // len(at), number // len(at)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return global arrays, sharded by rows and frames, from the rows that this process read (``rows_here``)."""
    index, parts = rows_here(mesh)

    def put_rows(array: np.ndarray) -> jax.Array:
        total, before = len(array) * parts, len(array) * index
        shape = (total, *array.shape[1:])

        def part(where: Any) -> np.ndarray:
            start, stop, _ = where[0].indices(total)
            return array[(slice(start - before, stop - before), *where[1:])]

        return jax.make_array_from_callback(shape, NamedSharding(mesh, spread(mesh, shape)), part)

    with explicit_transfers():
        return {name: put_rows(array) for name, array in batch.items()}


def put(tree: Any, where: Sharding) -> Any:
    """Place arrays that are equal on every process."""

    def put_parts(array: Any) -> jax.Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])

    with explicit_transfers():  # ``device_put`` would first compare the arrays of all processes
        return jax.device_put(tree, where) if jax.process_count() == 1 else jax.tree.map(put_parts, tree)


def fetch(tree: Any) -> Any:
    """Copy sharded arrays to the host of every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    with explicit_transfers():
        return multihost_utils.process_allgather(tree, tiled=True)


def mesh_here(tree: Any) -> Mesh:
    """Return the mesh "data" over those devices of this process that have parts of these arrays; over all if none."""
    here = [device for device in mesh_of(tree).devices.flat if device.process_index == jax.process_index()]
    return make_mesh("data", here or jax.local_devices())


def put_here(tree: Any, where: Sharding) -> Any:
    """Place arrays on devices of this process alone; of an array that other processes have parts of, all of it."""
    whole = jax.tree.map(lambda a: a if getattr(a, "is_fully_addressable", True) else fetch(a), tree)
    with explicit_transfers():
        return jax.device_put(whole, where)


def explicit_transfers() -> Any:
    """Allow explicit transfers inside; with several processes JAX counts even these as implicit."""
    return jax.transfer_guard("allow")


def check_batch(mesh: Mesh, batch: int, accumulate: int) -> None:
    """Raise ReverieError unless ``accumulate`` parts of a batch have equally many rows for every device."""
    parts = row_parts(mesh) * accumulate
    if batch < 1 or accumulate < 1 or batch % parts:
        shared = f"shared by {row_parts(mesh)} devices" + f" in {accumulate} parts" * (accumulate != 1)
        raise ReverieError(f"a batch of {batch} cannot be {shared}: make it a multiple of {parts}.")
