"""One HTTP request over a connection of its own, whose answer comes in time or not at all; any thread may end it."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from trifocal.cancelling import is_unwanted

__all__ = ["CONNECT_SECONDS", "Answer", "Connection"]

CONNECT_SECONDS = 5.0


class _Patient(io.RawIOBase):
    """The bytes of a socket. Two of them are at most ``gap`` seconds apart, and all that is waited for is there at
    ``until``: who sends a byte now and then keeps nobody for ever."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock, self._raw = sock, raw
        self.gap, self.until = CONNECT_SECONDS, float("inf")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Fills a buffer with what comes.

        Raises:
            TimeoutError: nothing in time.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long as a whole")
        self._sock.settimeout(min(self.gap, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Lets the socket go."""
        self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer that is read within the time that `within` gives it."""

    def __init__(self, sock: socket.socket, *given: Any, **more: Any) -> None:
        super().__init__(sock, *given, **more)
        self.patient = _Patient(sock, self.fp.detach())
        self.fp = io.BufferedReader(self.patient)

    def within(self, gap: float, seconds: float) -> None:
        """From now on: the longest time between two bytes, and the time until what is read next is whole."""
        self.patient.gap, self.patient.until = gap, time.monotonic() + seconds


class Connection:
    """One request to one address. Redirects are not followed: what it says was meant for this address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._base, host = parts.path, parts.hostname or ""
        self._socket: socket.socket | None = None  # http.client forgets it where the server will close it
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._line: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=CONNECT_SECONDS, context=context
            )
        else:
            self._line = http.client.HTTPConnection(host, parts.port, timeout=CONNECT_SECONDS)

    def ask(self, path: str, body: bytes | None, headers: Mapping[str, str], seconds: float) -> Answer:
        """The answer's beginning, so many seconds after the request was sent at most. Without a body it is a GET.

        Raises:
            OSError: it can't be asked, or did not answer in time.
            http.client.HTTPException: what it answers is no HTTP.
            ValueError: nor can it be asked for by that name.
        """

        def sent(sock: socket.socket, *given: Any, **more: Any) -> Answer:
            answer = Answer(sock, *given, **more)
            answer.within(seconds, seconds)
            return answer

        self._line.response_class = sent  # type: ignore[assignment]  # it is only ever called
        self._line.connect()
        self._socket = self._line.sock
        if is_unwanted():  # who left while it was made found no socket to end
            raise ConnectionAbortedError("nobody waits for it any more")
        self._socket.settimeout(seconds)
        self._line.request("GET" if body is None else "POST", self._base + path, body, dict(headers))
        answer = self._line.getresponse()
        assert isinstance(answer, Answer)
        return answer

    def end(self) -> None:
        """Ends it under whoever waits for it."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Frees what it took; an `Answer` is closed for itself."""
        self._line.close()
