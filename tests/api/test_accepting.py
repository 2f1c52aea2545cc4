"""More connections than there are descriptors: they are told, they wait, and nothing is written about it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import pytest
from live import NO_AUTHORITIES, running
from test_load import SERVE

from trifocal.api.accepting import LimitedListener, room_for_connections
from trifocal.api.seeing import serve_vision
from trifocal.api.server import listen, serve
from trifocal.api.settings import ServerSettings
from trifocal.errors import CheckpointError, UsageError
from trifocal.model.settings import Settings
from twins import is_found
from waiting import PATIENCE, line_of, until

FEW = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n{SERVE}"


def answers(port: int) -> bool:
    try:
        told = httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False, timeout=PATIENCE, verify=NO_AUTHORITIES)
    except httpx.TransportError:
        return False
    return told.status_code == 200


def test_a_crowd_of_silent_connections_is_told_and_logs_nothing() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", FEW, "1"]
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            port = int(line_of(process))
            crowd = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(200)]
            last = crowd[-1]
            assert last.recv(4096).startswith(b"HTTP/1.1 503 ")
            for sock in crowd:
                sock.close()
            until(lambda: answers(port), "room after the crowd")
            process.terminate()
            assert process.wait(PATIENCE) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_one_over_the_limit_is_told_and_its_place_comes_free() -> None:
    with running(connections=3) as live:
        held = [socket.create_connection(("127.0.0.1", live.port), timeout=PATIENCE) for _ in range(3)]
        with socket.create_connection(("127.0.0.1", live.port), timeout=PATIENCE) as over:
            said = over.recv(4096)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"3 connections are open" in said
        for sock in held:
            sock.close()
        until(lambda: answers(live.port), "room")


def test_the_limit_is_what_the_process_has_room_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 400) if hard > 0 else 400, hard))
        assert 8 <= room_for_connections(ServerSettings()) < 360
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_second_server_on_a_port_is_told_so() -> None:
    (first,) = listen(ServerSettings(port=0))
    port = first.getsockname()[1]
    with first, ExitStack() as taken, pytest.raises(UsageError, match=f"127.0.0.1:{port}: it is in use already"):
        [taken.enter_context(each) for each in listen(ServerSettings(port=port))]


def test_its_twin_that_shares_its_port_is_found() -> None:
    def bind(listener: LimitedListener, address: tuple[str, int]) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super(LimitedListener, listener).bind(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LimitedListener, "bind", LimitedListener.bind, raising=False)
        is_found(test_a_second_server_on_a_port_is_told_so, LimitedListener, "bind", bind)


@pytest.mark.parametrize("begin", [serve, serve_vision])
def test_whatever_fails_before_it_serves_the_port_is_free_again(
    begin: Callable[[Settings, ServerSettings], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise CheckpointError("there is nothing")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for module in ("server", "seeing"):
        monkeypatch.setattr(f"trifocal.api.{module}.log_to_stderr", fails)
    with pytest.raises(CheckpointError):
        begin(Settings(), ServerSettings(port=port))
    listen(ServerSettings(port=port))[0].close()
