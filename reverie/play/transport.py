"""TCP connections under the page: one that stays silent, or never ends, is closed and takes no place from others.

uvicorn has no time limit for a request's headers, none for a websocket's handshake, and closes a connection only once
its peer has read everything. Its own limit on connections answers 503, so a few silent ones would keep players out.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PATIENCE = 10.0  # seconds for one request, for a handshake, and for the peer to read a connection's end
OPEN = 256  # connections without a websocket; the oldest makes room for a new one


class Http(H11Protocol):
    """A connection that is closed unless each request is sent, answered and read within ``PATIENCE``."""

    def connection_made(self, transport: Any) -> None:
        """Begin, and close the oldest connections where there are too many."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self.deadline = self.loop.call_later(PATIENCE, transport.abort)
        # One that is closing stays in the set until the loop comes round; a burst would close the same one every time.
        others = [other for other in self.connections if isinstance(other, Http) and not other.transport.is_closing()]
        for other in sorted(others, key=lambda other: other.since)[:-OPEN]:
            other.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self.deadline.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Hand the connection over; ``Websocket`` has a deadline of its own."""
        self.deadline.cancel()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """Allow the next request as much time."""
        self.deadline.cancel()
        self.deadline = self.loop.call_later(PATIENCE, self.transport.abort)
        super().on_response_complete()


class Websocket(WebSocketsSansIOProtocol):
    """A websocket that ends when it should, whether or not its peer takes part."""

    def data_received(self, data: bytes) -> None:
        """Take bytes in; what no handshake allows for (an upgrade by POST, say) ends the connection."""
        super().data_received(data)
        if getattr(self.conn, "handshake_exc", None) is not None and not self.handshake_complete:
            self.transport.abort()

    def send_receive_event_to_app(self) -> None:
        """Hand a message on; text that is not UTF-8 closes the connection (RFC 6455, 8.1), without a traceback."""
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
        """Close; abort where the peer neither answers nor reads what is left."""
        super().on_task_complete(task)
        self.loop.call_later(PATIENCE, self.transport.abort)

    def keepalive_timeout(self) -> None:
        """A peer that answers no ping will read no farewell either."""
        super().keepalive_timeout()
        self.transport.abort()
