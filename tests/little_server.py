"""A server of few lines that answers with the bytes it was told, so that tests can have it misbehave."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from waiting import PATIENCE

__all__ = ["Dripping", "Held", "Little", "answer", "events", "little", "stream"]


class Held(bytes):
    """Is sent, and then nothing more until the other side leaves."""


class Dripping(bytes):
    """Is sent again and again until the other side leaves; ``head`` once before it."""

    head = b""

    def after(self, head: bytes) -> Dripping:
        """The same behind a beginning."""
        self.head = head
        return self


@dataclass(eq=False)
class Little:
    """What it was asked, and whether somebody left while it kept silent."""

    url: str
    requests: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)


def answer(body: Any, status: str = "200 OK", kind: str = "application/json", **headers: str) -> bytes:
    """A whole answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{more}\r\n".encode() + data


def events(*told: Any, done: bool = True) -> bytes:
    """A stream of events that ends with its connection."""
    lines = [told_ if isinstance(told_, bytes) else json.dumps(told_).encode() for told_ in told]
    return stream(b"".join(b"data: " + line + b"\n\n" for line in [*lines, *([b"[DONE]"] if done else [])]))


def stream(lines: bytes) -> bytes:
    """A stream of these lines, whatever they are."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + lines


@contextlib.contextmanager
def little(
    *answers: bytes | None, models: Sequence[str | dict[str, Any]] = ("one",), listed: bytes = b""
) -> Iterator[Little]:
    """Gives one of ``answers`` a connection, the last one for ever; None keeps silent until the other side leaves.

    The list of models is told beside, or ``listed`` instead of it.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    found = Little(f"http://127.0.0.1:{listening.getsockname()[1]}")
    left = list(answers)
    stopped = threading.Event()
    known = [{"id": each} if isinstance(each, str) else each for each in models]
    listed = listed or answer({"object": "list", "data": known})

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE)
            head, body = _request(connection)
            if head.startswith("GET /v1/models "):
                connection.sendall(listed)
                return
            found.requests.append(head)
            found.bodies.append(json.loads(body) if body else None)
            told = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(told, Dripping):
                connection.sendall(told.head)
                with contextlib.suppress(OSError):
                    while not stopped.is_set():
                        connection.sendall(told)
                        stopped.wait(0.001 if len(told) < 1000 else 0)
            elif told:
                connection.sendall(told)
            if told is None or isinstance(told, Held):
                connection.recv(1)
            if told is None or isinstance(told, Held | Dripping):
                found.left.set()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stopped.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(PATIENCE)


def _request(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise OSError("nobody asked")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        more = connection.recv(65536)
        if not more:
            raise OSError("who asked left")
        body += more
    return head.decode("latin-1"), body
