"""uvicorn's HTTP protocol with what it lacks: a deadline for headers, a bound for chunks, and our error object."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from trifocal.api.errors import Refusal, server_busy
from trifocal.api.wire import dump

__all__ = ["Sliced", "protocol"]

_CHUNKS = 1000  # that a body may have whatever is in them, and one more
_CHUNK = 256  # for so many bytes
_SLICE = 4096  # bytes of frames in one turn: 700 of the smallest


def protocol(header_seconds: float, connections: int) -> type[H11Protocol]:
    """The protocol class with these bounds: uvicorn makes the objects and passes it nothing of ours."""

    class Timed(_Timed):
        seconds = header_seconds
        most = connections

    return Timed


class _TooManyChunks(h11.RemoteProtocolError):
    """A body comes in pieces of a few bytes."""


class _Counting(h11.Connection):
    """Counts the chunks in which a body comes: each costs 50 microseconds, and what is read at once may be 40,000."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        """What comes next.

        Raises:
            RemoteProtocolError: it is no HTTP, or a body of too many chunks.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > _CHUNKS + self._bytes // _CHUNK:
                raise _TooManyChunks(f"{self._chunks} chunks for {self._bytes} bytes")
        return event


class _Timed(H11Protocol):
    """Closes a connection on which no whole request head arrives in time, however it drips."""

    seconds: float
    most: int
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, config: Config, *further: Any, **named: Any) -> None:
        super().__init__(config, *further, **named)
        self.conn = _Counting(h11.SERVER, config.h11_max_incomplete_event_size or 0)

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

    def shutdown(self) -> None:
        """The server ends; what is closing already has had its last words."""
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets the error object too."""
        error = sys.exc_info()[1]
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        if too_large:
            self._refuse(Refusal(431, "headers_too_large", "the request head is too large"))
        elif isinstance(error, _TooManyChunks):
            words = f"{error}: send larger chunks, of {_CHUNK} bytes on average where there are over {_CHUNKS}"
            self._refuse(Refusal(400, "invalid_request", words))
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


class Sliced(WebSocketsSansIOProtocol):
    """A websocket whose frames are read a few at a time: what comes at once may be 40,000, two seconds of work."""

    _left = b""

    def data_received(self, data: bytes) -> None:
        """Reads the first slice; nothing more is taken until all were read, and others have their turn in between."""
        if not self.handshake_initiated:
            super().data_received(data)
        elif self._left:
            self._left += data
        else:
            self._left = data
            self._read()

    def shutdown(self) -> None:
        """The server ends; what is closing already has had its last words."""
        if not self.transport.is_closing():
            super().shutdown()

    async def receive(self) -> Any:
        """What the application is told next, which would have the next bytes taken, too."""
        message = await super().receive()
        if self._left:
            self.transport.pause_reading()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets what was not read."""
        self._left = b""
        super().connection_lost(exc)

    def _read(self) -> None:
        piece, self._left = self._left[:_SLICE], self._left[_SLICE:]
        if self.transport.is_closing():
            self._left = b""
        elif piece:
            try:
                super().data_received(piece)
            except (InvalidState, AssertionError):  # uvicorn's, which wants to close what is closing or not open yet
                self.transport.abort()
                return
            if self._left:
                self.transport.pause_reading()
                self.loop.call_soon(self._read)
            elif not self.read_paused:
                self.transport.resume_reading()
