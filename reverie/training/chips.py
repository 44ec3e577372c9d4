"""Machines to plan for: kinds of accelerators with their sizes and rates, and devices to compile for.

Rates are for estimates of time only. Memory decides whether a program fits.
"""

import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from reverie.errors import ReverieError, did_you_mean
from reverie.nn.target import Target
from reverie.training.flops import PEAKS

TPU = "cloud.google.com/tpu/docs/"
POOL = "XLA_PYTHON_CLIENT_MEM_FRACTION"
NETWORK = 50e9  # bytes per second of a GPU to other machines: 400 Gb/s, as many clusters have
BETWEEN = 6.25e9  # bytes per second of a chip to other slices: 50 Gb/s on a v5p (cloud.google.com/tpu/docs/v5p)
MOST = 10_000  # devices: a whole pod of v5p has 8960 chips, and JAX needs minutes to begin with more
NVIDIA = "NVIDIA's data sheet and XLA's description of the device"


class Chip(NamedTuple):
    """One kind of device. ``kind``: how JAX names it, a key of ``flops.PEAKS``. ``memory``: bytes that XLA may use.

    ``bandwidth`` of its memory, and ``link`` to other devices, one way: bytes per second. ``shape``: what follows its
    name in a topology. GPU: ``units``, ``shared`` and ``cache`` are its multiprocessors, the bytes of shared memory of
    one, and those of its cache; ``capability`` as CUDA numbers it; ``node``: how many are in one machine.
    """

    kind: str
    memory: float
    bandwidth: float
    link: float
    source: str
    extra: str = "plan-tpu"
    platform: str = "tpu"
    shape: str = "4x4"
    cores: int = 1  # devices as JAX counts them for each chip
    units: int = 0
    shared: int = 0
    cache: int = 0
    capability: tuple[int, int] = (0, 0)
    node: int = 8

    @property
    def peak(self) -> float:
        """FLOP/s of dense 16-bit matmuls; 0 if unknown."""
        return 1e12 * PEAKS.get(self.kind, 0)


def _gpu(kind: str, memory: float, bandwidth: float, link: float, capability: tuple[int, int], **sizes: Any) -> Chip:
    more: Any = {"extra": "plan-gpu", "platform": "gpu", "shape": "8", "capability": capability}
    return Chip(kind, memory, bandwidth, link, NVIDIA, **more, **sizes)


CHIPS = {
    # 15.75 GiB of 16 and 95.74 GiB of 96 are what the compiler grants; links: the sum of a chip's, one direction.
    "v5e": Chip("TPU v5e", 15.75 * 2**30, 819e9, 200e9, TPU + "v5e", shape="4x4"),
    "v5p": Chip("TPU v5", 95.74 * 2**30, 2765e9, 600e9, TPU + "v5p", shape="4x4x4"),
    "v6e": Chip("TPU v6", 31.25 * 2**30, 1640e9, 400e9, TPU + "v6e", shape="4x4"),
    "h100": _gpu("H100", 84_929_347_584, 3352e9, 450e9, (9, 0), units=132, shared=233_472, cache=52_428_800),
    "h200": _gpu("H200", 150_109_880_320, 4800e9, 450e9, (9, 0), units=132, shared=233_472, cache=62_914_560),
    "a100": _gpu("A100", 85_049_933_824, 2039e9, 300e9, (8, 0), units=108, shared=167_936, cache=41_943_040),
    "cpu": Chip("cpu", 0.0, 0.0, 0.0, "this machine", extra="", platform="cpu", shape="8"),
}
TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  core_count: {units} fpus_per_core: {fpus} clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 13 minor: 0 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""


class Topology(NamedTuple):
    """Chips of one kind: "v5e:16x16" is 256, "2xv5e:16x16" two slices of them, "h100:64" 8 machines of 8."""

    name: str
    chip: Chip
    shape: tuple[int, ...]  # of one slice
    slices: int = 1

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.slices * math.prod(self.shape) * self.chip.cores

    @property
    def target(self) -> Target:
        """What its programs are traced for. GPUs are planned without cuDNN, hence without its flash attention."""
        return Target(self.chip.platform)

    @property
    def limit(self) -> float:
        """Bytes of one device that a program may use. JAX takes three quarters of a GPU's memory, unless POOL is set.

        Devices of a CPU share the memory of this machine.
        """
        if self.chip.platform == "cpu":
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.size
        return self.chip.memory * (float(os.environ.get(POOL, "0.75")) if self.chip.platform == "gpu" else 1.0)

    @property
    def link(self) -> float:
        """Bytes per second from one device to others, one way."""
        return NETWORK if self.chip.platform == "gpu" and self.size > self.chip.node else self.chip.link

    def devices(self, stand_in: bool = False) -> list[Any]:
        """Return devices to compile for, or as many CPU devices to trace for; ReverieError if there are none.

        CPU devices are those of this process, which must have been started with enough of them.
        """
        if stand_in or self.chip.platform == "cpu":
            return jax.devices("cpu")[: self.size]
        try:
            return list(topologies.get_topology_desc(**self._names()).devices)
        except Exception as error:  # whatever a plug-in raises: a missing file, a shape it does not know
            reason = str(error).strip().partition("\n")[0]
            raise ReverieError(f"cannot plan for '{self.name}': {reason}") from None

    def _names(self) -> dict[str, Any]:
        if self.chip.platform == "tpu":
            one = {"platform": "tpu", "topology_name": self.name.removeprefix(f"{self.slices}x")}
            return one | ({"num_slices": self.slices} if self.slices > 1 else {})
        c, (count,) = self.chip, self.shape
        text = TEXT.format(
            **{name: int(getattr(c, name)) for name in ("units", "shared", "cache", "memory", "bandwidth")},
            kind=f"NVIDIA {c.kind}",
            major=c.capability[0],
            minor=c.capability[1],
            optin=c.shared - 1024,
            fpus=128 if c.capability >= (9, 0) else 64,
        )
        return {
            "platform": "cuda",
            "target_config": text,
            "topology": f"1x{max(count // c.node, 1)}x{min(count, c.node)}",
        }


def topology(name: str) -> Topology:
    """Return a topology by name: "v5p:4x4x4", "2xv5e:16x16", "h100:64", "cpu:8"; ReverieError if it has no meaning."""
    kind, _, shape = name.lower().partition(":")
    several = re.fullmatch(r"([1-9]\d{0,3})x(.*)", kind)
    slices, kind = (int(several[1]), several[2]) if several else (1, kind)
    if kind not in CHIPS:
        known = ", ".join(f"{name}:{chip.shape}" for name, chip in CHIPS.items())
        raise ReverieError(f"there is no '{kind}' to plan for.{did_you_mean(kind, CHIPS)} Examples: {known}.")
    chip = CHIPS[kind]
    axes = chip.shape.count("x") + 1
    if not re.fullmatch(r"\d+(x\d+)*", shape) or shape.count("x") + 1 != axes or "0" in shape.split("x"):
        numbers = "1 number" if axes == 1 else f"{axes} numbers"
        raise ReverieError(f"'{name}' is not a topology: write it like '{kind}:{chip.shape}', with {numbers} above 0.")
    sizes = tuple(map(int, shape.split("x")))
    if chip.platform == "gpu" and sizes[0] > chip.node and sizes[0] % chip.node:
        raise ReverieError(f"'{name}': more than {chip.node} GPUs are whole machines of {chip.node}.")
    if slices > 1 and chip.platform != "tpu":
        raise ReverieError(f"'{name}': only TPUs form slices; write '{kind}:{slices * sizes[0]}' for as many {kind}.")
    found = Topology(f"{slices}x{kind}:{shape}" if slices > 1 else f"{kind}:{shape}", chip, sizes, slices)
    if found.size > MOST:
        raise ReverieError(f"'{name}' has {found.size} devices, more than the {MOST} that can be planned for.")
    return found
