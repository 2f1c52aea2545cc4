"""Clients that leave, too many at once, and the end: nothing leaks, nobody is cut off (T-18, T-20, T-22)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import pytest
from live import Gated, Live, data_uri, full, make_llava, running, user
from websockets.sync.client import connect

from trifocal.api.admission import Slot

CHAT = "/v1/chat/completions"
PARTS = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": data_uri("red")}]


def state(live: Live) -> dict[str, int]:
    """Everything that a request takes while it runs."""
    server = live.server
    engine: Any = live.llava.engine
    return {
        "running": server.admission.running,
        "waiting": server.admission.waiting,
        "runs": len(server._runs),
        "streams": engine.open,
        "tasks": len(live.listener.server_state.tasks),
        "threads": threads(),
    }


def threads() -> int:
    """All but the server's own, which are started when they are first needed, at most one a slot."""
    return sum(not thread.name.startswith("answer") for thread in threading.enumerate())


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def settle(live: Live, before: dict[str, int], seconds: float = 10) -> dict[str, int]:
    """The state, after everything had time to come to rest."""
    until = time.monotonic() + seconds
    while (now := state(live)) != before and time.monotonic() < until:
        time.sleep(0.02)
    return now


async def request(port: int, path: str, body: dict[str, Any], leave: float | None, how: str) -> bytes:
    """A request written by hand, which leaves after ``leave`` seconds."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sock = writer.get_extra_info("socket")
    try:
        writer.write(head.encode() + (data[:40] if how == "body" else data))
        if how == "half":
            writer.write_eof()
        if leave is None:
            return await reader.read()
        try:
            return await asyncio.wait_for(reader.read(), leave)
        except TimeoutError:
            return b""
    finally:
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


async def storm(port: int, count: int, seed: int) -> Counter[str]:
    """``count`` requests, sixteen at a time, a fifth of which leave somewhere on the way."""
    dice, limit = random.Random(seed), asyncio.Semaphore(16)
    seen: Counter[str] = Counter()

    async def one(at: int) -> None:
        leaves = dice.random() < 0.2
        stream = dice.random() < 0.5
        body = {"messages": [user(*PARTS)], "max_tokens": 20, "stream": stream}
        path = CHAT
        if dice.random() < 0.3:
            path, body = "/api/v1/generate", {"prompt": "x" * 20, "max_new_tokens": 20}
        how = dice.choice(["close", "reset", "body", "half"]) if leaves else "close"
        leave = dice.choice([0, 0.001, 0.005, 0.02, 0.05]) if leaves else None
        async with limit:
            answer = await request(port, path, body, leave, how)
        seen["left" if leaves else answer.split(b" ")[1].decode() if answer else "nothing"] += 1

    await asyncio.gather(*(one(at) for at in range(count)))
    return seen


def aborted(live: Live, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """The state before and after a storm."""
    asyncio.run(storm(live.port, 20, 1))
    at_rest = {"running": 0, "waiting": 0, "runs": 0, "streams": 0, "tasks": 0, "threads": threads()}
    before = settle(live, at_rest)
    open_files = files()
    seen = asyncio.run(storm(live.port, count, 2))
    assert seen["left"] > count * 0.1
    assert seen["200"] == count - seen["left"], seen
    after = settle(live, before)
    assert abs(files() - open_files) <= 2
    return before, after


def test_clients_that_leave_leak_nothing() -> None:
    with running(make_llava(Gated(hidden=8, delay=0.0005)), slots=4) as live:
        before, after = aborted(live, full(2000, 300))
    assert after == before
    assert after["running"] == after["waiting"] == after["streams"] == 0


def test_a_planted_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above must be able to fail: here one slot in fifty is never given back."""
    released, give_back = [0], Slot.release

    def forgetful(slot: Slot) -> None:
        released[0] += 1
        if released[0] != 50:
            give_back(slot)

    monkeypatch.setattr(Slot, "release", forgetful)
    with running(make_llava(Gated(hidden=8, delay=0.0005)), slots=4) as live:
        asyncio.run(storm(live.port, 20, 1))
        before = state(live)
        asyncio.run(storm(live.port, 60, 2))
        after = settle(live, before, 1)
    assert after["running"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_within_a_token(stream: bool) -> None:
    engine = Gated(hidden=8, delay=0.01)
    with running(make_llava(engine)) as live:
        body = {"messages": [user("Hello")], "stream": stream}
        asyncio.run(request(live.port, CHAT, body, 0.3, "close"))
        left, made = time.monotonic(), engine.made
        assert live.settled(2)
        assert time.monotonic() - left < 0.5
        assert 0 < made < 100
        assert engine.made - made <= 10  # what was made until the server saw the end of the connection
        assert engine.open == 0


def test_a_websocket_that_leaves_frees_its_slot() -> None:
    engine = Gated(hidden=8, delay=0.01)
    with running(make_llava(engine)) as live:
        for _ in range(5):
            with connect(f"ws://127.0.0.1:{live.port}/api/v1/stream", proxy=None) as websocket:
                websocket.send(json.dumps({"prompt": "x" * 150}))
                for _ in range(3):
                    websocket.recv(timeout=10)
            assert live.settled(2)
        assert engine.open == 0
        assert engine.made < 5 * 100


def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    engine = Gated(hidden=8)
    engine.gate.clear()
    with running(make_llava(engine), queue=2) as live, live.client() as client:
        holder = threading.Thread(target=lambda: client.post(CHAT, json={"messages": [user("Hold")]}))
        holder.start()
        while not engine.open:
            time.sleep(0.005)
        asyncio.run(request(live.port, CHAT, {"messages": [user("Wait")]}, 0.1, "close"))
        until = time.monotonic() + 5
        while live.server.admission.waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert live.server.admission.waiting == 0
        engine.gate.set()
        holder.join(20)


async def crowd(port: int, count: int) -> list[tuple[str, float, bytes]]:
    """Many requests at the very same time: status, seconds until the answer, and the answer."""
    body = {"messages": [user("Hello")], "max_tokens": 3}

    async def one() -> tuple[str, float, bytes]:
        started = time.perf_counter()
        answer = await request(port, CHAT, body, None, "close")
        return answer.split(b" ")[1].decode(), time.perf_counter() - started, answer

    return await asyncio.gather(*(one() for _ in range(count)))


def test_a_crowd_is_answered_or_refused_and_nobody_is_cut_off() -> None:
    """1,000 at once: four run, 64 wait, the others are told to come back; no connection is reset."""
    engine = Gated(hidden=8)
    engine.gate.clear()
    count = full(1000, 1000)
    with running(make_llava(engine), slots=4, queue=64) as live:
        opener = threading.Timer(6, engine.gate.set)
        opener.start()
        answers = asyncio.run(crowd(live.port, count))
        opener.join()
        assert live.settled()
    statuses = Counter(status for status, _, _ in answers)
    assert statuses == {"200": 68, "503": count - 68}
    refusals = [answer for status, _, answer in answers if status == "503"]
    assert all(b"retry-after: 1" in answer and b"server_busy" in answer for answer in refusals)


def test_a_refusal_takes_less_than_a_tenth_of_a_second() -> None:
    engine = Gated(hidden=8)
    engine.gate.clear()
    with running(make_llava(engine), queue=0) as live, live.client() as client:
        holder = threading.Thread(target=lambda: client.post(CHAT, json={"messages": [user("Hold")]}))
        holder.start()
        while not engine.open:
            time.sleep(0.005)
        seconds = []
        with live.client() as other:
            for _ in range(50):
                started = time.perf_counter()
                assert other.post(CHAT, json={"messages": [user("Hello")]}).status_code == 503
                seconds.append(time.perf_counter() - started)
        assert sorted(seconds)[len(seconds) // 2] < 0.1
        engine.gate.set()
        holder.join(20)


def test_each_key_has_its_share() -> None:
    from trifocal.api.settings import hash_key

    engine = Gated(hidden=8)
    engine.gate.clear()
    keys = {name: name * 16 for name in "ab"}
    with running(make_llava(engine), per_key=2, keys=frozenset(map(hash_key, keys.values()))) as live:

        async def ask(key: str) -> httpx.Response:
            async with httpx.AsyncClient(base_url=live.url, timeout=30, trust_env=False) as client:
                headers = {"Authorization": f"Bearer {keys[key]}"}
                return await client.post(CHAT, json={"messages": [user("Hi")]}, headers=headers)

        async def main() -> list[int]:
            first = [asyncio.create_task(ask("a")) for _ in range(2)]
            await asyncio.sleep(0.5)
            refused = await ask("a")
            assert refused.json()["error"]["code"] == "queue_full"
            other = asyncio.create_task(ask("b"))
            await asyncio.sleep(0.2)
            engine.gate.set()
            return [refused.status_code, *[(await task).status_code for task in (*first, other)]]

        assert asyncio.run(main()) == [429, 200, 200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request_with_words(stream: bool) -> None:
    engine = Gated(hidden=8, delay=0.02)
    with running(make_llava(engine), deadline=0.5) as live, live.client() as client:
        response = client.post(CHAT, json={"messages": [user("Hi")], "stream": stream})
        if stream:
            assert response.status_code == 200
            assert '"code":"timeout"' in response.text
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert response.status_code == 504
            assert response.json()["error"]["code"] == "timeout"
        assert live.settled(2)


def test_a_reader_that_stops_reading_is_dropped() -> None:
    engine = Gated(hidden=8, context=400_000)
    with running(make_llava(engine), write_seconds=1.0) as live:
        with socket.create_connection(("127.0.0.1", live.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = json.dumps({"prompt": "x" * 150_000, "stream": True, "max_tokens": 150_000}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sock.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            while not engine.open:
                time.sleep(0.01)
            assert live.settled(20)
        assert engine.made < 150_000


SERVE = """
import sys
from live import Gated, make_llava
from trifocal.api.app import create_app
from trifocal.api.server import Listener, listen
from trifocal.api.settings import ServerSettings
settings = ServerSettings(port=0, slots=8, drain=1.0)
sockets = listen(settings)
app = create_app(make_llava(Gated(hidden=8, delay=0.05)), settings)
print(sockets[0].getsockname()[1], flush=True)
Listener(app, settings).run(sockets=sockets)
app.state.server.close()
"""


def test_a_signal_drains_and_every_stream_is_told() -> None:
    """Eight streams and four half-sent bodies at SIGTERM: not ready at once, told, and gone within the grace."""
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        answers: list[bytes] = []

        async def ready() -> None:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                while True:
                    with suppress(httpx.ConnectError):
                        await client.get("/readyz")
                        return
                    await asyncio.sleep(0.05)

        async def main() -> float:
            await ready()
            body = {"messages": [user("Hello")], "stream": True}
            streams = [asyncio.create_task(request(port, CHAT, body, None, "close")) for _ in range(8)]
            halves = [asyncio.create_task(request(port, CHAT, body, 20, "body")) for _ in range(4)]
            await asyncio.sleep(1.5)
            process.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            await asyncio.sleep(0.15)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                assert (await client.get("/readyz")).status_code == 503
                assert (await client.get("/livez")).status_code == 200
                refused = await client.post(CHAT, json=body)
                assert refused.json()["error"]["code"] == "shutting_down"
            answers.extend(await asyncio.gather(*streams))
            await asyncio.gather(*halves)
            return asked

        asked = asyncio.run(main())
        assert process.wait(20) == 0
        assert time.monotonic() - asked < 5
    assert all(b'"code":"shutting_down"' in answer and b"data: [DONE]" in answer for answer in answers)
