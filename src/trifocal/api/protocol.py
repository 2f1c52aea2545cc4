"""uvicorn's HTTP protocol with what it lacks: a deadline for headers, and our error object."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trifocal.api.errors import Refusal, server_busy
from trifocal.api.wire import dump

__all__ = ["protocol"]


def protocol(header_seconds: float, connections: int) -> type[H11Protocol]:
    """The protocol class with these bounds: uvicorn makes the objects and passes it nothing of ours."""

    class Timed(_Timed):
        seconds = header_seconds
        most = connections

    return Timed


class _Timed(H11Protocol):
    """Closes a connection on which no whole request head arrives in time, however it drips."""

    seconds: float
    most: int
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts the clock of the first head, where there is room for one more connection."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(server_busy(message=f"{self.most} connections are open already"))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Stops the clock when the head is whole."""
        super().data_received(data)
        self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """The websocket's own pings watch it from here on."""
        self._stop()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """Starts the clock of the next head."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the clock."""
        super().connection_lost(exc)
        self._stop()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets the error object too."""
        error = sys.exc_info()[1]
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        if too_large:
            self._refuse(Refusal(431, "headers_too_large", "the request head is too large"))
        else:
            self._refuse(Refusal(400, "invalid_request", "this is no HTTP request"))

    def _watch(self) -> None:
        head_is_open = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if head_is_open and self._timer is None and self.transport.get_protocol() is self:
            self._timer = self.loop.call_later(self.seconds, self._too_slow)
        elif not head_is_open:
            self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.conn.trailing_data[0]:
            self._refuse(Refusal(408, "request_timeout", "the request head came too slowly"))
        else:
            self.transport.close()
        self.loop.call_later(1, self.transport.abort)

    def _refuse(self, refusal: Refusal) -> None:
        """Writes the answer by hand: there is no request that an application could answer."""
        body = dump(refusal.body()).encode()
        head = f"HTTP/1.1 {refusal.status} Refused\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE, h11.ERROR):
            self.transport.write(head.encode() + body)
        self.transport.close()
