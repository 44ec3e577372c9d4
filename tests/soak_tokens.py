"""Token caches larger than memory: what writing and reading one takes, and how long two processes need. Minutes."""

import json
import os
from pathlib import Path

import pytest
from processes import all_done, job

pytestmark = pytest.mark.soak
ALLOWED = 150  # MB: what a cache four times as large may cost in memory
EPISODES = int(os.environ.get("REVERIE_EPISODES", "400"))  # of the larger cache, 4 MB each: with 5000 it has 20 GB

# A dataset that draws its frames when they are read, and an encoder that makes 8 KB of a frame.
MADE = """
import json, os, resource, sys, time
from pathlib import Path
os.sched_setaffinity(0, {int(os.environ.get("JAX_PROCESS_ID", 0)) % os.cpu_count()})  # a core for each process
from reverie.training.sharding import connect
connect()
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from reverie.actions import ActionSpace
from reverie.data.episode import Spec
from reverie.data.loader import batches
from reverie.training.tokens import cached

SPEC = Spec((16, 16, 3), ActionSpace("discrete", 3), 10.0, "drawn")

class Drawn:
    spec, split = SPEC, "train"
    def __init__(self, episodes):
        self.lengths, self.fingerprint = np.full(episodes, 500), f"drawn {episodes}"
        self.tasks = [""] * episodes
    def read(self, episode, start, length, names=None):
        rng = np.random.default_rng((episode, start))
        frames = rng.integers(0, 256, (length, *SPEC.frame), np.uint8)
        actions = rng.integers(0, 3, length).astype(np.int32)
        return {"frames": frames, "actions": actions, "rewards": frames[:, 0, 0, 0].astype(np.float32)}

class Wide(nnx.Module):
    def __init__(self, work):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (768, 2048)) / 28)
        self.again = nnx.Param(jax.random.normal(jax.random.key(1), (2048, 2048)) / 45)
        self.work = work

def encode(model, batch):
    x = batch["frames"].reshape(*batch["frames"].shape[:2], -1).astype(jnp.float32) / 255 @ model.kernel[...]
    for _ in range(model.work):
        x = jnp.tanh(x @ model.again[...])
    return {"latents": x, "actions": batch["actions"]}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

folder, episodes, work, reads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model, data = Wide(work), Drawn(episodes)
began, worked = time.perf_counter(), time.process_time()
cache = cached(model, encode, data, 0, folder / "cache", ["kernel", "again"], ["rewards"])
wrote, written = time.perf_counter() - began, peak()
worked = time.process_time() - worked
stream, began = batches(cache, batch=64, length=16, seed=0), time.perf_counter()
for _ in range(reads):
    next(stream)
rate = 64 * reads / max(time.perf_counter() - began, 1e-9)
size = sum(file.stat().st_size for file in (folder / "cache").iterdir()) / 2**20
if jax.process_index() == 0:
    found = {"MB": size, "seconds": wrote, "cpu": worked, "peak_written": written, "peak_read": peak()}
    print(json.dumps(found | {"clips_per_s": rate}))
"""


def made(folder: Path, episodes: int, work: int = 0, reads: int = 0, processes: int = 1) -> dict[str, float]:
    folder.mkdir()
    ended = job("-c", MADE, str(folder), str(episodes), str(work), str(reads), processes=processes)
    all_done(ended)
    found = json.loads(next(line for line in ended[0][1].splitlines() if line.startswith("{")))
    print(f"\n{processes} processes, {episodes} episodes:", {name: round(value, 1) for name, value in found.items()})
    return found


def test_memory_does_not_grow_with_the_cache(tmp_path):
    """Written, checked and read: a cache of 1.6 GB takes what one of 0.4 GB does."""
    sizes = {"small": 100, "large": EPISODES}
    small, large = (made(tmp_path / name, size, reads=min(4 * size, 3000)) for name, size in sizes.items())
    assert large["MB"] > 3.9 * EPISODES
    assert large["peak_read"] < small["peak_read"] + ALLOWED < 2000


def test_two_processes_write_it_in_about_half_the_time_with_the_same_bits(tmp_path):
    alone, both = (made(tmp_path / str(n), 24, work=12, processes=n) for n in (1, 2))
    for name in ("latents", "actions", "rewards"):
        files = [(tmp_path / str(n) / "cache" / f"{name}.npy").read_bytes() for n in (1, 2)]
        assert files[0] == files[1], name
    # Of the processor's time, since this machine may have other work; most of it is encoding.
    assert both["cpu"] < 0.65 * alone["cpu"]
