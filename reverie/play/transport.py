"""Time limits of TCP connections: one that stays silent or never ends is closed, so that it blocks no other.

uvicorn has no time limit for the headers of a request or for a websocket's handshake, and closes a connection only once
its peer has read everything. Its limit on connections answers 503, so a few silent ones would keep players out.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PATIENCE = 10.0  # seconds for a request, for a handshake, and for the peer to read the end of a connection
OPEN = 256  # the most connections without a websocket; a new one closes the oldest


class Http(H11Protocol):
    """A connection that is closed unless each request is sent, answered and read within ``PATIENCE``."""

    def connection_made(self, transport: Any) -> None:
        """Start the deadline, and close the oldest connections if there are too many."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self.deadline = self.loop.call_later(PATIENCE, transport.abort)
        # A closing connection stays in the set for a while, and a burst would close the same one repeatedly.
        others = [other for other in self.connections if isinstance(other, Http) and not other.transport.is_closing()]
        for other in sorted(others, key=lambda other: other.since)[:-OPEN]:
            other.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        self.deadline.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Cancel the deadline, since ``Websocket`` has its own."""
        self.deadline.cancel()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """Restart the deadline for the next request."""
        self.deadline.cancel()
        self.deadline = self.loop.call_later(PATIENCE, self.transport.abort)
        super().on_response_complete()


class Websocket(WebSocketsSansIOProtocol):
    """A websocket that ends in time, whether or not its peer cooperates."""

    def data_received(self, data: bytes) -> None:
        """Receive bytes; abort after an invalid handshake, such as an upgrade by POST."""
        super().data_received(data)
        if getattr(self.conn, "handshake_exc", None) is not None and not self.handshake_complete:
            self.transport.abort()

    def send_receive_event_to_app(self) -> None:
        """Pass a message on; close the connection if text is not UTF-8 (RFC 6455, 8.1), without a traceback."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                if not self.close_sent:
                    self.conn.send_close(1007)
                    self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Close, and abort if the peer neither answers nor reads the rest."""
        super().on_task_complete(task)
        self.loop.call_later(PATIENCE, self.transport.abort)

    def keepalive_timeout(self) -> None:
        """Abort: a peer that answers no ping will not read a close frame."""
        super().keepalive_timeout()
        self.transport.abort()
