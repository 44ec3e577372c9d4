"""The server of a page for this machine, unless ``expose`` is set: its socket, its limits, how it runs until Ctrl-C."""

import contextlib
import errno
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from importlib import resources

import uvicorn
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from reverie.errors import ReverieError
from reverie.play.guard import Guard, loopback
from reverie.play.transport import Http, Websocket

TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def listen(host: str, port: int, expose: bool) -> socket.socket:
    """Return a socket that listens; ReverieError if it cannot, or if others could reach it without ``expose``."""
    if not loopback(host):
        if not expose:
            raise ReverieError(f"Others on the network could play at {host}: say --expose if you want that.")
        print(f"Warning: everyone who can reach {host} can play, on this machine's time.", file=sys.stderr)
    if port not in range(2**16):  # getaddrinfo would take it modulo 2**16
        raise ReverieError(f"There is no port {port}: choose 0 to 65535.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=64)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ReverieError(f"Port {port} is in use: try --port {port + 1}, or --port 0 for any free one.") from None
        raise ReverieError(f"Cannot listen at {host}, port {port}: {error.strerror}.") from None


def server_of(
    app: ASGIApp, listening: socket.socket, host: str, allow_hosts: Sequence[str], longest: int
) -> tuple[uvicorn.Server, str]:
    """Return (server, address) of a guarded application; longest: bytes of a message that it takes."""
    config = uvicorn.Config(
        Guard(app, host, allow_hosts),
        http=Http,
        ws=Websocket,
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=16 << 10,  # bytes of a request's headers
        timeout_graceful_shutdown=1,
        ws_max_size=longest,
        ws_per_message_deflate=False,  # costs more time than it saves locally
    )
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return uvicorn.Server(config), f"http://{shown}:{listening.getsockname()[1]}/"


def run_server(server: uvicorn.Server, listening: socket.socket, address: str, line: str, open_browser: bool) -> None:
    """Print a line with the address, and serve until Ctrl-C."""
    print(f"{line} at {address}", flush=True)
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()  # some browsers block
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean shutdown
        server.run(sockets=[listening])


def page_files(package: str, folder: str = "page") -> dict[str, bytes]:
    """Return what a browser loads of a package's folder, by file name."""
    found = resources.files(package) / folder
    return {item.name: item.read_bytes() for item in found.iterdir() if f".{item.name.rpartition('.')[2]}" in TYPES}


def file_response(files: dict[str, bytes], name: str) -> Response:
    """Return the answer to a request for a file; an empty name is index.html."""
    name = name or "index.html"
    if name not in files:
        return PlainTextResponse("There is no such page.", 404)
    return Response(files[name], media_type=TYPES[name[name.rindex(".") :]])
