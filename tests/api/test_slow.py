"""Clients that drip: closed in time, while others are served (T-17)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
from live import NO_AUTHORITIES, full, make_llava, running

from trifocal.api.guard import BodyLimit
from trifocal.api.needs import NOTHING
from trifocal.api.serving import Server
from trifocal.api.settings import ServerSettings
from twins import is_found
from waiting import PATIENCE


async def drip(port: int, first: bytes, again: bytes) -> bytes:
    """Sends a little, and a little more, until the server has had enough: what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""
    try:
        writer.write(first)
        while True:
            try:
                piece = await asyncio.wait_for(reader.read(4096), 0.4)
                if not piece:
                    break
                said += piece
            except TimeoutError:
                if again:
                    writer.write(again)
    except ConnectionError:
        pass
    finally:
        writer.close()
    return said


async def siege(port: int, url: str, each: int) -> tuple[list[bytes], int]:
    """What those who drip were told, and how often others were answered meanwhile."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    drips = [drip(port, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"x: 1\r\n") for _ in range(each)]
    drips += [drip(port, head + b"\r\n", b"x") for _ in range(each)]
    drips += [drip(port, b"", b"") for _ in range(each // 2)]
    attack, served = asyncio.gather(*drips), 0
    async with asyncio.timeout(PATIENCE):
        while not attack.done():
            async with httpx.AsyncClient(
                base_url=url, timeout=PATIENCE, trust_env=False, verify=NO_AUTHORITIES
            ) as client:
                assert (await client.get("/livez")).status_code == 200
                assert (await client.post("/api/v1/token-count", json={"prompt": "x"})).status_code == 200
            served += 1
            await asyncio.sleep(0.05)
    return await attack, served


def test_who_drips_is_closed_while_others_are_served() -> None:
    each, deadline = full(500, 60), 1.5
    settings = {"header_seconds": deadline, "body_progress_seconds": deadline, "body_seconds": 3 * deadline}
    with running(**settings) as live:
        closed, served = asyncio.run(siege(live.port, live.url, each))
    heads, bodies, silent = closed[:each], closed[each : 2 * each], closed[2 * each :]
    assert all(said.startswith(b"HTTP/1.1 408 ") for said in heads + bodies)
    assert json.loads(heads[0].partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert all(said == b"" for said in silent)
    assert served > 0


class Jumping(asyncio.SelectorEventLoop):
    """A loop in which time passes only while everybody waits for it, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select
        self._selector.select = lambda timeout=None: self._wait(select, timeout)

    def time(self) -> float:
        return self._now

    def _wait(self, select: Callable[[float], Any], timeout: float | None) -> Any:
        self._now += timeout or 0.0
        return select(0)


def bodied(seconds: float, pieces: list[bytes], **settings: Any) -> tuple[int, bytes]:
    """The status of a request whose body comes a piece every so many seconds, and what the app was given."""
    server = Server(make_llava(), replace(ServerSettings(), **settings))
    left, said = list(pieces), [0]
    given = b""

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        nonlocal given
        given, said[0] = (await receive())["body"], 200

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: dict[str, Any]) -> None:
        said[0] = message.get("status", said[0])

    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": []}
    scope |= {"trifocal.needs": NOTHING, "trifocal.caller": "x"}
    with asyncio.Runner(loop_factory=Jumping) as runner:
        runner.run(BodyLimit(app, server)(scope, receive, send))
    server.close()
    return said[0], given


def test_a_body_that_makes_progress_has_its_time() -> None:
    pieces = [b"0123456789"] * 50
    assert bodied(1.0, pieces, body_progress_seconds=2, body_progress_bytes=10) == (200, b"".join(pieces))
    assert bodied(3.0, pieces, body_progress_seconds=2, body_progress_bytes=10)[0] == 408
    assert bodied(1.0, pieces, body_progress_seconds=2, body_progress_bytes=40)[0] == 408
    assert bodied(1.0, pieces, body_progress_seconds=2, body_progress_bytes=10, body_seconds=49)[0] == 408


async def patient(self: BodyLimit, receive: Callable[[], Awaitable[Any]], until: float) -> Any:
    """Waits for the next piece however long that takes."""
    return await receive()


def test_its_twin_that_waits_for_ever_is_found() -> None:
    is_found(test_a_body_that_makes_progress_has_its_time, BodyLimit, "_piece", patient)
