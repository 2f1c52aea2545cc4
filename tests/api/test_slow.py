"""Clients that drip: closed in time, while others are served (T-17)."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
from live import full, running

DEADLINE = 1.5


async def drip(port: int, first: bytes, again: bytes) -> tuple[float, bytes]:
    """Sends a little, and a little more, until the server has had enough: after how long, and what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started, said = time.monotonic(), b""
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
    return time.monotonic() - started, said


async def siege(port: int, url: str, each: int) -> tuple[list[tuple[float, bytes]], list[float]]:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    drips = [drip(port, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"x: 1\r\n") for _ in range(each)]
    drips += [drip(port, head + b"\r\n", b"x") for _ in range(each)]
    drips += [drip(port, b"", b"") for _ in range(each // 2)]
    attack = asyncio.gather(*drips)
    seconds = []
    async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        while not attack.done():
            started = time.monotonic()
            assert (await client.get("/livez")).status_code == 200
            assert (await client.post("/api/v1/token-count", json={"prompt": "x"})).status_code == 200
            seconds.append(time.monotonic() - started)
            await asyncio.sleep(0.05)
    return await attack, seconds


def test_who_drips_is_closed_while_others_are_served() -> None:
    each = full(500, 60)
    settings = {"header_seconds": DEADLINE, "body_progress_seconds": DEADLINE, "body_seconds": 3 * DEADLINE}
    with running(**settings) as live:
        closed, seconds = asyncio.run(siege(live.port, live.url, each))
    heads, bodies, silent = closed[:each], closed[each : 2 * each], closed[2 * each :]
    assert max(after for after, _ in closed) < DEADLINE + 6
    assert all(said.startswith(b"HTTP/1.1 408 ") for _, said in heads + bodies)
    assert json.loads(heads[0][1].partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert all(said == b"" for _, said in silent)
    assert sorted(seconds)[len(seconds) // 2] < 0.5


def test_a_body_that_makes_progress_has_its_time() -> None:
    async def slowly(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = json.dumps({"prompt": "x" * 40}).encode()
        head = "POST /api/v1/token-count HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode())
        for at in range(0, len(data), 10):
            writer.write(data[at : at + 10])
            await asyncio.sleep(0.1)
        said = await reader.read()
        writer.close()
        return said

    with running(body_progress_seconds=0.4, body_progress_bytes=10) as live:
        assert asyncio.run(slowly(live.port)).startswith(b"HTTP/1.1 200 ")
