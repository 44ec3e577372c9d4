"""The dispatch overhead of a call: ``compiled(model, fn)`` against ``nnx.jit(fn)``."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from benchmarks.timing import Figure, interleaved, milliseconds, ratio
from reverie.nn.compiled import compiled
from reverie.nn.transformer import SpaceTimeTransformer, TransformerConfig

CALLS = 100  # timed together: one call is shorter than what a clock and a scheduler disturb


def model(width: int = 32, depth: int = 4) -> SpaceTimeTransformer:
    """Return a small network: as many arrays as a large one, hardly any FLOPs."""
    return SpaceTimeTransformer(TransformerConfig(width=width, depth=depth, heads=2), (2, 2), rngs=nnx.Rngs(0))


def sides(net: SpaceTimeTransformer) -> dict[str, Callable[[], Array]]:
    """Return the same network called in two ways."""
    x = jnp.ones((1, 1, net.tokens, net.config.width))

    def forward(net: SpaceTimeTransformer, x: Array) -> Array:
        return net(x)

    ours, theirs = compiled(net, forward), nnx.jit(forward)
    return {"compiled": lambda: ours(x), "nnx.jit": lambda: theirs(net, x)}


def measure(seconds: float = 4.0, calls: int = CALLS) -> Iterator[Figure]:
    """Yield ms per call of both, and their ratio."""
    net = model()

    def many(call: Callable[[], Array]) -> Callable[[], Array]:
        return lambda: [jax.block_until_ready(call()) for _ in range(calls)][-1]

    times = interleaved({name: many(call) for name, call in sides(net).items()}, seconds=seconds)
    config = {"arrays": len(jax.tree.leaves(nnx.state(net))), "width": net.config.width, "depth": net.config.depth}
    for name, taken in times.items():
        yield Figure(f"dispatch_{name}", milliseconds(taken) / calls, "ms/call", config=config)
    gain = ratio(times["nnx.jit"], times["compiled"])
    yield Figure("dispatch", gain, "x", ("dispatch_nnx.jit", "dispatch_compiled"), config)
