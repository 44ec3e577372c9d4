"""A web page to play a world in, served on this machine alone unless asked otherwise.

The page (page/) is plain files; everything else goes over one websocket per player (protocol.py, connection.py).
A page on another site must not reach a server on this machine: the Host header has to name this machine (against DNS
rebinding) and a websocket's Origin has to be that same host.

Legend: T time, H W C image.
"""

import contextlib
import errno
import io
import ipaddress
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from reverie.errors import ReverieError
from reverie.evaluation.video import write_png
from reverie.play import protocol
from reverie.play.connection import TRY_LATER, Connection, Limits, Seats, Start
from reverie.world import WorldModel

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


def serve(
    world: WorldModel,
    *,
    name: str = "a world",
    port: int = 8000,
    host: str = "127.0.0.1",
    expose: bool = False,
    open_browser: bool = False,
    starts: Sequence[Start] = (),
    note: str = "",
    seed: int = 0,
    limits: Limits | None = None,
) -> None:
    """Let people play ``world`` in a browser until Ctrl-C; prints one line with the address when it can be opened.

    ``starts``: (frames uint8 (T, H, W, C), actions (T, ...) or None) to begin from. ``seed``: the first dream's.
    ``note``: a sentence shown on the page. ``port`` 0 picks a free one. A ``host`` that others can reach needs
    ``expose``. Raises ReverieError.
    """
    server, listening, address = prepare(
        world, name=name, port=port, host=host, expose=expose, starts=starts, note=note, seed=seed, limits=limits
    )
    if expose and not _loopback(host):
        print(f"Warning: everyone who can reach {host} can play, on this machine's time.", file=sys.stderr)
    print(f"Playing {name} at {address}", flush=True)
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()  # some browsers block
    with contextlib.suppress(KeyboardInterrupt):  # how uvicorn ends after Ctrl-C, when all is closed
        server.run(sockets=[listening])


def prepare(
    world: WorldModel,
    *,
    name: str,
    port: int,
    host: str,
    expose: bool = False,
    starts: Sequence[Start] = (),
    note: str = "",
    seed: int = 0,
    limits: Limits | None = None,
) -> tuple[uvicorn.Server, socket.socket, str]:
    """Take the port, compile the world, and return (server, listening socket, address), ready to run."""
    if seed not in protocol.SEEDS:
        raise ReverieError(f"a seed is {protocol.SEEDS[0]} to {protocol.SEEDS[-1]}, not {seed}.")
    starts = [_checked(start, world.config.frame) for start in starts]
    listening = _listen(host, port, expose)
    try:
        seats = Seats(world, starts, limits or Limits())
    except BaseException:
        listening.close()
        raise
    taken = listening.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    config = uvicorn.Config(
        Guard(_application(seats, _card(world, name, note, seed, len(starts))), host),
        ws="websockets-sansio",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=1,
        ws_max_size=int(max(np.prod(world.config.frame), protocol.LONGEST)) + 1024,  # a little more gets an answer
        ws_per_message_deflate=False,  # costs more time than it saves on one machine
    )
    return uvicorn.Server(config), listening, f"http://{shown}:{taken}/"


class Guard:
    """Refuses requests that another site's page could have sent, and adds the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, host: str):
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        origins = [value.decode("latin-1") for key, value in scope["headers"] if key == b"origin"]
        refusal = None
        if len(hosts) != 1 or not self._ours(hosts[0]):
            refusal = "This server answers to its own address only."
        elif scope["type"] == "websocket" and any(origin not in _origins(hosts[0]) for origin in origins):
            refusal = "A page of another site may not play here."  # no Origin: not a browser, so no site's page
        if refusal and scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": refusal})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                sources = "'none'" if refusal else f"'self'; connect-src 'self' ws://{hosts[0]} wss://{hosts[0]}"
                policy = f"default-src {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
                extra = {**_HEADERS, "content-security-policy": policy}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        await (PlainTextResponse(refusal, 403) if refusal else self.app)(scope, receive, guarded)

    def _ours(self, host: str) -> bool:
        """Whether a Host header names this machine; an address cannot be rebound to another machine, a name can."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            urlsplit(f"//{host}").port  # noqa: B018  raises when it is no port
        except ValueError:
            return False
        if not all(letter.isalnum() or letter in "-._:[]" for letter in host):
            return False  # it is repeated in a header
        if _loopback(name):
            return True
        return not _loopback(self.host) and (name in (self.host.lower(), socket.gethostname().lower()) or _is_ip(name))


def _application(seats: Seats, card: dict[str, Any]) -> Starlette:
    folder = resources.files("reverie.play") / "page"
    files = {item.name: item.read_bytes() for item in folder.iterdir() if f".{item.name.rpartition('.')[2]}" in _TYPES}
    for number, (frames, _) in enumerate(seats.starts):
        picture = io.BytesIO()
        write_png(picture, frames[-1])
        files[f"start-{number}.png"] = picture.getvalue()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in files:
            return PlainTextResponse("There is no such page.", 404)
        return Response(files[name], media_type={**_TYPES, ".png": "image/png"}[name[name.rindex(".") :]])

    async def play(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            async with seats.one() as session:
                await Connection(websocket, session, seats, card).run()
        except ReverieError as full:
            await websocket.send_json({"type": "busy", "text": str(full)})
            await websocket.close(TRY_LATER)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        seats.close()

    routes = [WebSocketRoute("/play", play), Route("/", page), Route("/{name}", page)]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.seats = seats
    return app


def _card(world: WorldModel, name: str, note: str, seed: int, starts: int) -> dict[str, Any]:
    """Return the greeting of the page: what this world is."""
    height, width, channels = world.config.frame
    actions = world.config.actions
    notes = {
        "none": "This world learned from video without actions: it dreams on by itself, nobody steers.",
        "latent": "The actions were inferred from video. Those with a name mostly happened when that key was pressed; "
        "try the others and see what they do."
        if actions.names
        else "The actions were inferred from video and have no names: try each and see what it does.",
    }
    buttons, levels, rest = actions.buttons, actions.levels, actions.rest
    return {
        "type": "world",
        "version": protocol.VERSION,
        "name": name,
        "frame": [height, width, channels],
        "fps": world.config.fps,
        "actions": {
            "kind": actions.kind,
            "count": actions.count,
            "size": len(buttons),
            "buttons": buttons,
            "levels": levels,
            "rest": rest,
            "names": actions.names,
            "keys": actions.keys,
        },
        "idle": int(np.ravel_multi_index(rest, levels)) if rest else 0,
        "temperature": round(100 * world.dynamics.temperature),
        "starts": starts,
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


def _listen(host: str, port: int, expose: bool) -> socket.socket:
    if not _loopback(host) and not expose:
        raise ReverieError(f"Others on the network could play at {host}: say --expose if you want that.")
    if port not in range(2**16):  # getaddrinfo would wrap it round
        raise ReverieError(f"There is no port {port}: choose 0 to 65535.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=64)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ReverieError(f"Port {port} is in use: try --port {port + 1}, or --port 0 for any free one.") from None
        raise ReverieError(f"Cannot listen at {host}, port {port}: {error.strerror}.") from None


def _origins(host: str) -> tuple[str, str]:
    return f"http://{host}", f"https://{host}"  # https: behind a proxy that adds it


def _loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _is_ip(host: str) -> bool:
    try:
        return ipaddress.ip_address(host) is not None
    except ValueError:
        return False
