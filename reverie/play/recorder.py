"""``reverie record``: the page of ``reverie play`` on a real game, and what people play there becomes a dataset.

The same server, protocol and page. A session steps the game instead of a model. One command is new: "keep" ends the
take that is being played and keeps it, a reset discards it. After each frame the page gets a message "take" about it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from starlette.websockets import WebSocket

from reverie.data.takes import Game, Moment, Take, Takes, game_of
from reverie.errors import ReverieError
from reverie.play import protocol
from reverie.play.connection import Connection, Seat, Seats, say
from reverie.play.server import serve
from reverie.training.signals import stop_signals
from reverie.world import WorldConfig

NOTE = "This is the real game, not a world model. Play, then keep the take or discard it."


class RealGame:
    """What is recorded: a source whose game is played, and the takes that are kept."""

    def __init__(self, source: Any, out: Path):
        self.source = source
        self.game = game_of(source)
        spec = self.game.spec
        self.config = WorldConfig(frame=spec.frame, actions=spec.actions, context=1, fps=spec.fps)
        self.takes = Takes(spec, out)
        self.kept = len(self.takes.files())  # the page shows it with every frame


class GameSession:
    """One player in the real game, as ``reverie.world.Session`` is one in a world; ``temperature`` means nothing."""

    uncertainty = None

    def __init__(self, real: RealGame, game: Game):
        self.real, self.game, self.actions = real, game, real.config.actions
        self.seed, self.temperature = 0, 0.0
        self.take: Take | None = None

    def reset(self, frames: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        """Begin level ``seed`` and return its first frame; what was not kept is discarded, and so are ``frames``."""
        self.take = Take(self.game.spec, self.seed, self.game.reset(self.seed))
        return self.last.frame

    def step(self, action: Any) -> np.ndarray:
        """Return the frame that an action leads to; ReverieError once the game is over."""
        if self.take is None:
            raise ReverieError("That take was kept: begin another.")
        if self.last.over or self.take.full:
            raise ReverieError("The game is over: keep this take, or begin another.")
        action = self.actions.taken(action)
        self.take.add(action, self.game.step(action))
        return self.last.frame

    @property
    def last(self) -> Moment:
        """The latest moment of the take."""
        assert self.take is not None
        return self.take.moments[-1][1]

    def keep(self) -> None:
        """Keep the take on disk; ReverieError if there is none."""
        if self.take is None:
            raise ReverieError("That take was kept already: begin another.")
        self.real.takes.keep(self.take)
        self.real.kept = len(self.real.takes.files())
        self.take = None

    def state(self) -> dict[str, Any]:
        """Return the take's frames and reward, whether it is over, and the number of takes kept, for the page."""
        kept = {"kept": self.real.kept}
        if self.take is None:
            return {"frames": 0, "reward": 0.0, "over": True, **kept}
        over, reward = self.last.over or self.take.full, round(float(self.take.reward), 3)
        return {"frames": len(self.take.moments), "reward": reward, "over": over, **kept}


class GameSeats(Seats):
    """Seats at the real game, each with a game of its own; all of them step in one thread, as renderers want it."""

    def __init__(self, *given: Any):
        self.made: list[GameSession] = []
        super().__init__(*given)

    def session(self) -> GameSession:
        """Return a session with a game of its own; the first takes the one that is there."""
        game = game_of(self.world.source) if self.made else self.world.game
        self.made.append(GameSession(self.world, game))
        return self.made[-1]

    def commands(self) -> dict[str, dict[str, range | tuple]]:
        """Return the commands of play, and "keep"."""
        return {**super().commands(), "keep": {"id": protocol.IDS}}

    def threads(self) -> int:
        """One."""
        return 1

    def connect(self, socket: WebSocket, seat: Seat, card: dict[str, Any]) -> Connection:
        """Return a connection that also reports the take's state."""
        return _Connection(socket, seat, self, {**card, "recorder": True})

    def close(self) -> None:
        """Close the games, in the thread that stepped them."""
        for session in self.made:
            self.thread.submit(session.game.close).result()
        super().close()


class _Connection(Connection):
    def _answers(self) -> dict[str, Any]:
        return super()._answers() | {"keep": self._keep}

    async def _show(self, frame: np.ndarray, action: int, id: int) -> None:
        await super()._show(frame, action, id)
        await self._tell(id)

    async def _keep(self, command: dict[str, Any]) -> None:
        await self.seat.run(self.session.keep)
        await self._tell(command["id"])

    async def _tell(self, id: int) -> None:
        await say(self.socket, "take", id=id, **self.session.state())


def record(source: Any, out: Path, *, val: float, licence: str = "", **options: Any) -> Path | None:
    """Let people play a source's game until Ctrl-C, then write the store ``out`` of all takes that were kept.

    ``options`` are those of ``play.server.serve``. Returns None if no take was kept. Raises ReverieError. A source that
    has ``record`` records itself.
    """
    if hasattr(source, "record"):
        return source.record(out, val=val, licence=licence)
    real = RealGame(source, out)
    seed = int(np.random.default_rng().integers(2**31))
    with stop_signals() as stop:  # the server takes the first Ctrl-C; writing what was kept is not interrupted by it
        serve(real, name=f"{real.game.spec.source} (recording)", seed=seed, seats=GameSeats, note=NOTE, **options)
        stop(True)
        return real.takes.write(val, licence) if real.takes.files() else None
