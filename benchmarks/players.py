"""Many players of one world over real websockets: what one gets, what sixteen get together, and how evenly.

The server runs in this process as ``reverie play`` runs it, the players in one of their own on the same machine, so
all of them share its cores. Numbers of players take turns, so that a machine that slows down slows all of them.
"""

import asyncio
import hashlib
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from benchmarks.play import untrained
from benchmarks.timing import Figure
from reverie.play import protocol
from reverie.play.connection import Limits, cores
from reverie.play.server import prepare
from reverie.presets import preset
from reverie.world import Session, WorldModel

KEYS = 10  # a second, of a player who presses keys
CROWD = 64


async def player(address: str, seed: int, seconds: float, pace: float) -> tuple[list[float], list[int], str]:
    """Play for ``seconds``: the seconds from each key to its frame, the actions, and a hash of all frames.

    ``pace``: keys a second; 0: the next one as soon as the frame of the last has come.
    """
    rng, waits, actions, seen = np.random.default_rng(seed), [], [], hashlib.sha256()
    async with connect(address, compression=None, max_size=None) as socket:
        count = json.loads(await socket.recv())["actions"]["count"]

        async def ask(id: int, **command: Any) -> None:
            await socket.send(json.dumps({"id": id, **command}))
            message = await socket.recv()
            assert isinstance(message, bytes)
            _, _, _, answered, _, frame = protocol.unpack(message)
            assert answered == id, "a frame of another key"
            seen.update(frame)

        await ask(0, type="reset", seed=seed, start=0)
        end = time.perf_counter() + seconds
        due = time.perf_counter() + (rng.random() / pace if pace else 0)
        while not actions or max(due, time.perf_counter()) < end:
            if pace:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due += 1 / pace
            pressed = time.perf_counter()
            actions.append(int(rng.integers(count)))
            await ask(len(actions), type="step", action=actions[-1], temperature=100)
            waits.append(time.perf_counter() - pressed)
    return waits, actions, seen.hexdigest()


def crowd(address: str, players: int, seconds: float, pace: float = 0.0) -> list[tuple[list[float], list[int], str]]:
    """Return what each of ``players`` clients received that play at once; runs in a process of its own."""

    async def all_of_them():
        return await asyncio.gather(*(player(address, seed, seconds, pace) for seed in range(players)))

    return asyncio.run(all_of_them())


def same(world: WorldModel, start: np.ndarray, seed: int, actions: list[int], seen: str) -> bool:
    """Whether one who plays alone sees the same frames, bit for bit."""
    session, alone = Session(world, seed=seed, temperature=1.0), hashlib.sha256()
    alone.update(session.reset(start).tobytes())
    for action in actions:
        alone.update(session.step(session.actions.nth(action)).tobytes())
    return alone.hexdigest() == seen


def playing(name: str, world: WorldModel, seconds: float, rounds: int = 5) -> Iterator[Figure]:
    """Yield frames per second and latency with 1, 4 and 16 players, and the fairness with 64.

    Raises RuntimeError if a player's frames differ from those of a player alone.
    """
    start = np.random.default_rng(0).integers(0, 256, (1, *world.config.frame), np.uint8)
    limits = Limits(players=CROWD, rate=10_000)
    server, listening, address = prepare(
        world, name=name, port=0, host="127.0.0.1", starts=[(start, None)], limits=limits
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = f"ws{address[4:]}play"
    about = {"preset": name, "frame": list(world.config.frame), "at_once": cores()}
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:

            def play(players: int, pace: float = 0.0, length: float = seconds):
                return process.submit(crowd, address, players, length, pace).result()

            play(CROWD, length=seconds / 4)  # sessions are made
            pace, fast, cost = {1: [], 4: []}, {1: [], 4: [], 16: []}, {1: [], 4: [], 16: []}
            for _ in range(rounds):
                for players in fast:
                    used = time.process_time()
                    found = play(players)
                    frames = sum(len(actions) for _, actions, _ in found)
                    fast[players].append(frames / seconds)
                    cost[players].append((time.process_time() - used) / frames * 1e3)
                    for seed in range(players if players < 16 else 2):
                        _, actions, seen = found[seed]
                        if not same(world, start, seed, actions, seen):
                            raise RuntimeError(f"player {seed} of {players} got other frames than alone")
                for players in pace:
                    pace[players] += [wait for waits, _, _ in play(players, KEYS) for wait in waits]
            counts = [len(actions) for _, actions, _ in play(CROWD, length=2 * seconds)]
    finally:
        server.should_exit = True
        thread.join()
    for players, rate in fast.items():
        yield Figure(f"players_{players}_frame_rate", float(np.median(rate)), "frames/s", config=about)
        yield Figure(f"players_{players}_server_cpu", float(np.median(cost[players])), "ms/frame", config=about)
    for players in (4, 16):
        gain = float(np.median(np.array(fast[players]) / np.array(fast[1])))
        pair = (f"players_{players}_frame_rate", "players_1_frame_rate")
        yield Figure(f"players_{players}_vs_1", gain, "x", pair, about)
    late = {players: float(np.percentile(waits, 99)) * 1e3 for players, waits in pace.items()}
    for players, value in late.items():
        yield Figure(f"players_{players}_keys_p99", value, "ms", config=about | {"keys": KEYS})
    pair = ("players_4_keys_p99", "players_1_keys_p99")
    yield Figure("players_4_keys_p99_vs_1", late[4] / late[1], "x", pair, about | {"keys": KEYS})
    yield Figure(f"players_{CROWD}_least_served", min(counts) / (sum(counts) / CROWD), "of the mean", config=about)


def measure(seconds: float = 4.0) -> Iterator[Figure]:
    """Yield all figures of many players: the shipped world's sizes."""
    name = "toy-maskgit-shipped"
    yield from playing(name, untrained(preset(name)), seconds)
