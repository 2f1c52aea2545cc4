"""How a server ends: whatever its clients hold open, it does, and raises nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from live import UPGRADE, Gated, Live, make_llava, running, user

from trifocal.web import routes
from waiting import PATIENCE, until

CHAT = json.dumps({"messages": [user("Hi")]}).encode()
ASK = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n\r\n".encode() + CHAT
LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
MASK = bytes(4)
CLOSE = b"\x88\x82" + MASK + b"\x03\xe8"


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What stays open until the server has ended."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def engine(held: ExitStack) -> Gated:
    """One that makes no token before the server has ended."""
    engine = Gated(hidden=8)
    engine.gate.clear()
    held.callback(engine.gate.set)
    return engine


def reading_nothing(live: Live, held: ExitStack) -> tuple[socket.socket, Any]:
    """A client that takes little and reads none of it, and the server's side of its connection."""
    client = held.enter_context(socket.socket())
    client.settimeout(PATIENCE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.connect(("127.0.0.1", live.port))
    connections = live.listener.server_state.connections
    until(lambda: connections, "the connection")
    return client, next(iter(connections))


@pytest.mark.parametrize("at_once", [False, True])
def test_it_ends_under_a_request_whose_client_reads_no_answers(held: ExitStack, engine: Gated, at_once: bool) -> None:
    """The answer before it is still on its way out, so that not even an error can be said to it."""
    with running(make_llava(engine), routes()) as live:
        client, connection = reading_nothing(live, held)
        while not connection.flow.write_paused:
            before = connection.cycle
            client.sendall(LARGE)
            answered = lambda: connection.cycle is not before and connection.cycle.response_complete  # noqa: E731, B023
            until(answered, "a whole answer")
        client.sendall(ASK)
        until(lambda: engine.held, "the answer's first token")
        live.listener.force_exit = at_once


def test_it_ends_under_a_websocket_whose_client_said_goodbye_and_reads_nothing(held: ExitStack) -> None:
    """The last words to it are still on their way out."""
    with running() as live:
        client, connection = reading_nothing(live, held)
        client.sendall(UPGRADE)
        sockets = live.listener.server_state.connections
        until(lambda: connection not in sockets and sockets, "the websocket")
        websocket: Any = next(iter(sockets))
        until(lambda: websocket.handshake_complete, "the handshake")
        ping = b"\x89\xfd" + MASK + bytes(125)
        while not websocket.transport.get_write_buffer_size():
            client.sendall(ping * 500)
            time.sleep(0.01)
        client.sendall(CLOSE)
        until(lambda: websocket.transport.is_closing(), "the close")
        assert websocket in sockets
