"""A tiny world with random weights behind a real server, and a client: for the tests of the player and of its page.

The fixtures are those of every module that names them: ``world, place = playground.world, playground.place``.
"""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from flax import nnx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from reverie.actions import ActionSpace
from reverie.models.dynamics.maskgit import MaskGITConfig
from reverie.models.tokenizers.vqvae import VQVAEConfig
from reverie.nn.quantise import VQConfig
from reverie.nn.transformer import TransformerConfig
from reverie.play import protocol
from reverie.play.connection import Limits, cores
from reverie.play.recorder import GameSeats, RealGame
from reverie.play.server import prepare
from reverie.world import WorldConfig, WorldModel

FRAME, CONTEXT, FPS = (16, 16, 3), 4, 30.0
STEER = ActionSpace("discrete", 4, ("stay", "left", "right", "jump"), ("", "ArrowLeft", "ArrowRight", " "))


def tiny_world(actions: ActionSpace = STEER) -> WorldModel:
    """Return an untrained world: its frames are noise that depends on seed, start and actions."""
    net = TransformerConfig(width=16, depth=1, heads=2, window=CONTEXT)
    tokenizer = VQVAEConfig(frame=FRAME, patch=4, encoder=net, decoder=net, quantiser=VQConfig(codes=16, width=8))
    dynamics = MaskGITConfig(codes=16, grid=(4, 4), actions=actions, transformer=net, passes=2)
    config = WorldConfig(frame=FRAME, actions=actions, context=CONTEXT, fps=FPS)
    return WorldModel(config, tokenizer.make(nnx.Rngs(0)), None, dynamics.make(nnx.Rngs(1)))


@pytest.fixture(scope="module")
def world():
    return same_world()


@cache
def same_world() -> WorldModel:
    """The one world of all files that play in a process: its programs are compiled once."""
    return tiny_world()


@pytest.fixture(scope="module")
def place(world):
    """The address and the seats of a server that forgives mistakes and floods."""
    with playing(world, limits=Limits(strikes=10**6, rate=10**6)) as place:
        yield place


@pytest.fixture
def player(place):
    with Player(place[0]) as player:
        yield player


def some_starts(count: int = 3) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return starts of different lengths, with and without actions."""
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (1 + index, *FRAME), np.uint8) for index in range(count)]
    return [(clip, None if index % 2 else np.zeros(len(clip), np.int32)) for index, clip in enumerate(clips)]


@contextlib.contextmanager
def playing(world: WorldModel, **options) -> Iterator[tuple[str, object]]:
    """Run a server in a thread: yields its address and its seats."""
    options = {"name": "noise", "port": 0, "host": "127.0.0.1", "starts": some_starts(), **options}
    with running(*prepare(world, **options)) as (address, app):
        yield address, app.state.seats


@contextlib.contextmanager
def running(server, listening, address: str) -> Iterator[tuple[str, Any]]:
    """Run a server that is ready in a thread: yields its address and the application behind its guard."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield address, server.config.app.app
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


def recording(source, out: Path):
    """Return a real game whose takes make the store ``out``, and its server, to be entered."""
    real = RealGame(source, out)
    return real, playing(real, seats=GameSeats, starts=(), name="the real game")  # pyright: ignore[reportArgumentType]


class Player:
    """A client that speaks the protocol."""

    def __init__(self, address: str, **options):
        self.connection = connect(f"ws{address[4:]}play", **options)
        self.id = 0

    def __enter__(self):
        self.socket = self.connection.__enter__()
        self.hello = self.hear()
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, type: str, **fields) -> int:
        self.id += 1
        self.socket.send(json.dumps({"type": type, "id": self.id, **fields}))
        return self.id

    def hear(self):
        message = self.socket.recv(timeout=10)
        return json.loads(message) if isinstance(message, str) else protocol.unpack(message)

    def reset(self, seed=0, start=0) -> bytes:
        id = self.say("reset", seed=seed, start=start)
        kind, step, _, answered, _, frame = self.hear()
        assert (kind, step, answered) == (protocol.FRAME, 0, id)
        return frame

    def step(self, action, temperature=100) -> bytes:
        id = self.say("step", action=action, temperature=temperature)
        kind, _, played, answered, _, frame = self.hear()
        assert (kind, played, answered) == (protocol.FRAME, action, id)
        return frame

    def rollout(self, actions, seed=0, start=0) -> list[bytes]:
        return [self.reset(seed, start), *map(self.step, actions)]

    def closed(self) -> int:
        """Hear all that is left and return the code the server closed with."""
        with pytest.raises(ConnectionClosed):
            while True:
                self.socket.recv(timeout=10)
        return self.socket.close_code


def ask(address: str, path: str = "/", host: str | None = None, **headers: str):
    link = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    link.putrequest("GET", path, skip_host=host is not None)
    for name, value in (({"Host": host} if host is not None else {}) | headers).items():
        link.putheader(name, value)
    link.endheaders()
    with contextlib.closing(link):
        answer = link.getresponse()
        return answer.status, answer.headers, answer.read()


@contextlib.contextmanager
def slow(seats) -> Iterator[None]:
    """Keep every thread of the world busy inside."""
    wait, busy = threading.Event(), threading.Barrier(cores() + 1)

    def work() -> None:
        busy.wait(30)
        assert wait.wait(60)

    held = [seats.thread.submit(work) for _ in range(cores())]
    busy.wait(30)
    try:
        yield
    finally:
        wait.set()
        for each in held:
            each.result()


@contextlib.contextmanager
def proxied(address: str, prefix: str, host: str | None = None) -> Iterator[int]:
    """Run a reverse proxy that serves ``address`` under ``prefix``; yields its port.

    ``host``: what it writes into the Host header, as some do; None: what the client sent.
    """
    target = urlsplit(address)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(1 << 16)):
                    return
                head += data
            head, _, rest = head.partition(b"\r\n\r\n")
            request, *headers = head.decode("latin-1").split("\r\n")
            method, path, version = request.split(" ")
            if not path.startswith(prefix):
                return client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            upgrade = any(line.lower().startswith("upgrade:") for line in headers)
            kept = [line for line in headers if not (line.lower().startswith("host:") and host)]
            kept = [line for line in kept if upgrade or not line.lower().startswith("connection:")]
            kept += [f"Host: {host}"] if host else []
            kept += [] if upgrade else ["Connection: close"]
            lines = [f"{method} /{path.removeprefix(prefix)} {version}", *kept]
            with socket.create_connection((target.hostname, target.port)) as server:
                server.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + rest)
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
