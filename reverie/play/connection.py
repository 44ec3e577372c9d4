"""The connection of one player: a session of the world over a websocket, with limits.

Two tasks run per player. One reads: it checks and queues every message, so floods are detected at once, and steps that
come faster than frames can be generated are merged. The other takes commands from the queue and answers. The model runs
in threads of its own (``Seats``), so the event loop stays free.

Legend: T time, H W C image.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from reverie.errors import ReverieError
from reverie.evaluation.video import write_gif, write_mp4
from reverie.play import protocol
from reverie.play.beside import Beside, Real
from reverie.world import Session
from reverie.world_folder import Start

POLICY, TRY_LATER, BROKEN = 1008, 1013, 1011  # websocket close codes (RFC 6455 and its registry)
FAREWELL = 5.0  # seconds for a player to read why the connection closes
_RECORDERS = {"gif": (write_gif, protocol.GIF, 256), "mp4": (write_mp4, protocol.MP4, 512)}  # and its side in pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for one player, and for all of them together."""

    players: int = 16
    rate: float = 120.0  # messages per second, and the largest burst
    queue: int = 3  # steps that wait; a newer one replaces the last of them
    strikes: int = 8  # refused messages after which the connection is closed
    idle: float = 600.0  # seconds without a message after which the seat is freed
    begin: float = 30.0  # the same before the first reset; a page sends one at once
    recorded: int = 1200  # newest frames that a recording can hold
    recorded_bytes: int = 64 << 20


def cores() -> int:
    """Return how many frames are generated at once: one per core that this process may use, one on an accelerator.

    One frame of a small world keeps one core busy, and a batch of frames takes as long as its frames one by one
    (docs/decisions/008). Each session runs the same program whoever else plays, so its frames have the same bits.
    """
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Seat:
    """A session lent to a player, and the last job on it."""

    def __init__(self, session: Session, thread: ThreadPoolExecutor):
        self.session, self.thread = session, thread
        self.last: Future | None = None

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function on the session in a thread of the model, one at a time."""
        self.last = self.thread.submit(function)
        return await asyncio.wrap_future(self.last)


class Seats:
    """The seats at one world: sessions, created when first needed and reused, and the threads they run in.

    Each player waits for at most one frame at a time, and frames are generated in the order of the requests. So every
    waiting player gets one frame before anyone gets two.
    """

    def __init__(self, world: Any, starts: Sequence[Start], limits: Limits, beside: Beside | None = None):
        self.world, self.starts, self.limits, self.beside = world, starts, limits, beside
        self.thread = ThreadPoolExecutor(self.threads(), thread_name_prefix="world")
        self.free = [self.thread.submit(self.session).result()]  # compiles here, before the first key
        self.known = self.commands()
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self.taken = 0

    def session(self) -> Any:
        """Return a new session, in the thread in which it will be used."""
        return Session(self.world)

    def commands(self) -> dict[str, dict[str, range | tuple]]:
        """Return the commands that a page may send (``protocol.commands``)."""
        return protocol.commands(self.world.config.actions.count, len(self.starts))

    def threads(self) -> int:
        """Return how many frames are generated at once."""
        return cores()

    def connect(self, socket: WebSocket, seat: Seat, card: dict[str, Any]) -> "Connection":
        """Return the connection of a player who has a seat."""
        return Connection(socket, seat, self, card)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Seat]:
        """Lend a session; ReverieError if every seat is taken."""
        if self.taken >= self.limits.players:
            raise ReverieError(f"All {self.limits.players} seats are taken: try again when a player has left.")
        self.taken += 1
        try:
            if self.free:
                session = self.free.pop()
            else:
                session = await asyncio.wrap_future(self.thread.submit(self.session))
            seat = Seat(session, self.thread)
            try:
                yield seat
            finally:
                if seat.last is None:
                    self.free.append(session)
                else:  # a thread may still use it; if not, the callback runs at once
                    seat.last.add_done_callback(lambda _: self.free.append(session))
        finally:
            self.taken -= 1

    def close(self) -> None:
        """Let the threads end after their current job."""
        for pool in (self.thread, self.encoder):
            pool.shutdown(wait=False, cancel_futures=True)


async def say(socket: WebSocket, kind: str, **fields: Any) -> None:
    """Send a JSON object in ASCII, since quoted text may hold half of a surrogate pair, which UTF-8 cannot encode."""
    await socket.send_text(json.dumps({"type": kind, **fields}))


class Connection:
    """One player's connection; ``card`` is the description of the world that the page receives first."""

    def __init__(self, socket: WebSocket, seat: Seat, seats: Seats, card: dict[str, Any]):
        self.socket, self.seat, self.seats, self.card, self.limits = socket, seat, seats, card, seats.limits
        self.session: Any = seat.session
        self.shape, self.known = seats.world.config.frame, seats.known
        self.waiting: deque[dict[str, Any]] = deque()
        self.news = asyncio.Event()
        self.picture: np.ndarray | None = None
        self.begun = False
        self.real: Real | None = None  # the real game beside the world, where it goes on
        self.strikes = 0
        self.allowance, self.heard = self.limits.rate, time.monotonic()
        kept = max(2, min(self.limits.recorded, self.limits.recorded_bytes // int(np.prod(self.shape))))
        self.frames: deque[np.ndarray] = deque(maxlen=kept)
        self.steps = 0

    async def run(self) -> None:
        """Send the card, then play until the player leaves, is idle for too long, or is refused too often."""
        await say(self.socket, "world", **self.card)
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._play())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            closed = self.socket.application_state is WebSocketState.DISCONNECTED  # by the other task in the meantime
            if isinstance(end, Exception) and not isinstance(end, WebSocketDisconnect) and not closed:
                log.error("a player's session broke", exc_info=end)
                await self._leave("error", "The world broke; the terminal it runs in says how.", BROKEN)
                return

    async def _read(self) -> None:
        while True:
            try:
                patience = self.limits.idle if self.begun else min(self.limits.begin, self.limits.idle)
                async with asyncio.timeout(patience):
                    message = await self.socket.receive()
            except TimeoutError:
                return await self._leave("bye", "You were away for long, so your seat was freed.", 1000)
            if message["type"] == "websocket.disconnect":
                return
            try:
                self._spend()
                if message.get("bytes") is not None:
                    self._look(message["bytes"])
                    await say(self.socket, "picture")
                else:
                    self._file(protocol.parse(message["text"], self.known))
            except ReverieError as error:
                self.strikes += 1
                if self.strikes >= self.limits.strikes:
                    return await self._leave("bye", f"Refused too often, at last because: {error}", POLICY)
                await say(self.socket, "error", text=str(error))

    def _spend(self) -> None:
        """Take one message from an allowance that refills with time; ReverieError if it is empty."""
        now = time.monotonic()
        rate = self.limits.rate
        self.allowance, self.heard = min(rate, self.allowance + (now - self.heard) * rate), now
        if self.allowance < 1:
            raise ReverieError(f"At most {rate:g} messages per second, please.")
        self.allowance -= 1

    def _look(self, data: bytes) -> None:
        if len(data) != np.prod(self.shape):
            height, width, channels = self.shape
            raise ReverieError(f"A picture is {height}x{width}x{channels} bytes, not {len(data)}.")
        self.picture = np.frombuffer(data, np.uint8).reshape(1, *self.shape)

    def _clip(self, start: int) -> Start:
        if start != protocol.PICTURE:
            return self.seats.starts[start]
        if self.picture is None:
            raise ReverieError("Send a picture first, or choose a start.")
        return self.picture, None

    def _file(self, command: dict[str, Any]) -> None:
        """Queue a command; a reset clears the queue, and steps do not pile up."""
        if command["type"] == "reset":
            command["clip"] = self._clip(command["start"])
            self.waiting.clear()
            self.begun = True
        elif not self.begun:
            raise ReverieError("Reset first: a step needs a start.")
        elif command["type"] == "record" and any(waits["type"] == "record" for waits in self.waiting):
            raise ReverieError("One recording at a time.")
        steps = [index for index, waits in enumerate(self.waiting) if waits["type"] == "step"]
        if command["type"] == "step" and len(steps) >= self.limits.queue:
            self.waiting[steps[-1]] = command
        else:
            self.waiting.append(command)
        self.news.set()

    def _answers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """Return what answers each command, by its type."""
        return {"reset": self._reset, "step": self._step, "record": self._record}

    async def _play(self) -> None:
        answers = self._answers()
        while True:
            await self.news.wait()
            while self.waiting:
                command = self.waiting.popleft()
                try:
                    await answers[command["type"]](command)
                except ReverieError as error:
                    await say(self.socket, "error", text=str(error))
            self.news.clear()

    async def _reset(self, command: dict[str, Any]) -> None:
        def begin() -> np.ndarray:
            self.session.seed = command["seed"]
            self.real = self.seats.beside and self.seats.beside.begin(command["start"])
            return self.session.reset(*command["clip"])

        self.frames.clear()
        self.steps = 0
        await self._show(await self.seat.run(begin), -1, command["id"])

    async def _step(self, command: dict[str, Any]) -> None:
        actions = self.session.actions

        def step() -> np.ndarray:
            self.session.temperature = command["temperature"] / 100
            action = actions.nth(command["action"]) if actions.size else 0
            if self.real is not None:
                self.real = self.seats.beside and self.seats.beside.step(self.real, action)
            return self.session.step(action)

        frame = await self.seat.run(step)
        self.steps += 1
        await self._show(frame, command["action"], command["id"])

    async def _show(self, frame: np.ndarray, action: int, id: int) -> None:
        self.frames.append(frame)
        real = self.real  # before the next command changes it
        answer = (self.steps, action, id, frame.tobytes(), self.session.uncertainty)
        await self.socket.send_bytes(protocol.pack(protocol.FRAME, *answer))
        if real is not None:
            await self.socket.send_bytes(protocol.pack(protocol.REAL, self.steps, action, id, real.frame.tobytes()))

    async def _record(self, command: dict[str, Any]) -> None:
        frames, out = np.stack(self.frames), io.BytesIO()
        write, kind, side = _RECORDERS[command["format"]]
        scale = max(1, side // max(self.shape[:2]))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.seats.encoder, write, out, frames, self.card["fps"], scale)
        await self.socket.send_bytes(protocol.pack(kind, self.steps, -1, command["id"], out.getvalue()))

    async def _leave(self, kind: str, text: str, code: int) -> None:
        """Send the reason and close; the player may already be gone."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(FAREWELL):  # a player who does not read must not keep the seat
                await say(self.socket, kind, text=text)
                await self.socket.close(code)
