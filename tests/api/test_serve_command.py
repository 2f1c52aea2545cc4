"""``trifocal serve`` as people start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from live import NO_AUTHORITIES
from websockets.sync.client import connect

from trifocal.cli.serve import open_in_browser, serve
from trifocal.errors import UsageError
from trifocal.web import routes
from waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("forked")

KEY = "0123456789abcdef-test"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@contextmanager
def serving(tmp_path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "trifocal", "serve", *options]
    environment = {**os.environ, "TRIFOCAL_API_KEY": KEY}
    environment.pop("TRIFOCAL_FULL", None)  # the tests' own, which is no setting and is told to be none
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        try:
            yield process
        finally:
            process.kill()


def answers(client: httpx.Client, status: int | None = None) -> bool:
    """Whether /readyz is answered, with that status; asked no faster than a log that nobody reads can bear."""
    time.sleep(0.05)
    try:
        return client.get("/readyz").status_code in ((status,) if status else (200, 503))
    except httpx.TransportError:
        return False


def wait_until_ready(client: httpx.Client) -> None:
    until(lambda: answers(client, 200), "the server's being ready")


def test_it_serves_two_ports_until_it_is_told_to_stop(tmp_path: Path) -> None:
    port, legacy = free_ports(2)
    options = ("--port", str(port), "--legacy-port", str(legacy), "--log-format", "json")
    headers = {"Authorization": f"Bearer {KEY}"}
    with serving(tmp_path, *options) as process:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE, verify=NO_AUTHORITIES
        ) as client:
            wait_until_ready(client)
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers=headers).json()["data"][0]["id"] == "thimble"
            page = client.get("/")
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
            for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
                assert client.get(path).status_code == 200, path
            assert client.get("/page/api/info").status_code == 401
        with connect(f"ws://127.0.0.1:{legacy}/api/v1/stream", proxy=None, additional_headers=headers) as websocket:
            websocket.send(json.dumps({"prompt": "Hi", "max_new_tokens": 2}))
            assert json.loads(websocket.recv(timeout=PATIENCE))["event"] == "text_stream"
        second = subprocess.run(
            [sys.executable, "-m", "trifocal", "serve", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert second.returncode == 2
        assert f"127.0.0.1:{port}" in second.stderr
        assert "Traceback" not in second.stderr
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0
    lines = said.splitlines()
    places = f"http://127.0.0.1:{port}, http://127.0.0.1:{legacy}; the page: http://127.0.0.1:{port}/"
    lines.remove(f"thimble is served at {places} (Ctrl-C ends it)")
    requests = [json.loads(line) for line in lines]
    assert {"id", "method", "route", "status", "seconds"} <= set(requests[0])
    assert KEY not in said


def test_what_needs_no_model_is_answered_while_it_loads(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    gate = tmp_path / "gate"
    os.mkfifo(gate)  # whoever reads it waits until somebody writes
    with serving(tmp_path, "--port", str(port), "--template", str(gate)) as process:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE, verify=NO_AUTHORITIES
        ) as client:
            until(lambda: answers(client), "the server")
            assert client.get("/livez").status_code == 200
            assert "<html" in client.get("/").text
            told = client.get("/readyz")
            assert (told.status_code, told.json()["error"]["code"]) == (503, "model_loading")
            assert client.get("/v1/models", headers={"x-api-key": KEY}).status_code == 503
            assert client.get("/v1/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_it_does_not_listen_to_others_without_a_key(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trifocal", "serve", "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != "TRIFOCAL_API_KEY"}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=PATIENCE)
    assert shown.returncode == 2
    assert "no key is set" in shown.stderr


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """With what the server would have been started."""
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("trifocal.api.serve", lambda *given: calls.append(given))
    return calls


def test_the_page_is_shown_unless_told_not_to(started: list[tuple[object, ...]]) -> None:
    runner = CliRunner()
    for options, expected in (
        ([], (routes, None)),
        (["--no-page"], (None, None)),
        (["--open"], (routes, open_in_browser)),
    ):
        assert runner.invoke(serve, options, catch_exceptions=False).exit_code == 0
        assert started.pop()[2:4] == expected
    with pytest.raises(UsageError, match="--no-page"):
        runner.invoke(serve, ["--open", "--no-page"], catch_exceptions=False)
    assert not started


def test_without_a_page_nothing_is_public_at_the_root(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with serving(tmp_path, "--port", str(port), "--no-page") as process:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE, verify=NO_AUTHORITIES
        ) as client:
            wait_until_ready(client)
            assert client.get("/").text == "Trifocal is running"  # what Ollama's clients look for, and nothing more
            assert client.get("/page/api/info").status_code == 401
            assert client.get("/page/api/info", headers={"x-api-key": KEY}).status_code == 404
        process.send_signal(signal.SIGTERM)
        (line,) = [line for line in process.communicate(timeout=PATIENCE)[1].splitlines() if "is served at" in line]
        assert "page" not in line


def test_only_a_browser_with_a_window_is_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    class Window(webbrowser.BackgroundBrowser):
        def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
            opened.append(url)
            return True

    def no_browser() -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", lambda: Window("firefox"))
    open_in_browser("http://127.0.0.1:5000/")
    assert opened == ["http://127.0.0.1:5000/"]
    for get in (no_browser, lambda: webbrowser.GenericBrowser("lynx")):
        monkeypatch.setattr(webbrowser, "get", get)
        open_in_browser("http://127.0.0.1:5000/")
        assert "no browser to open here; the page is at http://127.0.0.1:5000/" in capsys.readouterr().err
    assert len(opened) == 1
