"""Sharding over one mesh with one axis, "data". Rows of a batch are sharded; weights are replicated or sharded too.

Models do not depend on this. A rule over shapes decides the sharding of each array, ``nn.placement`` constrains that of
activations, and XLA inserts the communication.
"""

import math
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from reverie.errors import ReverieError
from reverie.nn.placement import Place

Layout = Literal["data", "fsdp"]
SPREAD_FROM = 2**14  # elements; smaller arrays are replicated, since gathering them costs more than it saves


def connect() -> bool:
    """Connect to the other processes of this job if the environment names any; return whether it does.

    Slurm, Open MPI and Cloud TPU pods are recognised by their variables; anywhere else set JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. On a plain machine this does nothing. Call it before anything touches JAX.
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
    )
    if several:
        jax.distributed.initialize()
    return several


def wait_for_all(what: str) -> None:
    """Wait at a barrier for every process of the job; on one process, return at once."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def by_first(work: Callable[[], Any]) -> None:
    """Run ``work`` on process 0, the coordinator, after a barrier; the others wait for it.

    Its exception is raised on process 0. The others raise a ReverieError, so that none waits for a process that ended.
    """
    wait_for_all("what the first does")
    failure: BaseException | None = None
    if jax.process_index() == 0:
        try:
            work()
        except BaseException as error:
            failure = error
    failed = failure is not None
    if jax.process_count() > 1:
        with explicit_transfers():
            failed = bool(multihost_utils.process_allgather(np.bool_(failed)).any())
    if failure is not None:
        raise failure
    if failed:
        raise ReverieError("process 0 of this job has failed; its own error says why.")


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


def make_mesh() -> Mesh:
    """Return the mesh over every device of every process."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def sharding(mesh: Mesh, shape: tuple[int, ...], layout: Layout) -> NamedSharding:
    """Return the sharding of an array of the training state: "data" replicates it, "fsdp" shards the large ones.

    An array is sharded along its largest axis that the number of devices divides (the last one of equals).
    """
    axes: list[str | None] = [None] * len(shape)
    fits = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if layout == "fsdp" and fits and math.prod(shape) >= SPREAD_FROM:
        axes[max(fits, key=lambda axis: (shape[axis], axis))] = "data"
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(mesh: Mesh, tree: Any, layout: Layout) -> Any:
    """``sharding`` for every array (or ShapeDtypeStruct) of a tree."""
    return jax.tree.map(lambda leaf: sharding(mesh, leaf.shape, layout), tree)


def place(mesh: Mesh, layout: Layout) -> Place:
    """Return the placement of activations and weights in a program that is traced for a mesh."""
    return Place(rows(mesh), everywhere(mesh), lambda shape: sharding(mesh, shape, layout))


def say_copied(mesh: Mesh, arrays: dict[str, Any], layout: Layout) -> None:
    """Print one line per job about the large arrays that "fsdp" must replicate, because no axis can be divided."""
    large = {name: a for name, a in arrays.items() if math.prod(a.shape) >= SPREAD_FROM}
    named = [name for name, a in large.items() if sharding(mesh, a.shape, layout).is_fully_replicated]
    said = [f"{n} {large[n].shape} {large[n].size * large[n].dtype.itemsize / 1e6:.3g} MB" for n in named]
    if layout == "fsdp" and mesh.size > 1 and said and jax.process_index() == 0:
        print(f"On every device whole, since no axis can be divided by {mesh.size}: {', '.join(said)}.", flush=True)


def whole(mesh: Mesh, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the arrays, replicated on every device."""
    if all(array.is_fully_replicated for array in arrays.values()):
        return arrays
    return jax.jit(lambda arrays: arrays, out_shardings=everywhere(mesh))(arrays)


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of a replicated array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of an array by rows."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return global arrays, sharded by rows, from the rows of a batch that this process read."""
    with explicit_transfers():
        return {name: jax.make_array_from_process_local_data(rows(mesh), array) for name, array in batch.items()}


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


def explicit_transfers() -> Any:
    """Allow explicit transfers inside; with several processes JAX counts even these as implicit."""
    return jax.transfer_guard("allow")


def check_batch(mesh: Mesh, batch: int, accumulate: int) -> None:
    """Raise ReverieError unless ``accumulate`` parts of a batch have equally many rows for every device."""
    parts = mesh.size * accumulate
    if batch < 1 or accumulate < 1 or batch % parts:
        raise ReverieError(
            f"a batch of {batch} cannot be shared by {mesh.size} devices in {accumulate} parts: "
            f"make it a multiple of {parts}."
        )
