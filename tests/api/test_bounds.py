"""What one request may cost: characters of its texts, keys and signs of JSON, sockets, frames, an engine that dies."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from live import UPGRADE, Gated, Live, data_uri, error_of, make_llava, running, user
from PIL import ImageFile
from test_doors import raw
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from trifocal.api import guard, tools, wire
from trifocal.api.errors import Refusal
from trifocal.conversation.jinja import find_template
from trifocal.engines.echo import Echo
from trifocal.messages import Sampling
from trifocal.prompt import Prompt
from waiting import PATIENCE, until

CHAT = "/v1/chat/completions"
MANY = 1 << 19


def called(**function: str) -> dict[str, Any]:
    """A conversation in which a function was called."""
    call = {"id": "a", "function": {"name": "f", "arguments": "{}", **function}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    return {"messages": [user("Hi"), *said, {"role": "tool", "tool_call_id": "a", "content": "fine"}, user("And?")]}


def offered(**function: Any) -> dict[str, Any]:
    """A function that may be called."""
    return {"messages": [user("x" * MANY)], "tools": [{"type": "function", "function": {"name": "f", **function}}]}


TOO_LONG = {
    "wide letters": (CHAT, {"messages": [user("\u4e2d" * MANY)]}),
    "the name of a function that was called": (CHAT, called(name="x" * 3 * MANY)),
    "its arguments": (CHAT, called(arguments='{"a": "' + "x" * 3 * MANY + '"}')),
    "a function that is offered": (CHAT, offered(description="x" * MANY)),
    "text to be encoded": ("/v1/internal/encode", {"text": "x" * 3 * MANY}),
    "text to be tokenised": ("/tokenize", {"content": "x" * 3 * MANY}),
    "a raw prompt": ("/api/v1/generate", {"prompt": "x" * 3 * MANY}),
    "a raw prompt around a picture": ("/api/v1/generate", {"prompt": f"{'x' * 3 * MANY}<img src='{data_uri()}'>"}),
    "a prompt that is counted": ("/api/v1/token-count", {"prompt": "x" * 3 * MANY + "<img"}),
    "a completion": ("/v1/completions", {"prompt": "x" * 3 * MANY}),
    "signs of tags": ("/v1/completions", {"prompt": "<" * 3 * MANY}),
    "turns": (CHAT, {"messages": [user("x" * MANY)] * 3}),
    "parts": (CHAT, {"messages": [user(*[{"type": "text", "text": "x" * MANY}] * 3)]}),
    "a long part": (CHAT, {"messages": [user("<img " * MANY)]}),
    "another's chat": ("/v1/messages", {"model": "echo", "max_tokens": 1, "messages": [user("x" * MANY)] * 3}),
    "a third one's": ("/api/chat", {"model": "echo", "messages": [user("x" * MANY)] * 3}),
    "its prompt": ("/api/generate", {"model": "echo", "prompt": "x" * 3 * MANY}),
    "a history": ("/api/v1/chat", {"user_input": "x", "history": {"internal": [["x" * MANY, "x" * MANY]] * 2}}),
    "the page": ("/page/api/count", {"messages": [user("x" * MANY)] * 3}),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_the_texts_of_a_request_are_bounded_together_before_one_is_tokenised(
    name: str, live: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    tokenizer = live.llava.engine.tokenizer
    encode = tokenizer.encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda _, text, **how: read.append(len(text)) or encode(text, **how))
    path, body = TOO_LONG[name]
    error = error_of(client.post(path, json=body))
    assert "786432" in error["message"]
    assert sum(read) < 1000


SEVERAL = {
    "turns": (CHAT, lambda text: {"messages": [user(text)] * 9}),
    "parts": (CHAT, lambda text: {"messages": [user(*[{"type": "text", "text": text}] * 9)]}),
    "items": ("/v1/responses", lambda text: {"input": [user(text)] * 9}),
    "items to be counted": ("/v1/responses/input_tokens", lambda text: {"input": [user(text)] * 9}),
    "another's chat": ("/v1/messages", lambda text: {"model": "echo", "max_tokens": 1, "messages": [user(text)] * 9}),
    "a third one's": ("/api/chat", lambda text: {"model": "echo", "messages": [user(text)] * 9}),
    "turns to be tokenised": ("/tokenize", lambda text: {"messages": [user(text)] * 9}),
    "the page": ("/page/api/count", lambda text: {"messages": [user(text)] * 9}),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_the_texts_of_a_request_are_bounded_together_before_they_are_looked_through(
    name: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop looks for pictures in them, and stands still meanwhile."""
    looked: list[int] = []
    stray = wire.stray
    monkeypatch.setattr(wire, "stray", lambda text: looked.append(len(text)) or stray(text))
    path, body = SEVERAL[name]
    for _ in range(2):  # a request's texts are not counted for the next one
        error = error_of(client.post(path, json=body('<img src="' * (MANY // 10))))
        assert "786432" in error["message"]
    assert [size for size in looked if size] == [MANY // 10 * 10] * 2


@pytest.mark.parametrize("name", SEVERAL)
def test_tags_that_seem_to_hold_pictures_are_bounded_together(name: str, client: httpx.Client) -> None:
    path, body = SEVERAL[name]
    error = error_of(client.post(path, json=body("<img x=data:" * 600)))
    assert "5000 <img> tags" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"[]" * (1 << 20),
        b"[" + b"[]," * 200_000 + b"[]]",
        b'""' * (1 << 20),
        b"{" + b"}{" * (1 << 19),
        b":" * (1 << 20),
    ],
)
def test_signs_of_json_are_counted_and_not_many(client: httpx.Client, body: bytes) -> None:
    error = error_of(client.post(CHAT, content=body, headers={"Content-Type": "application/json"}))
    assert error["code"] == "invalid_json"


def test_unknown_keys_are_bounded(client: httpx.Client) -> None:
    error = error_of(client.post(CHAT, json={f"k{at}": 1 for at in range(20_000)}))
    assert "10000 keys" in error["message"]


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["Host: localhost", "Origin: http://localhost", "Origin: http://evil.example"], b"origin stands there twice"),
        (["Host: localhost", "Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"], b"sec-fetch-site stands there"),
        (["Host: localhost", "Content-Encoding: identity", "Content-Encoding: gzip"], b"content-encoding stands"),
        (["Host: localhost", "Authorization: Bearer a", "Authorization: Bearer b"], b"authorization stands"),
        (["Host: localhost", "Content-Length: 0", "Transfer-Encoding: chunked"], b"a body has two lengths"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(live: Live, lines: list[str], word: bytes) -> None:
    answer = raw(live, "POST /v1/completions HTTP/1.1", *lines, body=b"0\r\n\r\n" if "Tr" in lines[-1] else b"")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert word in answer


@pytest.mark.parametrize("origin", ["http://[", "http://", "null", "http://localhost:1", "http://]:5000", "\x7f"])
def test_no_origin_is_our_error(client: httpx.Client, origin: str) -> None:
    error_of(client.post("/v1/completions", json={"prompt": "x"}, headers={"Origin": origin}), 403)


def url(live: Live, path: str = "/api/v1/stream") -> str:
    return f"ws://127.0.0.1:{live.port}{path}"


def test_frames_are_not_unpacked(live: Live) -> None:
    with connect(url(live), proxy=None) as websocket:
        assert websocket.response is not None
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers


@pytest.mark.parametrize("pings", [0, 1500])
def test_a_text_that_is_none_with_a_close_behind_it_ends_the_websocket(
    live: Live, caplog: pytest.LogCaptureFixture, pings: int
) -> None:
    """Behind the first slice of frames it stayed open until its ping had no answer."""
    mask = bytes(4)
    text, close = b"\x81\x81" + mask + b"\xff", b"\x88\x82" + mask + b"\x03\xe8"
    with socket.create_connection(("127.0.0.1", live.port), timeout=PATIENCE) as client:
        client.sendall(UPGRADE)
        assert client.recv(12) == b"HTTP/1.1 101"
        client.sendall((b"\x89\x80" + mask) * pings + text + close)
        with suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_the_sockets_of_a_caller_are_bounded_and_come_free() -> None:
    with running(sockets_per_caller=3) as live:

        def opened() -> bool:
            try:
                with connect(url(live), proxy=None):
                    return True
            except InvalidStatus as error:
                assert error.response.status_code == 503
                assert b"too many websockets" in (error.response.body or b"")
            return False

        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(connect(url(live), proxy=None))
            assert not opened()

        until(opened, "the place of a closed socket")


def test_frames_that_wait_are_held_within_bounds() -> None:
    engine = Gated(hidden=8)
    engine.gate.clear()
    with running(make_llava(engine), body_bytes=10_000) as live:
        with connect(url(live), proxy=None) as websocket:
            websocket.send(json.dumps({"prompt": "x"}))
            until(lambda: engine.open, "the first answer")
            for _ in range(3):
                websocket.send(json.dumps({"prompt": "x" * 4000}))
            until(lambda: not live.server._runs, "the end of the socket")
            engine.gate.set()
            with pytest.raises(ConnectionClosed, match="1008"):
                all(websocket.recv(timeout=PATIENCE) for _ in range(99))
        assert live.settled()
        until(lambda: live.server.held == 0, "what the frames held")


def test_a_history_of_pictures_is_not_sent_again_for_every_word(live: Live) -> None:
    picture = f'<img src="{data_uri()}">' + "y" * 400_000
    body = {"user_input": "z" * 500, "history": {"internal": [[picture, "r"]], "visible": [[picture, "r"]]}}
    body |= {"max_new_tokens": 300, "truncation_length": 900_000, "chat_prompt_size": 900_000}
    llava = make_llava(Echo(hidden=8, context=1_000_000))
    with running(llava) as other, connect(url(other, "/api/v1/chat-stream"), proxy=None, max_size=None) as websocket:
        websocket.send(json.dumps(body))
        frames = [websocket.recv(timeout=PATIENCE)]
        while json.loads(frames[-1])["event"] == "text_stream":
            frames.append(websocket.recv(timeout=PATIENCE))
    assert json.loads(frames[-1])["event"] == "stream_end"
    assert len(json.loads(frames[-2])["history"]["internal"][-1][1]) == 300
    assert sum(map(len, frames)) < 60 * len(frames[0])


class Dying(Echo):
    """An engine that raises something after its first id."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(hidden=8)
        self.error = error

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[int, None, None]:
        ids = super().stream(prompt, sampling)
        yield next(ids)
        raise self.error


class OutOfMemoryError(RuntimeError):
    """As a package names it that is none of ours."""


DEATHS: dict[str, tuple[BaseException, int, str]] = {
    "a panic": (type("PanicException", (BaseException,), {})("/root/secret.rs:1"), 500, "engine_failure"),
    "an exit": (SystemExit(1), 500, "engine_failure"),
    "a cancelled task": (asyncio.CancelledError(), 500, "engine_failure"),
    "an interrupt": (KeyboardInterrupt(), 500, "engine_failure"),
    "no memory": (OutOfMemoryError("CUDA out of memory. Tried to allocate"), 503, "insufficient_memory"),
    "no memory in words": (RuntimeError("[enforce fail] out of memory"), 503, "insufficient_memory"),
    "a bug": (ValueError("/root/secret.py"), 500, "internal_error"),
}


@pytest.mark.parametrize("name", DEATHS)
def test_whatever_an_engine_raises_the_client_is_told_and_the_server_lives(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    error, status, code = DEATHS[name]
    with running(make_llava(Dying(error))) as live, live.client() as client:
        body: dict[str, Any] = {"messages": [user("Hi")]}
        assert error_of(client.post(CHAT, json=body), status)["code"] == code
        text = client.post(CHAT, json={**body, "stream": True}).text
        assert f'"code":"{code}"' in text
        assert text.endswith("data: [DONE]\n\n")
        with connect(url(live), proxy=None) as websocket:
            websocket.send(json.dumps({"prompt": "Hi"}))
            events = [json.loads(websocket.recv(timeout=PATIENCE)) for _ in range(4)]
        assert [event["event"] for event in events][-2:] == ["error", "stream_end"]
        assert live.settled()
        assert client.get("/readyz").status_code == 200
        assert "secret" not in text
    assert "Traceback" not in capfd.readouterr().err


LISTS = {
    "messages": (CHAT, {"messages": [1] * 49_000}),
    "parts": (CHAT, {"messages": [user(*[{"type": "text"}] * 24_000)]}),
    "stops": (CHAT, {"messages": [user("Hi")], "stop": [1] * 49_000}),
    "tokens": ("/v1/internal/decode", {"tokens": ["x"] * 49_000}),
    "a history": ("/api/v1/chat", {"user_input": "x", "history": {"internal": [1] * 1000}}),
    "another's turns": ("/v1/messages", {"model": "echo", "max_tokens": 1, "messages": [{"role": 1}] * 20_000}),
    "items": ("/v1/responses", {"input": [{"type": "message"}] * 1000}),
    "the page's": ("/page/api/count", {"messages": [{}] * 20_000}),
}


@pytest.mark.parametrize("name", LISTS)
def test_of_a_list_the_first_bad_member_is_told_and_no_other_is_looked_at(name: str, client: httpx.Client) -> None:
    path, body = LISTS[name]
    message = error_of(client.post(path, json=body))["message"]
    assert int((re.findall(r"\((\d+) more\)", message) or ["0"])[0]) < 40, message


class Odd(BaseException):
    """What no handler of exceptions takes."""


@pytest.mark.parametrize("error", [ValueError("a secret"), Odd("a secret")])
@pytest.mark.parametrize("place", ["matched", "header"])
def test_what_gets_past_every_layer_is_told_as_ours(
    error: BaseException, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise error

    with running() as live, live.client() as client:
        monkeypatch.setattr(guard, place, fails)
        told = error_of(client.get("/v1/models"), 500)
        with pytest.raises(InvalidStatus) as refused:
            connect(url(live), proxy=None)
        assert json.loads(refused.value.response.body or b"")["error"] == told
        monkeypatch.undo()
        assert client.get("/v1/models").status_code == 200
    assert told["code"] == "internal_error"
    assert isinstance(error, Odd) or "a secret" not in str([record.__dict__ for record in caplog.records])


def test_a_templates_error_names_its_file_and_not_where_that_lies(tmp_path: Path) -> None:
    file = tmp_path / "strict.jinja"
    source = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if messages | length > 1 %}{{ none.x }}{% endif %}"
    )
    file.write_text(source)
    llava = make_llava()
    llava.template = find_template(str(file), tmp_path)
    with running(llava) as live, live.client() as client:
        turns = [user("Hi"), {"role": "assistant", "content": "Hello"}, user("Hi")]
        bodies = {CHAT: {"messages": turns}, "/tokenize": {"messages": turns}}
        for path, body in bodies.items():
            answer = client.post(path, json=body)
            assert "strict.jinja, line 1" in error_of(answer)["message"]
            assert str(tmp_path) not in answer.text


def test_pictures_of_a_prompt_are_held_to_the_servers_limits(live: Live) -> None:
    """They are no other pictures than those of a conversation: their bytes, and room for all of them together."""
    large = f'<img src="{data_uri("red")}">'
    with running(image_bytes=20) as small, small.client() as client:
        assert error_of(client.post("/api/v1/generate", json={"prompt": large}))["code"] == "image_too_large"
    with running(decoded_bytes=3 * 64 * 2) as small, small.client() as client:  # two pictures of 8 x 8
        assert client.post("/api/v1/generate", json={"prompt": large * 2}).status_code == 200
        content = [{"type": "image_url", "image_url": {"url": data_uri("red")}}] * 8
        bodies = {"/api/v1/generate": {"prompt": large * 8}, CHAT: {"messages": [{"role": "user", "content": content}]}}
        load = ImageFile.ImageFile.load
        for path, body in bodies.items():
            decoded: list[object] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ImageFile.ImageFile, "load", lambda file, seen=decoded: seen.append(file) or load(file))
                error = error_of(client.post(path, json=body))
            assert error["code"] == "image_too_large"
            assert len({id(file) for file in decoded}) == 2, "the one that is too much is refused before it is decoded"


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"a":' * 100_000])
def test_arguments_that_are_nested_without_end_are_refused(client: httpx.Client, arguments: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [user("Hi"), {"role": "assistant", "tool_calls": [call]}]
    assert error_of(client.post(CHAT, json={"messages": turns}))["param"].endswith("arguments")


CALLED: dict[str, Callable[[list[str]], tuple[str, dict[str, Any]]]] = {
    "chat": lambda texts: (CHAT, {"messages": [user("Hi"), asked_for(texts)]}),
    "one function": lambda texts: (
        CHAT,
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": text}} for text in texts]},
    ),
    "responses": lambda texts: (
        "/v1/responses",
        {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": text} for text in texts]},
    ),
}


def asked_for(texts: list[str]) -> dict[str, Any]:
    """An answer in which functions were asked for."""
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": text}} for text in texts]
    return {"role": "assistant", "tool_calls": calls}


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize(
    "text", ['{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}', '{"a":"\\ud800"}', "[1]", "{", "9" * 9999]
)
def test_arguments_that_are_no_object_of_json_are_refused(client: httpx.Client, name: str, text: str) -> None:
    path, body = CALLED[name]([text])
    error = error_of(client.post(path, json=body))
    assert "JSON object" in error["message"]
    assert "arguments" in error["param"]


MUCH = {
    "one": (1, '{"a":"' + "x" * 800_000 + '"}', "bytes"),
    "forty": (40, '{"a":"' + "x" * 20_000 + '"}', "bytes"),
    "one of lists": (1, '{"a":[' + "[]," * 30_000 + "[]]}", "values"),
    "forty of lists": (40, '{"a":[' + "[]," * 1000 + "[]]}", "values"),
}


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("much", MUCH)
def test_arguments_are_not_read_beyond_their_bounds(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, name: str, much: str
) -> None:
    """One of 26 MB held the server for five seconds, forty of 0.7 MB for twelve."""
    count, text, what = MUCH[much]
    read: list[str] = []
    loads = json.loads
    reading = SimpleNamespace(loads=lambda text: read.append(text) or loads(text))
    monkeypatch.setattr(tools, "json", reading)
    path, body = CALLED[name]([text] * count)
    assert f"{what} together" in error_of(client.post(path, json=body))["message"]
    assert sum(map(len, read)) <= wire.LONGEST_TEXT
    assert len(read) < count


def test_a_string_without_an_end_is_searched_once() -> None:
    """Each of its escaped marks would begin a search up to the end: 24 seconds for 130 KB, half an hour for 730."""
    text = "," * (wire._MOST_VALUES + 1) + '"' + '\\"' * 340_000
    with pytest.raises(Refusal) as refused, wire.one_request():
        wire.check_values(text, "arguments")
    assert "values together" in refused.value.message


def test_signs_in_the_strings_of_arguments_are_no_values(client: httpx.Client) -> None:
    program = json.dumps({"a": 'print("[{,}]", "\\") ' * 15_000})
    path, body = CALLED["chat"]([program])
    assert sum(map(program.count, ",[{")) > wire._MOST_VALUES
    assert "values" not in client.post(path, json=body).text


def test_many_small_programs_in_arguments_are_no_values() -> None:
    """They were counted whole as long as there was room, and then what has none was refused."""
    program = json.dumps({"a": "[{,}]" * 10})
    with wire.one_request():
        for _ in range(5000):
            wire.check_values(program, "arguments")
