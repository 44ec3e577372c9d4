"""Players who come and go for half an hour, politely and not: the server's memory is flat. `make soak`."""

import contextlib
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from playground import FRAME, Player, ask
from test_play_hostile import BAD, UPGRADE, dial, frame

MINUTES = float(os.environ.get("REVERIE_SOAK_MINUTES", "30"))
PAUSE = float(os.environ.get("REVERIE_SOAK_PAUSE", "0.02"))  # seconds between visits of each of four clients
SERVER = """
import time
from playground import playing, tiny_world
with playing(tiny_world()) as (address, seats):
    print(address, flush=True)
    input()
"""


def visit(address: str, rng: random.Random) -> None:
    """Come once, in one of the ways in which people and their networks come and go."""
    kind = rng.randrange(8)
    if kind == 0:
        assert ask(address, rng.choice(["/", "/play.js", "/start-1.png", "/nothing"]))[0] in (200, 404)
    elif kind == 1:
        dial(address, UPGRADE[: rng.randrange(len(UPGRADE))]).close()
    elif kind == 2:
        with dial(address, UPGRADE) as link:  # goes without a word, in the middle of one
            link.sendall(frame(0x81, b'{"type": "reset", "id": 1, "seed": 0, "start": 0}')[: rng.randrange(9, 50)])
    else:
        with Player(address) as player:
            if player.hello["type"] != "world":
                return
            player.reset(seed=rng.randrange(2**31), start=rng.randrange(3))
            for _ in range(rng.randrange(10)):
                player.step(rng.randrange(4), rng.randrange(201))
            if kind == 3:
                player.socket.send(rng.choice(BAD))
            elif kind == 4:
                player.socket.send(np.random.default_rng(0).integers(0, 256, FRAME, np.uint8).tobytes())
            elif kind == 5:
                player.say("record", format=rng.choice(["gif", "mp4"]))
                player.hear()
            elif kind == 6:
                player.say("step", action=0, temperature=100)  # and does not wait for it


def resident(process: int) -> float:
    """MiB of a process that lie in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory where Linux says it")
def test_memory_is_flat_while_players_come_and_go():
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=env, **pipes)
    assert server.stdout and server.stderr
    address = server.stdout.readline().strip()
    visits, found, end = [0], [], time.monotonic() + 60 * MINUTES

    def come_and_go(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            with contextlib.suppress(ConnectionError):
                visit(address, rng)
            visits[0] += 1
            time.sleep(PAUSE)

    try:
        with ThreadPoolExecutor(4) as clients:
            working = [clients.submit(come_and_go, seed) for seed in range(4)]
            while time.monotonic() < end and not any(each.done() for each in working):
                time.sleep(2)
                found.append(resident(server.pid))
        half = found[len(found) // 2 :]  # what is compiled, cached and pooled has been by then
        slope = float(np.polyfit(np.arange(len(half)) * 2 / 60, half, 1)[0])
        print(
            f"{visits[0]} visits, {found[0]:.1f} to {found[-1]:.1f} MiB, {slope:+.3f} MiB a minute in the second half"
        )
        for each in working:
            each.result()
        server.stdin.write("\n")
        server.stdin.flush()
        said = server.communicate(timeout=60)[1]
    finally:
        server.kill()
    assert server.returncode == 0 and "Traceback" not in said, said
    assert slope * len(half) * 2 / 60 < 0.02 * half[0], f"{slope:+.2f} MiB a minute"
