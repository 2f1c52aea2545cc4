"""Single requests that once stopped a server, their siblings and generated ones, sent to a server of its own.

After each the server lives, is ready, and has grown by less than a bound: the peak of its memory, as the system
counts it. How long ``/livez`` was silent is told (``-s``) and asserted nowhere: a busy machine is silent, too.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import full, user
from PIL import Image as Pictures
from test_hostile import BOMBS, blank_png

from test_encoded import FAT, SLOW, chunk
from waiting import PATIENCE, until

CHAT, RAW, COUNT, PREVIEW = "/v1/chat/completions", "/api/v1/generate", "/page/api/count", "/page/api/preview"
RESPONSES = "/v1/responses"
MOST = 300 << 20  # bytes beyond a request's own body and its decoded pictures
SERVE = """
import sys
from live import running, make_llava
from trifocal import load
from trifocal.web import routes
with load() as llava, running(llava, routes(), slots=4) as live:
    print(live.port, flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's own")


class Target:
    """A server in a process of its own, its memory, and how long it was silent."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    def memory(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(name))

    def strike(self, path: str, body: bytes) -> tuple[int, int, float]:
        """The status, by how much memory grew at its peak, and the longest silence of ``/livez``."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before, done, longest = self.memory("VmRSS"), threading.Event(), [0.0]

        def listen() -> None:
            with httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False) as client:
                while not done.is_set():
                    asked = time.monotonic()
                    assert client.get("/livez").status_code == 200
                    longest[0] = max(longest[0], time.monotonic() - asked)
                    time.sleep(0.01)

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            answer = self.client.post(path, content=body, headers={"Content-Type": "application/json"})
        finally:
            done.set()
            listener.join()
        return answer.status_code, self.memory("VmHWM") - before, longest[0]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    places = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVE], env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            made = Target(process, int(process.stdout.readline()))
            until(lambda: made.client.get("/readyz").status_code == 200, "the server")
            made.client.post(CHAT, json={"messages": [user("Hi")], "max_tokens": 1})
            yield made
            made.client.close()
        finally:
            process.kill()


def chat(*content: Any) -> bytes:
    return json.dumps({"messages": [user(*content)], "max_tokens": 1}).encode()


def response(*content: Any, **more: Any) -> bytes:
    """A body of `/v1/responses`."""
    asked = [{"role": "user", "content": list(content or [{"type": "input_text", "text": "Hi"}])}]
    return json.dumps({"input": asked, "max_output_tokens": 16, **more}).encode()


def pictured(data: bytes) -> bytes:
    return chat({"type": "image_url", "image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"})


def schema(value: Any) -> bytes:
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    return json.dumps({"messages": [user("Hi")], "max_tokens": 1, "response_format": held}).encode()


def deep_png() -> bytes:
    file = io.BytesIO()
    Pictures.fromarray(np.zeros((7990, 8000), np.uint16)).save(file, "PNG", compress_level=9)
    return file.getvalue()


BACKTRACKING = "data:image/png" + "; " * 20
ATTACKS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "a head that was tried in every way": lambda: (CHAT, chat({"type": "image_url", "image_url": BACKTRACKING})),
    "the same for the preview": lambda: (PREVIEW, json.dumps({"image": BACKTRACKING}).encode()),
    "the same in a prompt": lambda: (RAW, json.dumps({"prompt": f"<img src='{BACKTRACKING}'>"}).encode()),
    "the same to be counted": lambda: (
        COUNT,
        json.dumps({"messages": [user({"type": "image_url", "image_url": BACKTRACKING})]}).encode(),
    ),
    "the same for responses": lambda: (RESPONSES, response({"type": "input_image", "image_url": BACKTRACKING})),
    "30 MB of text for responses": lambda: (
        RESPONSES,
        response({"type": "input_text", "text": "word " * 6_000_000}),
    ),
    "44,000 properties for responses": lambda: (
        RESPONSES,
        response(
            text={
                "format": {
                    "type": "json_schema",
                    "name": "x",
                    "schema": {"properties": {f"p{at}": {} for at in range(44_000)}},
                }
            }
        ),
    ),
    "spaces after a source": lambda: (CHAT, chat("<img src=" + " " * 1_000_000)),
    "sources": lambda: (RAW, json.dumps({"prompt": "<img " + "src=a " * 160_000}).encode()),
    "30 MB of text": lambda: (RAW, json.dumps({"prompt": "word " * 6_000_000}).encode()),
    "30 MB of text and a tag": lambda: (RAW, json.dumps({"prompt": "word " * 6_000_000 + "<img"}).encode()),
    "30 MB of signs": lambda: (RAW, json.dumps({"prompt": "<" * 30_000_000}).encode()),
    "30 turns": lambda: (CHAT, json.dumps({"messages": [user("x" * (1 << 19))] * 30}).encode()),
    "30 MB of empty lists": lambda: (CHAT, b"[" + b"[]," * 10_000_000 + b"[]]"),
    "30 MB of brackets": lambda: (CHAT, b"[]" * 15_000_000),
    "30 MB of backslashes": lambda: (CHAT, b'["' + b"\\\\" * 15_000_000 + b'"]'),
    "30 MB of digits": lambda: (CHAT, b"9" * 30_000_000),
    "95,000 unknown keys": lambda: (CHAT, json.dumps({f"k{at}": 1 for at in range(95_000)}).encode()),
    "9,000 unknown keys": lambda: (CHAT, json.dumps({f"k{at}": 1 for at in range(9000)}).encode()),
    "44,000 properties": lambda: (CHAT, schema({"properties": {f"p{at}": {} for at in range(44_000)}})),
    "4,000 properties": lambda: (CHAT, schema({"properties": {f"p{at}": {} for at in range(4000)}})),
    "a wide picture": lambda: (CHAT, pictured(blank_png(16384, 82))),
    "a tall picture": lambda: (CHAT, pictured(blank_png(82, 16384))),
    "a wide preview": lambda: (
        PREVIEW,
        json.dumps({"image": f"data:;base64,{base64.b64encode(blank_png(16384, 82)).decode()}"}).encode(),
    ),
    "16 bits": lambda: (CHAT, pictured(deep_png())),
    "a million chunks": lambda: (CHAT, pictured(blank_png(8, 8, *[chunk(b"tEXt", b"a\0b")] * 1_000_000))),
    **{f"slow: {name}": lambda data=data: (CHAT, pictured(data)) for name, data in SLOW.items()},  # type: ignore[misc]
    **{f"fat: {name}": lambda data=data: (CHAT, pictured(data)) for name, data in FAT.items()},  # type: ignore[misc]
    **{f"bomb: {name}": lambda data=data: (CHAT, pictured(data)) for name, (data, _) in BOMBS.items()},  # type: ignore[misc]
}
DECODED = {"16 bits": 4 * 7990 * 8000}  # bytes of pixels that a request is told to hold


@pytest.mark.parametrize("name", ATTACKS)
def test_a_single_request_neither_ends_nor_fattens_the_server(target: Target, name: str) -> None:
    path, body = ATTACKS[name]()
    status, grown, silent = target.strike(path, body)
    print(f"{name}: {status}, {grown >> 20} MB, /livez silent for {silent * 1000:.0f} ms")
    assert status in (200, 400, 413, 503)
    assert grown < MOST + 4 * len(body) + DECODED.get(name, 0)
    assert target.client.get("/readyz").status_code == 200
    assert target.process.poll() is None


def generated(dice: random.Random) -> tuple[str, bytes]:
    """A body that repeats pieces of what dialects read, in one place of a request."""
    pieces = [
        "<img ",
        "src=",
        "data:image/png",
        ";base64,",
        "AAAA",
        " ",
        "'",
        '"',
        ">",
        "\\",
        "\u202e",
        "<|",
        "</s>",
        "[[",
    ]
    pieces += ["{%", "%41", "\ud83d\ude00", "&#x", "\x00", "a"]
    text = "".join(dice.choices(pieces, k=dice.randrange(1, 6))) * dice.choice([1, 100, 10_000, 50_000])
    body: dict[str, Any] = dice.choice(
        [
            {"messages": [user(text)]},
            {"messages": [user({"type": "image_url", "image_url": text})]},
            {"messages": [user("x")], "stop": [text] * dice.choice([1, 17])},
            {"messages": [user("x")], "response_format": {"type": "json_object", "json_schema": {text[:99]: text}}},
            {"messages": [{"role": text[:20], "content": text}] * 3},
        ]
    )
    if dice.random() < 0.3:
        return dice.choice([RAW, "/api/v1/token-count"]), json.dumps({"prompt": text}).encode()
    return dice.choice([CHAT, COUNT, "/api/chat", "/v1/messages"]), json.dumps({**body, "max_tokens": 1}).encode()


def test_generated_requests_neither_end_nor_fatten_the_server(target: Target) -> None:
    dice = random.Random(11)
    worst = silence = 0.0
    for _ in range(full(2000, 40)):
        path, body = generated(dice)
        status, grown, silent = target.strike(path, body)
        worst, silence = max(worst, grown), max(silence, silent)
        assert status < 500 or status == 503, (path, body[:200])
        assert grown < MOST + 4 * len(body), (path, body[:200])
    print(f"generated: {int(worst) >> 20} MB at most, /livez silent for {silence * 1000:.0f} ms at most")
    assert target.client.get("/readyz").status_code == 200
