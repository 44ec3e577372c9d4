"""Access control of the server: a page of another site must not reach a world on this machine.

The Host header must name this machine (against DNS rebinding) or an allowed name, such as that of a proxy or tunnel. A
websocket's Origin must be that host or an allowed name, since some proxies rewrite Host.
"""

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reverie.errors import ReverieError

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
_REPORTED = 8  # the most refused names that the terminal shows; more are an attack and no mistake


class Guard:
    """Refuses requests that a page of another site could have sent, and adds security headers.

    ``allowed``: further names of the server. Raises ReverieError for an invalid name.
    """

    def __init__(self, app: ASGIApp, host: str, allowed: Iterable[str] = ()):
        self.app, self.host = app, host
        self.allowed = [_name(name) for name in allowed]
        self.reported: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        origins = [value.decode("latin-1") for key, value in scope["headers"] if key == b"origin"]
        refusal = None
        if len(hosts) != 1 or not self._ours(hosts[0]):
            refusal = "This server answers to its own address only." + self._advice(hosts)
        elif scope["type"] == "websocket" and not all(self._may_play(origin, hosts[0]) for origin in origins):
            refusal = "A page of another site may not play here." + self._advice(origins)
        if refusal and scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": ""})  # 403: not accepted before

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                sockets = " ".join(f"{kind}://{host}" for host in (*hosts, *self.allowed) for kind in ("ws", "wss"))
                sources = "'none'" if refusal else f"'self'; connect-src 'self' {sockets}"
                policy = f"default-src {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
                extra = {**_HEADERS, "content-security-policy": policy}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        await (PlainTextResponse(refusal, 403) if refusal else self.app)(scope, receive, guarded)

    def _ours(self, host: str) -> bool:
        """Whether a Host header names this machine: by address, since a name could be rebound, or by its own name."""
        name = _host_of(f"//{host}")
        if name is None or not all(letter.isalnum() or letter in "-._:[]" for letter in host):
            return False  # it is copied into a header
        if loopback(name) or name in self.allowed:
            return True
        return not loopback(self.host) and (name in (self.host.lower(), socket.gethostname().lower()) or _is_ip(name))

    def _may_play(self, origin: str, host: str) -> bool:
        # Without Origin it is not a browser, so no page of a site. https: behind a proxy that adds TLS.
        return origin in (f"http://{host}", f"https://{host}") or _host_of(origin) in self.allowed

    def _advice(self, headers: list[str]) -> str:
        """Return advice about --allow-host; also print it, since a refused websocket shows no page."""
        name = _host_of(headers[0] if "//" in headers[0] else f"//{headers[0]}") if len(headers) == 1 else None
        if name is None or not re.fullmatch(r"[a-z0-9_.-]{1,253}", name):
            return " Start it with --allow-host NAME to reach it by another name."
        advice = f" If it is you who reaches it as {name}, start it with --allow-host {name}."
        if name not in self.reported and len(self.reported) < _REPORTED:
            self.reported.add(name)
            print(f"Refused a request for {name}.{advice}", file=sys.stderr, flush=True)
        return advice


def loopback(host: str) -> bool:
    """Whether a host is this machine only."""
    return host.lower() == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _host_of(url: str) -> str | None:
    """Return the lower-case host of a URL without its port; None if it has none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises if it is not a port
        return None if "@" in url else parts.hostname
    except ValueError:
        return None


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise ReverieError(f"--allow-host takes a name such as play.example.org, without scheme or port, not {name!r}.")
    return name.lower()


def _is_ip(host: str) -> bool:
    try:
        return ipaddress.ip_address(host) is not None
    except ValueError:
        return False
