"""A web page to play a world, served to this machine only unless ``expose`` is set.

The page (page/) is static files; everything else uses one websocket per player (protocol.py, connection.py). guard.py
decides who may connect, transport.py how long a connection may stay silent.

Legend: T time, H W C image.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from reverie.errors import ReverieError
from reverie.evaluation.video import png
from reverie.narrow_weights import narrowed
from reverie.play import buttons, protocol
from reverie.play.agent import AgentSeats, agent_of
from reverie.play.beside import Beside, beside_of
from reverie.play.connection import TRY_LATER, Limits, Seats, say
from reverie.play.host import file_response, listen, page_files, run_server, server_of
from reverie.training.checkpoint import load
from reverie.world import WorldModel
from reverie.world_folder import Start, initial_frames, named_actions


def play(run: str | Path, players: int | None = None, bits: int = 32, **options: Any) -> None:
    """Load a world from its folder and ``serve`` it from its own initial frames; ``options`` are those of ``serve``.

    If the world has an agent, the page shows what it would do, and can let it play. If it has an exact simulator, the
    real game can be seen beside it. ``bits``: of the weights of the world's dynamics.
    """
    if players is not None:
        if players < 1:
            raise ReverieError(f"at least one player needs a seat, not {players}.")
        options["limits"] = Limits(players=players)
    agent = agent_of(Path(run))
    world, about = load_for_play(run, agent and agent.world)
    world = narrowed(world, bits)
    if agent is not None:
        agent.world = world
        options["seats"] = partial(AgentSeats, agent)
    serve(world, beside=beside_of(Path(run), world, about["starts"]), **{**about, **options})


def load_for_play(run: str | Path, world: WorldModel | None = None) -> tuple[WorldModel, dict[str, Any]]:
    """Load a world, unless it is there already, and name its latent actions: (world, {name, starts})."""
    run = Path(run)
    found: Any = load(run) if world is None else world
    if isinstance(found, WorldModel):  # else ``Session`` raises
        found.config = replace(found.config, actions=named_actions(found.config.actions, run))
    return found, {"name": run.resolve().name, "starts": initial_frames(run)}


def serve(world: Any, *, name: str = "a world", open_browser: bool = False, **options: Any) -> None:
    """Serve ``world`` for play in a browser until Ctrl-C; ``options`` are those of ``prepare``.

    Prints one line with the address once it can be opened. Raises ReverieError.
    """
    server, listening, address = prepare(world, name=name, **options)
    run_server(server, listening, address, f"Playing {name}", open_browser)


def prepare(
    world: Any,
    *,
    name: str,
    port: int = 8000,
    host: str = "127.0.0.1",
    expose: bool = False,
    starts: Sequence[Start] = (),
    note: str = "",
    seed: int = 0,
    limits: Limits | None = None,
    allow_hosts: Sequence[str] = (),
    seats: Callable[..., Seats] = Seats,
    beside: Beside | None = None,
) -> tuple[uvicorn.Server, socket.socket, str]:
    """Bind the port, compile the world, and return (server, listening socket, address), ready to run.

    ``starts``: initial frames uint8 (T, H, W, C) and their actions (T, ...) or None. ``seed``: of the first session.
    ``note``: a sentence shown on the page. ``port``: 0 picks a free one. ``host``: if others can reach it, ``expose``
    must be set. ``allow_hosts``: names of proxies or tunnels to the page. ``seats``: of what is played: with an agent
    (``play.agent``), or a ``world`` that is none (``play.recorder``). ``beside``: the real game.
    """
    if seed not in protocol.SEEDS:
        raise ReverieError(f"a seed is {protocol.SEEDS[0]} to {protocol.SEEDS[-1]}, not {seed}.")
    starts = [_checked(start, world.config.frame) for start in starts]
    listening = listen(host, port, expose)
    try:
        taken_seats = seats(world, starts, limits or Limits(), beside)
        pictures = [f"start-{number}.png" for number in range(len(starts))]
        about = card(world, name, note, seed, pictures) | {"beside": beside is not None}
        longest = int(max(np.prod(world.config.frame), protocol.LONGEST)) + 1024  # a little more gets an answer
        server, address = server_of(_application(taken_seats, about), listening, host, allow_hosts, longest)
    except BaseException:
        listening.close()
        raise
    return server, listening, address


def _application(seats: Seats, card: dict[str, Any]) -> Starlette:
    files = page_files("reverie.play")
    files |= {name: picture(start) for name, start in zip(card["pictures"], seats.starts, strict=True)}

    async def page(request: Request) -> Response:
        return file_response(files, request.path_params.get("name", ""))

    async def play(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            async with seats.one() as seat:
                await seats.connect(websocket, seat, card).run()
        except ReverieError as full:
            await say(websocket, "busy", text=str(full))
            await websocket.close(TRY_LATER)
        except WebSocketDisconnect:  # already gone
            pass

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        seats.close()

    routes = [WebSocketRoute("/play", play), Route("/", page), Route("/{name}", page)]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.seats = seats
    return app


def picture(start: Start) -> bytes:
    """Return the last of the initial frames as PNG."""
    return png(start[0][-1])


def card(
    world: Any, name: str, note: str, seed: int, pictures: Sequence[str], formats: Sequence[str] = ("gif", "mp4")
) -> dict[str, Any]:
    """Return the description of the world that the page receives first; ``pictures``: an address for each start."""
    height, width, channels = world.config.frame
    actions = world.config.actions
    notes = {
        "none": "This world was trained on video without actions: it continues by itself and cannot be steered.",
        "latent": "The actions were inferred from video. Those with a name mostly occurred while that key was pressed; "
        "try the others and see what they do."
        if actions.names
        else "The actions were inferred from video and have no names: try each and see what it does.",
    }
    return {
        "version": protocol.VERSION,
        "name": name,
        "frame": [height, width, channels],
        "fps": world.config.fps,
        **buttons.card(actions),
        "uncertainty": getattr(world, "uncertainty", ""),
        "temperature": round(100 * world.dynamics.temperature) if hasattr(world, "dynamics") else None,
        "starts": len(pictures),
        "pictures": list(pictures),
        "formats": list(formats),
        "seed": seed,
        "notes": [text for text in (notes.get(actions.kind), note) if text],
    }


def _checked(start: Start, frame: tuple[int, int, int]) -> Start:
    frames, actions = start
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != tuple(frame) or not len(frames):
        raise ReverieError(f"a start is uint8 (T, {', '.join(map(str, frame))}), not {frames.dtype} {frames.shape}.")
    if actions is not None and np.shape(actions)[:1] != frames.shape[:1]:
        raise ReverieError(f"a start of {len(frames)} frames has {len(frames)} actions, not {np.shape(actions)}.")
    return frames, actions if actions is None else np.asarray(actions)
