"""Single requests that once stopped a server, their siblings and generated ones, sent to a server of its own.

After each the server lives, is ready, has grown by less than a bound at the peak of its memory, as the system counts
it, and was not silent for longer than `silence` allows by its own doing. Twins without limits are found out.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import SHUT_WR, create_connection, create_server, socket
from threading import Thread
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from attacking import SOCKETS, Attack, attack, over_socket
from live import NO_AUTHORITIES, UPGRADE, full, user
from PIL import Image as Pictures
from silence import Listener, longest
from test_hostile import BOMBS, blank_png
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from test_encoded import FAT, SLOW, chunk
from waiting import PATIENCE, line_of, until

CHAT, RAW, COUNT, PREVIEW = "/v1/chat/completions", "/api/v1/generate", "/page/api/count", "/page/api/preview"
RESPONSES = "/v1/responses"
MOST = 300 << 20  # bytes beyond a request's own body and its decoded pictures
SILENCE = 0.2  # seconds
ASKING: dict[str, Any] = {"timeout": PATIENCE, "trust_env": False}
TRIES = 5  # a machine can make one measurement bad, or three, not five
SERVE = """
import sys
from live import running
from trifocal import load
from trifocal.api.server import SWITCH
from trifocal.web import routes
sys.setswitchinterval(SWITCH)
with load() as llava, running(llava, routes(), slots=4) as live:
    print(live.port, flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's own")


class Target:
    """A server in a process of its own, its memory, and how long it was silent."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.url, self.listening = process, f"http://127.0.0.1:{port}", ("127.0.0.1", port)
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, verify=NO_AUTHORITIES)
        self.listener = Listener(process.pid, port)

    def memory(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(name))

    def strike(self, one: Attack) -> Struck:
        """What came of it, beside a listener."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before = self.memory("VmRSS")
        self.listener.begin()
        if one.method == "WEBSOCKET":
            status = self._talk(one)
        elif one.method == "RAW":
            status = self._said(one.body)
        elif one.method == "FRAMES":
            status = self._framed(one.body)
        else:
            answer = self.client.request(one.method, one.path, content=one.body, headers=one.headers)
            status = answer.status_code
        return Struck(status, self.memory("VmHWM") - before, longest(self.listener.end()))

    def _said(self, data: bytes) -> int:
        """The status for bytes that are sent as they are; 0 where the connection was closed before it was told."""
        with suppress(ConnectionError), create_connection(self.listening, timeout=PATIENCE) as client:
            with suppress(ConnectionError):  # it was told before it had sent all
                client.sendall(data)
            return int(client.recv(12)[9:] or 0)
        return 0

    def _framed(self, data: bytes) -> int:
        """The status of a websocket, to which these frames were sent until it was closed or took them all."""
        with create_connection(self.listening, timeout=PATIENCE) as client:
            client.sendall(UPGRADE)
            status = int(client.recv(12)[9:])
            reading = Thread(target=self._drained, args=[client])
            reading.start()
            with suppress(ConnectionError):
                client.sendall(data)
            with suppress(OSError):  # it was closed from there
                client.shutdown(SHUT_WR)
            reading.join(PATIENCE)
        return status

    @staticmethod
    def _drained(client: socket) -> None:
        with suppress(ConnectionError):
            while client.recv(1 << 16):
                pass

    def _talk(self, one: Attack) -> int:
        """Sends it as a frame; 200 where it was answered to its end, or the socket closed."""
        url = f"{self.url.replace('http', 'ws')}{one.path}"
        with suppress(ConnectionClosed), connect(url, proxy=None, max_size=None) as socket:
            socket.send(one.body.decode("utf-8", "replace"))
            while json.loads(socket.recv(PATIENCE))["event"] != "stream_end":
                pass
        return 200


@dataclass(frozen=True)
class Struck:
    """What came of a request: its status, the bytes by which memory grew, and seconds of silence."""

    status: int
    grown: int
    silent: float


def check(struck: Struck, body: int, decoded: int = 0) -> None:
    """Holds it to the bounds, ``body`` and ``decoded`` being bytes that a request is told to hold."""
    assert struck.status < 500 or struck.status in (501, 503), struck
    assert struck.grown < MOST + 4 * body + decoded, struck
    assert struck.silent < SILENCE, struck


def strike(target: Target, one: Attack, decoded: int = 0) -> Struck:
    """Sends it, and again where the machine may be what was measured."""
    for left in reversed(range(TRIES)):
        struck = target.strike(one)
        try:
            check(struck, len(one.body), decoded)
        except AssertionError:
            if not left:
                raise
        else:
            break
    assert target.process.poll() is None
    assert target.client.get("/readyz").status_code == 200
    return struck


@contextmanager
def served(before: str = "") -> Iterator[Target]:
    """A server in a process of its own, in which something else happens first."""
    places = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", before + SERVE], env=environment, **pipes) as process:
        try:
            made = Target(process, int(line_of(process)))
            until(lambda: made.client.get("/readyz").status_code == 200, "the server")
            made.client.post(CHAT, json={"messages": [user("Hi")], "max_tokens": 1})
            yield made
            made.client.close()
            made.listener.close()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with served() as made:
        yield made


def chat(*content: Any) -> bytes:
    return json.dumps({"messages": [user(*content)], "max_tokens": 1}).encode()


def response(*content: Any, **more: Any) -> bytes:
    """A body of `/v1/responses`."""
    asked = [{"role": "user", "content": list(content or [{"type": "input_text", "text": "Hi"}])}]
    return json.dumps({"input": asked, "max_output_tokens": 16, **more}).encode()


def data_uri_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def pictured(data: bytes) -> bytes:
    return chat({"type": "image_url", "image_url": data_uri_of(data)})


def called(*arguments: str) -> bytes:
    """A conversation in which functions were called."""
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": each}} for each in arguments]
    return json.dumps({"messages": [user("Hi"), {"role": "assistant", "tool_calls": calls}], "max_tokens": 1}).encode()


def image(letters: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": f"data:image/png;base64,{letters}"}


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
    "turns of tags": lambda: (CHAT, json.dumps({"messages": [user('<img src="' * 78_000)] * 32}).encode()),
    "texts of tags for responses": lambda: (
        RESPONSES,
        response(*[{"type": "input_text", "text": '<img src="' * 78_000}] * 32),
    ),
    "tags that seem to hold pictures": lambda: (
        COUNT,
        json.dumps({"messages": [user("<img x=data:" * 65_000)] * 32}).encode(),
    ),
    "38 long turns": lambda: (CHAT, json.dumps({"messages": [user("x" * (768 << 10))] * 38}).encode()),
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


def keyed_png() -> bytes:
    """64 megapixels of one colour, of which another one is transparent."""
    file = io.BytesIO()
    Pictures.new("RGB", (7990, 8000)).save(file, "PNG", transparency=(1, 2, 3))
    return file.getvalue()


def lists() -> str:
    return '{"a":[' + "[]," * 9_000_000 + "[]]}"


ATTACKS |= {
    "sixteen large pictures in a prompt": lambda: (
        RAW,
        json.dumps({"prompt": f"<img src='{data_uri_of(blank_png(8000, 7990))}'>" * 16}).encode(),
    ),
    "pairs of letters": lambda: (CHAT, chat(image("AA " * 8_900_000))),
    "pairs of letters for ollama": lambda: (
        "/api/chat",
        json.dumps({"model": "thimble", "messages": [{**user("Hi"), "images": ["AA " * 8_900_000]}]}).encode(),
    ),
    "a transparent colour that is not there": lambda: (CHAT, pictured(keyed_png())),
    "lists as a call's arguments": lambda: (CHAT, called(lists())),
    "lists as the arguments of forty calls": lambda: (CHAT, called(*[lists()[:700_000] + "[]]}"] * 40)),
    "lists as arguments for responses": lambda: (
        RESPONSES,
        json.dumps({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": lists()}]}).encode(),
    ),
    "brackets as a call's arguments": lambda: (CHAT, called("[" * 300_000)),
}
KEPT = (
    214,
    235,
    255,
    455,
    691,
    780,
    1048,
    1162,
    1648,
)  # numbers of generated ones that were over a bound once, or nearly
# bytes of pixels that a request is told to hold; of sixteen pictures the third is one too many, told when it is there
DECODED = {
    "16 bits": 4 * 7990 * 8000,
    "a transparent colour that is not there": 4 * 7990 * 8000,
    "sixteen large pictures in a prompt": 3 * 4 * 7990 * 8000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_single_request_neither_ends_nor_fattens_nor_silences_the_server(target: Target, name: str) -> None:
    path, body = ATTACKS[name]()
    struck = strike(target, Attack("POST", path, body, {"Content-Type": "application/json"}), DECODED.get(name, 0))
    print(f"{name}: {struck.status}, {struck.grown >> 20} MB, /livez silent for {struck.silent * 1000:.0f} ms")


BODIES_OF_15_MB: dict[str, Callable[[], bytes]] = {
    "escapes": lambda: b'["' + b"\\u4e2d" * (5 << 19) + b'"]',
    "halves": lambda: b'["' + b"\\ud83d\\ude00" * (5 << 18) + b'"]',
    "wide text": lambda: b'["' + "\u4e2d".encode() * (5 << 20) + b'"]',
    "one wide letter": lambda: b'["' + "\U0001f600".encode() + b"a" * (15 << 20) + b'"]',
    "numbers": lambda: b"[" + b",".join([b"9" * 300] * 49_000) + b"]",
    "fractions": lambda: b"[" + b",".join([b"0." + b"9" * 300] * 49_000) + b"]",
    "short strings": lambda: b"[" + b",".join([b'"' + b"a" * 300 + b'"'] * 49_000) + b"]",
    "short wide strings": lambda: b"[" + b",".join([b'"' + "\U0001f600".encode() * 75 + b'"'] * 49_000) + b"]",
    "long keys": lambda: b"{" + b",".join(b'"%d%s":1' % (at, b"k" * 1500) for at in range(9900)) + b"}",
    "keys without values": lambda: b"{" + b'"":' * (5 << 20) + b"}",
    "spaces": lambda: b" " * (15 << 20) + b"1",
    "a picture with escaped slashes": lambda: pictured(bytes(11 << 20)).replace(b"A", b"\\/"),
    "a picture of signs": lambda: pictured(bytes(11 << 20)).replace(b"AAAA", b"{[:,"),
}


LIMITED = [("POST", CHAT, name) for name in BODIES_OF_15_MB] + [
    ("WEBSOCKET", "/api/v1/stream", name) for name in ("escapes", "one wide letter", "long keys")
]


@pytest.mark.parametrize(("method", "path", "name"), LIMITED)
def test_nor_does_a_body_just_below_the_limits(target: Target, method: str, path: str, name: str) -> None:
    struck = strike(target, Attack(method, path, BODIES_OF_15_MB[name](), {"Content-Type": "application/json"}))
    print(f"{name} {path}: {struck.status}, {struck.grown >> 20} MB, silent for {struck.silent * 1000:.0f} ms")


HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WIRES = {
    "chunks of one byte": CHUNKED + b"1\r\n \r\n" * 300_000,
    "chunks of a hundred bytes": CHUNKED + (b"64\r\n" + b" " * 100 + b"\r\n") * 100_000,
    "chunks just as large as they must be": CHUNKED + (b"110\r\n" + b" " * 272 + b"\r\n") * 30_000 + b"0\r\n\r\n",
    "extensions of a chunk": CHUNKED + b"1;" + b"a=b;" * 1_000_000,
    "trailers": CHUNKED + b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 1_000_000,
    "headers": HEAD + b"a: b\r\n" * 1_000_000,
    "a path": b"GET /" + b"a" * 4_000_000,
    "requests": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3000,
    "empty lines": b"\r\n" * 2_000_000,
}
FRAMES = {
    "pings": b"\x89\x80" + bytes(4),
    "texts": b"\x81\x82" + bytes(4) + b"{}",
    "empty texts": b"\x81\x80" + bytes(4),
    "pongs": b"\x8a\x80" + bytes(4),
}


@pytest.mark.parametrize("name", FRAMES)
def test_nor_do_the_smallest_frames(target: Target, name: str) -> None:
    struck = strike(target, Attack("FRAMES", "", FRAMES[name] * 100_000))
    print(f"{name}: {struck.status}, {struck.grown >> 20} MB, silent for {struck.silent * 1000:.0f} ms")


def test_nor_do_the_pieces_of_one_frame(target: Target) -> None:
    struck = strike(target, Attack("FRAMES", "", b"\x01\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 100_000))
    assert struck.status == 101


def test_a_server_that_never_answers_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one that closes the connection."""
    monkeypatch.setattr("test_attacks.PATIENCE", 0.2)
    with create_server(("127.0.0.1", 0)) as silent:
        target: Any = SimpleNamespace(listening=silent.getsockname())
        with pytest.raises(TimeoutError):
            Target._said(target, b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("name", WIRES)
def test_nor_does_what_is_written_by_hand(target: Target, name: str) -> None:
    struck = strike(target, Attack("RAW", "", WIRES[name]))
    print(f"{name}: {struck.status}, {struck.grown >> 20} MB, silent for {struck.silent * 1000:.0f} ms")


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain"])
def test_nor_does_a_form(target: Target, kind: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
    struck = strike(target, Attack("POST", CHAT, part * (30_000_000 // len(part)), {"Content-Type": kind}))
    assert struck.status in (400, 415)


def test_generated_requests_neither_end_nor_fatten_nor_silence_the_server(target: Target) -> None:
    attacks = [attack(number) for number in (*KEPT, *range(full(2000, 50)))]
    framed = [frame for number in range(full(2000, 105)) if (frame := over_socket(attack(number)))]
    assert {frame.path for frame in framed} == set(SOCKETS.values())
    struck = [strike(target, one) for one in (*attacks, *framed)]
    statuses = Counter(each.status for each in struck)
    grown, silent = max(each.grown for each in struck) >> 20, max(each.silent for each in struck)
    print(f"{dict(statuses)}, {grown} MB at most, silent for {silent * 1000:.0f} ms at most")
    assert statuses[200]
    assert statuses[400]


def crowd(target: Target, side: int) -> tuple[int, int]:
    """The bytes by which memory grew while eight deep pictures were seen in four slots, and what was kept of them."""
    file = io.BytesIO()
    Pictures.fromarray(np.zeros((side - 10, side), np.uint16)).save(file, "PNG", compress_level=9)
    one = Attack("POST", CHAT, pictured(file.getvalue()), {"Content-Type": "application/json"})
    assert target.strike(one).status == 200  # what a first one leaves in libraries is nobody's growth
    Path(f"/proc/{target.process.pid}/clear_refs").write_text("5")
    before = target.memory("VmRSS")
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(httpx.post, target.url + CHAT, content=one.body, headers=one.headers, **ASKING)
            for _ in range(8)
        ]
        assert [each.result().status_code for each in asked] == [200] * 8
    return target.memory("VmHWM") - before, target.memory("VmRSS") - before


def test_eight_deep_pictures_fit_and_leave_little(target: Target) -> None:
    """Of 64 megapixels each: 1,200 MB while they are seen."""
    side = full(8000, 2000)
    grown, kept = crowd(target, side)
    print(f"eight pictures of {side} x {side - 10}: {grown >> 20} MB, {kept >> 20} MB afterwards")
    assert grown < full(1200, 300) << 20
    assert kept < 150 << 20


def test_what_was_measured_before_there_were_bounds_is_over_them() -> None:
    for struck in (Struck(400, 7700 << 20, 0.1), Struck(400, 0, 0.331), Struck(500, 0, 0.0)):
        with pytest.raises(AssertionError):
            check(struck, 165)
    check(Struck(400, 0, 0.0), 165)


UNBOUNDED = """
import trifocal.api.host as host, trifocal.images as images
host.SMALL, read = 1 << 30, host.loads
host.loads = lambda *data, **limits: [read(*data, **limits) for _ in range(4)][-1]
images.check_size = lambda *size, **limits: None
"""


def test_its_twin_without_bounds_is_found() -> None:
    """A server that reads bodies itself, four times over, and takes pictures of any size."""
    with served(UNBOUNDED) as target:
        silent = target.strike(Attack("POST", CHAT, BODIES_OF_15_MB["numbers"](), {"Content-Type": "application/json"}))
        with pytest.raises(AssertionError):
            check(silent, 1 << 30)
        fat = target.strike(Attack("POST", CHAT, pictured(blank_png(13000, 13000))))
        with pytest.raises(AssertionError):
            check(Struck(fat.status, fat.grown, 0), 20_000)
