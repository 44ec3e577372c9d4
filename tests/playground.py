"""A tiny world with random weights behind a real server: what the tests of the player, and of its page, play in."""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
from flax import nnx

from reverie.actions import ActionSpace
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.play.server import prepare
from reverie.world import WorldConfig, WorldModel

FRAME, CONTEXT, FPS = (16, 16, 3), 4, 30.0
STEER = ActionSpace("discrete", 4, ("stay", "left", "right", "jump"), ("", "ArrowLeft", "ArrowRight", " "))


def tiny_world(actions: ActionSpace = STEER) -> WorldModel:
    """Return an untrained world: its dreams are noise, but noise that obeys seed, start and actions."""
    net = TransformerConfig(width=16, depth=1, heads=2, window=CONTEXT)
    tokenizer = VQVAEConfig(FRAME, patch=4, encoder=net, decoder=net, quantiser=VQConfig(codes=16, width=8))
    dynamics = MaskGITConfig(codes=16, grid=(4, 4), actions=actions, transformer=net, passes=2)
    config = WorldConfig(FRAME, actions, CONTEXT, FPS)
    return WorldModel(config, tokenizer.make(nnx.Rngs(0)), None, dynamics.make(nnx.Rngs(1)))


def some_starts(count: int = 3) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return starts of different lengths, with and without actions."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (1 + index, *FRAME), np.uint8) for index in range(count)]
    return [(clip, None if index % 2 else np.zeros(len(clip), np.int32)) for index, clip in enumerate(clips)]


@contextlib.contextmanager
def playing(world: WorldModel, **options) -> Iterator[tuple[str, object]]:
    """Run a server in a thread: yields its address and its seats."""
    options = {"name": "noise", "port": 0, "host": "127.0.0.1", "starts": some_starts(), **options}
    server, listening, address = prepare(world, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield address, server.config.app.app.state.seats
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
