"""A model that another server has: the same answers as there, in every dialect, and an honest error for the rest."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from live import Live, data_uri, error_of, events_of, running, user
from test_model import ASKED, READ
from websockets.sync.client import connect

import trifocal
from little_server import Dripping, Held, Little, answer, events, little, stream
from trifocal import Message, PeerBusy, PeerError, PeerRefused, PeerTimeout, Relay, Sampling, peer
from trifocal.api.settings import hash_key
from trifocal.cancelling import Scope
from trifocal.cli.ask import ask
from trifocal.errors import BadSampling, NotSupported, UnknownName, UsageError
from trifocal.images import Image
from trifocal.messages import Tool
from trifocal.web import routes
from waiting import PATIENCE, line_of, until

KEY = "a-key-of-more-than-thirty-two-characters"
Draw = Callable[..., Image]


def relay(url: str, **options: Any) -> Relay:
    found = trifocal.open_model(engine="openai", engine_options={"url": url, **options})
    assert isinstance(found, Relay)
    return found


@pytest.fixture(scope="module")
def behind() -> Iterator[Live]:
    """The server that has the model: our own bundled one, behind a key."""
    with trifocal.load() as llava, running(llava, slots=4, keys=frozenset({hash_key(KEY)})) as live:
        yield live


@pytest.fixture(scope="module")
def passing(behind: Live) -> Relay:
    return relay(behind.url, key=KEY)


@pytest.fixture(scope="module")
def front(passing: Relay) -> Iterator[Live]:
    """The server that passes everything on."""
    with running(passing, routes(), slots=None) as live:  # type: ignore[arg-type]
        yield live


@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_the_same_answer_as_there(behind: Live, passing: Relay, drawn: Draw, pictures: int) -> None:
    question = passing.question("What is in the picture?", [drawn(seed, 64, 64) for seed in range(pictures)])
    for sampling in (Sampling(max_tokens=12), Sampling(max_tokens=12, temperature=1.0, seed=5, top_k=9, min_p=0.01)):
        there, here = behind.llava.complete([question], sampling), passing.complete([question], sampling)
        assert here.text == there.text
        told = ("finish", "prompt_tokens", "image_tokens", "completion_tokens")
        assert [getattr(here.end, name) for name in told] == [getattr(there.end, name) for name in told]
        assert here.end.notes == ()


def test_pictures_are_where_they_were_put(behind: Live, passing: Relay, drawn: Draw) -> None:
    talk = [
        Message("system", "Be brief."),
        Message("user", ("First <image>, then <image>: what differs?", drawn(1, 64, 64), drawn(2, 64, 64))),
        Message("assistant", "Nothing."),
        Message("user", "Is <image> in it?"),
    ]
    placed = ("First ", drawn(1, 64, 64), ", then ", drawn(2, 64, 64), ": what differs?")
    there = behind.llava.complete([talk[0], Message("user", placed), *talk[2:]], Sampling(max_tokens=8))
    here = passing.complete(talk, Sampling(max_tokens=8))
    assert (here.text, here.end.prompt_tokens) == (there.text, there.end.prompt_tokens)


def test_past_pictures_that_are_not_to_stay_are_not_sent(behind: Live, passing: Relay, drawn: Draw) -> None:
    talk = [
        Message("user", ("What is this?", drawn(1, 64, 64))),
        Message("assistant", "A star."),
        Message("user", ("And this?", drawn(2, 64, 64))),
    ]
    there = behind.llava.complete(talk, Sampling(max_tokens=8), images="last")
    here = passing.complete(talk, Sampling(max_tokens=8), images="last")
    assert (here.text, here.end.left_out) == (there.text, there.end.left_out)
    assert here.end.left_out


def test_an_answer_ends_as_it_does_there(behind: Live, passing: Relay) -> None:
    question = [passing.question("Say something.")]
    whole = behind.llava.complete(question, Sampling(max_tokens=12)).text
    stop = whole.split()[1]
    here = passing.complete(question, Sampling(max_tokens=12, stop=(stop,)))
    assert here.text == behind.llava.complete(question, Sampling(max_tokens=12, stop=(stop,))).text
    assert here.end.finish == "stop"
    assert passing.complete(question, Sampling(max_tokens=1)).end.finish == "length"


def test_log_probabilities_are_passed_on(behind: Live, passing: Relay) -> None:
    sampling = Sampling(max_tokens=4, top_logprobs=2)
    there, here = (
        [token for chunk in llava.stream([passing.question("Hi")], sampling) for token in chunk.logprobs]
        for llava in (behind.llava, passing)
    )
    assert [token.text for token in here] == [token.text for token in there]
    assert [token.logprob for token in here] == pytest.approx([token.logprob for token in there], abs=1e-4)
    assert [len(token.top) for token in here] == [2] * len(here)


def test_an_answer_is_held_to_a_schema_there(passing: Relay) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    reply = passing.complete([passing.question("A number?")], Sampling(max_tokens=24, schema=json.dumps(schema)))
    assert json.loads(reply.text) == {"n": 7}


def test_functions_are_offered_and_calls_come_back() -> None:
    bits = [{"index": 0, "id": "call_1", "function": {"name": "look", "arguments": '{"at":'}}]
    more = [{"index": 0, "function": {"arguments": "3}"}}]
    told = events(
        {"choices": [{"delta": {"content": "Well. ", "reasoning_content": "Hm."}}]},
        {"choices": [{"delta": {"tool_calls": bits}}]},
        {"choices": [{"delta": {"tool_calls": more}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
    )
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with little(told) as there, running(relay(there.url)) as front, front.client() as client:  # type: ignore[arg-type]
        reply = client.post("/v1/chat/completions", json={"messages": [user("Look.")], "tools": [tool]}).json()
        asked = [{"role": "tool", "tool_call_id": "call_1", "content": "A star."}]
        called = {"role": "assistant", "content": None, "tool_calls": reply["choices"][0]["message"]["tool_calls"]}
        client.post("/v1/chat/completions", json={"messages": [user("Look."), called, *asked]})
    message = reply["choices"][0]["message"]
    assert message["content"] == "Well. "
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":3}'}}
    ]
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert any("thought 3 characters" in note for note in reply["trifocal"]["notes"])
    assert there.bodies[0]["tools"][0]["function"]["name"] == "look"
    assert there.bodies[1]["messages"][1]["tool_calls"][0]["id"] == "call_1"
    assert there.bodies[1]["messages"][2] == {"role": "tool", "tool_call_id": "call_1", "content": "A star."}


def test_a_function_that_must_be_called(front: Live) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "count", "parameters": schema}}
    body = {"messages": [user("Count.")], "tools": [tool], "tool_choice": "required", "max_tokens": 24}
    with front.client() as client:
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("count", {"n": 7})


NOT_TOLD = {
    "/v1/messages/count_tokens",
    "/api/v1/token-count",
    "/tokenize",
    "/detokenize",
    "/page/api/count",
    "/page/api/preview",
    "/page/api/explain",
}


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_every_dialect_works_or_says_why_not(front: Live, path: str, body: dict[str, Any]) -> None:
    body = {**body, **({"model": "thimble"} if "model" in body else {})}
    with front.client() as client:
        reply = client.post(path, json=body)
    if path in NOT_TOLD:
        assert reply.status_code == 501
        assert reply.json()["error"]
    else:
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("path", READ)
def test_what_is_read(front: Live, path: str) -> None:
    with front.client() as client:
        assert client.get(path).status_code == 200


def test_streamed_as_whole_and_with_several_answers(front: Live) -> None:
    body = {"messages": [user("Hi")], "max_tokens": 6, "n": 2, "temperature": 1.0, "seed": 3}
    with front.client() as client:
        whole = client.post("/v1/chat/completions", json=body).json()
        streamed = events_of(client.post("/v1/chat/completions", json={**body, "stream": True}))
    texts = ["", ""]
    for choice in (choice for event in streamed[:-1] for choice in event["choices"]):
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert streamed[-1] == "[DONE]"


def test_the_old_api_over_it(behind: Live, front: Live) -> None:
    raw = {"prompt": f'What is <img src="{data_uri()}">?', "max_new_tokens": 6, "do_sample": False}
    plain = {"prompt": "Once upon", "max_new_tokens": 6, "do_sample": False}
    with front.client() as client, behind.client(headers={"authorization": f"Bearer {KEY}"}) as there:
        assert client.post("/api/v1/generate", json=plain).json() == there.post("/api/v1/generate", json=plain).json()
        shown = client.post("/v1/completions", json={"prompt": raw["prompt"], "max_tokens": 6}).json()
        assert client.post("/api/v1/generate", json=raw).json()["results"][0]["text"] == shown["choices"][0]["text"]
    assert any("one turn of the user" in note for note in shown["trifocal"]["notes"])
    with connect(f"ws://127.0.0.1:{front.port}/api/v1/stream") as old:
        old.send(json.dumps(plain))
        frames = []
        while not frames or frames[-1]["event"] != "stream_end":
            frames.append(json.loads(old.recv(PATIENCE)))
    assert "".join(frame.get("text", "") for frame in frames)


def test_a_server_without_raw_prompts() -> None:
    said = events({"choices": [{"delta": {"content": "Yes."}, "finish_reason": "stop"}]})
    none = answer({"error": {"message": "no such route"}}, "404 Not Found")
    with little(none, said) as there:
        model = relay(there.url)
        (chunk, last) = model.answer(model.raw(("Is it?",)), Sampling(max_tokens=3))
    assert chunk.text == "Yes."
    assert last.end
    assert any("one turn of the user" in note for note in last.end.notes)
    assert any("does not tell what the answer cost" in note for note in last.end.notes)


def test_what_it_can_not_tell(passing: Relay, behind: Live) -> None:
    talk = [passing.question("Hi")]
    template = trifocal.load(engine="echo").template
    for act in (
        lambda: passing.tokenizer,
        lambda: passing.count(talk),
        lambda: passing.budget(talk),
        lambda: passing.outline(("Hi",)),
        lambda: passing.explain([*talk, Message("assistant", "Yes.")]),
        lambda: passing.write(talk, template=template),
        lambda: passing.template.render(talk),
    ):
        with pytest.raises(NotSupported, match="another server"):
            act()  # type: ignore[no-untyped-call]
    assert passing.write(talk, room=9).notes
    assert passing.preview(trifocal.open_image("docs/example.png")) is None
    assert (passing.context, passing.explains_not is not None) == (behind.llava.context, True)  # which was told


def test_a_key_that_is_not_the_right_one(behind: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeerError, match="does not let us in"):
        relay(behind.url)
    with pytest.raises(PeerError, match="does not let us in"):
        relay(behind.url, key=KEY[:-1])
    monkeypatch.setenv("TRIFOCAL_ENGINE_KEY", KEY)
    assert relay(behind.url).name == "thimble"
    with pytest.raises(UsageError, match="printable"):
        relay(behind.url, key="a key")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "is no address"),
        ({"url": "localhost:5000"}, "is no address"),
        ({"url": "ftp://host"}, "is no address"),
        ({"url": "http://me:secret@host"}, "no key"),
        ({"url": "http://host/?key=1"}, "no key"),
        ({"url": "http://127.0.0.1:6666\\@1.1.1.1/"}, "is no address"),
        ({"url": "http://h", "first_seconds": 0}, "seconds"),
        ({"url": "http://h", "adress": 0}, "unknown option"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trifocal.open_model(engine="openai", engine_options=options)


def test_options_that_only_the_server_can_tell_to_be_none() -> None:
    with little(answer({})) as there:
        with pytest.raises(UsageError, match="png"):
            relay(there.url, pictures="gif")
        with pytest.raises(UsageError, match="positions"):
            relay(there.url, context="many")
        with pytest.raises(UsageError, match="nothing is loaded here; the model's name there is"):
            trifocal.open_model(engine="openai", engine_options={"url": there.url}, checkpoint="x")
        with pytest.raises(UsageError, match="nothing is loaded here"):
            trifocal.open_model(engine="openai", engine_options={"url": there.url}, tower="cuda:0")
    with little(answer({}), models=("a", "b")) as there:
        with pytest.raises(UsageError, match="a, b"):
            relay(there.url)
        assert relay(there.url, model="b").name == "b"
    with pytest.raises(UsageError, match="open_model"):
        trifocal.load(engine="openai")
    with pytest.raises(UnknownName, match="openai"):
        trifocal.load(engine="openia")


def asked(there: Little, **options: Any) -> str:
    return relay(there.url, model="one", **options).complete([Message("user", "Hi")], Sampling(max_tokens=3)).text


YES = {"choices": [{"delta": {"content": "Yes."}}]}
END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
BROKEN = b"HTTP/1.1 "


@pytest.mark.parametrize(
    ("told", "kind", "said"),
    [
        (answer({"error": {"message": "No room.", "code": "full"}}, "429 Too Many Requests"), PeerBusy, "No room."),
        (answer({"error": "loading"}, "503 Service Unavailable", retry_after="7"), PeerBusy, "loading"),
        (answer({"detail": "Not so."}, "422 Unprocessable Entity"), PeerRefused, "Not so."),
        (answer({"error": {"message": "x" * 5000}}, "400 Bad Request"), PeerRefused, "xxx…"),
        (answer(b"<html>nginx</html>", "500 Oh", "text/html"), PeerError, "status 500"),
        (answer({}, "302 Found", location="http://elsewhere/"), PeerError, "elsewhere.*not followed"),
        (answer({"error": "slow"}, "408 Request Timeout"), PeerTimeout, "slow"),
        (answer(b"[1]"), PeerError, "no JSON object"),
        (answer({"hello": 1}), PeerError, "no completion"),
        (answer({"choices": [7]}), PeerError, "no completion"),
        (events(b"nonsense"), PeerError, "no JSON object"),
        (events({"error": {"message": "Burnt."}}), PeerError, "Burnt."),
        (events(YES, {"error": {"message": "Burnt."}}), PeerError, "Burnt."),
        (events(YES, done=False), PeerError, "in the middle"),
        (events(YES), PeerError, "in the middle"),
        (events({"choices": [{"delta": 3}]}), PeerError, "no object"),
        (events({"choices": [{"delta": {"content": "x" * (1 << 20)}}]}), PeerError, "more than"),
        (answer({"choices": [], "filler": "x" * (4 << 20)}), PeerError, "more than"),
        (answer(b"{}" + b" " * 99)[:-50], PeerError, "in the middle"),
        (events({"choices": [{"delta": {"tool_calls": [{"index": -1}]}}]}), PeerError, "a place"),
        (answer(b'{"choices": [{"mess'), PeerError, "no JSON object"),
        (answer(b"<html>Sign in</html>", kind="text/html"), PeerError, "no JSON object"),
        (events(b'{"choices": [{"delta": {"con'), PeerError, "no JSON object"),
        (stream(b'data: {"choices":\ndata: 1\n' * 200), PeerError, "no JSON object"),
        (stream(b'error: {"code": 500, "message": "Burnt."}\n\n'), PeerError, "Burnt."),
        (stream(b"error: Burnt.\n\n"), PeerError, "Burnt."),
        (stream(b"event: error\ndata: " + json.dumps({"error": "Burnt."}).encode() + b"\n\n"), PeerError, "Burnt."),
        (answer({}, "308 Permanent Redirect", location="http://else\x1b[2J/"), PeerError, r"else \[2J/.*not followed"),
        (answer({}, "206 Partial Content"), PeerError, "status 206|failed"),
    ],
)
def test_a_server_that_fails(told: bytes, kind: type[Exception], said: str) -> None:
    with little(told) as there, pytest.raises(kind, match=f"(?s){said}"):
        asked(there)
    assert len(there.requests) == 1, "it was asked again after its answer had begun"


@pytest.mark.parametrize(
    "told",
    [
        b": waits\r\n\r\n: still waits\r\nid: 7\r\nretry: 9\r\nevent: piece\r\ndata:%b\r\n\r\ndata: %b\r\n\r\n",
        b"data: %b\ndata: %b\ndata: [DONE]\n",  # no line between them
        b"\xef\xbb\xbfdata: %b\n\ndata: %b\n\ndata: [DONE]",
    ],
)
def test_events_in_any_form_that_servers_give_them(told: bytes) -> None:
    pieces = tuple(json.dumps(each).encode() for each in (YES, END))
    with little(stream(told % pieces)) as there:
        assert asked(there) == "Yes."
    lines = tuple(b"\ndata:  ".join(json.dumps(each, indent=1).encode().splitlines()) for each in (YES, END))
    with little(stream(told % lines)) as there:
        assert asked(there) == "Yes."


@pytest.mark.parametrize("logprobs", [7, {"content": 7}, {"content": [7, {"top_logprobs": 7}]}, {"content": [{}]}])
def test_log_probabilities_that_are_none(logprobs: Any) -> None:
    there = {"choices": [{**YES["choices"][0], "logprobs": logprobs}]}
    with little(events(there, END)) as odd:
        told = relay(odd.url).complete([Message("user", "Hi")], Sampling(max_tokens=3))
    assert told.text == "Yes."


def test_numbers_and_letters_that_nobody_can_tell_on() -> None:
    token = {"token": "Y\ud83d", "logprob": 10**400, "top_logprobs": [{"token": "N", "logprob": float("-inf")}]}
    piece = {"choices": [{"delta": {"content": "Yes\ud83d, \ud83d\ude00"}, "logprobs": {"content": [token]}}]}
    with little(events(piece, END)) as there, running(relay(there.url)) as front, front.client() as client:  # type: ignore[arg-type]
        body = {"messages": [user("Hi")], "logprobs": True, "top_logprobs": 1}
        told = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert told["message"]["content"] == "Yes\ufffd, \U0001f600"
    (scored,) = told["logprobs"]["content"]
    assert (scored["token"], scored["logprob"], scored["top_logprobs"][0]["logprob"]) == ("Y\ufffd", -9999.0, -9999.0)


@pytest.mark.parametrize("listed", [{"data": 7}, {"data": {"id": "one"}}, {"data": [7, {"id": None}]}, {"models": []}])
def test_a_list_of_models_that_is_none(listed: Any) -> None:
    with little(answer({}), listed=answer(listed)) as there, pytest.raises(UsageError, match="0 models"):
        relay(there.url)


SLOW = {"first_seconds": 0.5, "next_seconds": 0.5}


@pytest.mark.parametrize(
    ("told", "kind", "said"),
    [
        (Dripping(b"HTTP/1.1 100 Continue\r\n\r\n"), PeerTimeout, "in time"),
        (Dripping(b"x").after(b"HTTP/1.1 200 OK\r\nx-long: "), PeerError, "can't be asked|in time"),
        (Dripping(b" ").after(answer(b"{}" + b" " * (1 << 20))[: -1 << 20]), PeerTimeout, "in time"),
        (Dripping(b": still waits\n\n").after(stream(b"")), PeerTimeout, "in time"),
        (Dripping(b"\n").after(stream(b"")), PeerTimeout, "in time"),
        (Held(events(YES, done=False)), PeerTimeout, "in time"),
    ],
)
def test_who_sends_a_little_now_and_then_keeps_nobody_for_ever(told: bytes, kind: type[Exception], said: str) -> None:
    with little(told) as there, pytest.raises(kind, match=said):
        asked(there, **SLOW)


def test_an_answer_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "STREAM_BYTES", 1 << 20)
    piece = b"data: " + json.dumps({"choices": [{"delta": {"content": "x" * 1000}}]}).encode() + b"\n\n"
    with little(Dripping(piece).after(stream(b""))) as there, pytest.raises(PeerError, match="of one answer"):
        asked(there)


@pytest.mark.parametrize(
    "told", [None, Held(stream(b"")), Held(b"HTTP/1.0 200 OK\r\n\r\n"), Held(answer(b"{}" * 99)[:-50])]
)
def test_who_leaves_ends_a_request_wherever_it_is(told: bytes | None) -> None:
    """Also where the answer says that its connection will be closed, which has `http.client` forget its socket."""
    scope, ended = Scope(), list[Exception]()
    with little(told) as there:
        model = relay(there.url)

        def read() -> None:
            try:
                with scope.work():
                    model.complete([Message("user", "Hi")], Sampling(max_tokens=3))
            except PeerError as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: there.requests, "the request")
        scope.cancel()
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert there.left.wait(PATIENCE)
    assert len(ended) == 1
    assert len(there.requests) == 1
    assert model.state().phase == "ready", "that nobody waited says nothing of the server"


def test_an_answer_that_is_no_stream() -> None:
    whole = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    with little(answer(whole)) as there:
        assert asked(there) == "Yes."


def test_it_is_asked_again_before_the_answer_begins_and_never_after() -> None:
    with little(b"", BROKEN, events(YES, END)) as there:
        assert asked(there) == "Yes."
        assert len(there.requests) == 3
    with little(answer({}, "502 Bad Gateway"), events(YES, END)) as there:
        assert asked(there) == "Yes."
    with little(b"") as there, pytest.raises(PeerError, match="can't be asked"):
        asked(there)
    assert len(there.requests) == 3


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(PeerError, match="can't be asked"):
        relay(url)


def test_no_answer_in_time() -> None:
    with little(None) as there, pytest.raises(PeerTimeout, match="in time"):
        asked(there, first_seconds=0.05)


def test_newer_names_of_the_limit_are_learnt() -> None:
    refused = answer({"error": {"message": "use max_completion_tokens", "param": "max_tokens"}}, "400 Bad Request")
    with little(refused, events(YES, END)) as there:
        model = relay(there.url)
        for _ in range(2):
            assert model.complete([Message("user", "Hi")], Sampling(max_tokens=3)).text == "Yes."
    assert ["max_tokens" in body for body in there.bodies] == [True, False, False]


def test_what_was_not_asked_for_is_not_sent(drawn: Draw) -> None:
    with little(events(YES, END)) as there:
        relay(there.url, pictures="jpeg").complete([Message("user", ("Hi", drawn(1)))])
    body = there.bodies[0]
    assert set(body) == {"model", "messages", "temperature", "stream", "stream_options"}
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_log_probabilities_that_do_not_come() -> None:
    with little(events(YES, END)) as there, pytest.raises(BadSampling, match="tells no log-probabilities"):
        relay(there.url).complete([Message("user", "Hi")], Sampling(top_logprobs=1))


def test_refusals_and_back_pressure_go_through_the_front() -> None:
    full = answer({"error": {"message": "No room."}}, "429 Too Many Requests", retry_after="7")
    long = answer({"error": {"message": "Too long.", "code": "context_length_exceeded"}}, "400 Bad Request")
    with little(full, long, b"") as there, running(relay(there.url)) as front, front.client() as client:  # type: ignore[arg-type]
        replies = [client.post("/v1/chat/completions", json={"messages": [user("Hi")]}) for _ in range(3)]
        assert client.get("/readyz").status_code == 503
    assert error_of(replies[0], 429)["code"] == "backend_busy"
    assert replies[0].headers["retry-after"] == "7"
    assert error_of(replies[1])["code"] == "context_length_exceeded"
    assert "Too long." in error_of(replies[1])["message"]
    assert error_of(replies[2], 502)["code"] == "backend_error"
    assert all(there.url[7:] not in reply.text for reply in replies), "an address got out"


def test_a_client_that_leaves_closes_the_connection() -> None:
    with little(None) as there, running(relay(there.url)) as front:  # type: ignore[arg-type]
        with closing(socket.create_connection(("127.0.0.1", front.port))) as leaving:
            body = json.dumps({"messages": [user("Hi")], "stream": True}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{front.port}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            leaving.sendall(head.encode() + body)
            until(lambda: there.requests, "the request")
        assert there.left.wait(PATIENCE), "the other server still works for nobody"
        assert front.settled()
    assert len(there.requests) == 1


def test_many_at_once(behind: Live, front: Live) -> None:
    with behind.client(headers={"authorization": f"Bearer {KEY}"}) as there:
        wanted = [_said(there, number) for number in range(4)]
    found: dict[int, str] = {}

    def one(number: int) -> None:
        with front.client() as client:
            found[number] = _said(client, number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [found[number] for number in range(4)] == wanted


def _said(client: httpx.Client, number: int) -> str:
    colour = ("red", "green", "blue", "white")[number]
    picture = {"type": "image_url", "image_url": {"url": data_uri(colour)}}
    body = {"messages": [user({"type": "text", "text": "Which colour?"}, picture)], "max_tokens": 8}
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def test_a_process_that_dies_in_the_middle() -> None:
    command = [sys.executable, "-m", "trifocal", "serve", "--port", "0", "--engine", "echo", "-e", "delay=0.05"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in iter(lambda: line_of(process, errors=True), "") if "is served at" in line)
            url = next(word for word in line.split() if word.startswith("http")).rstrip(";,")
            model = relay(url)
            with closing(model.stream([Message("user", "word " * 200)], Sampling(max_tokens=200))) as chunks:
                next(chunks)
                os.kill(process.pid, signal.SIGKILL)
                with pytest.raises(PeerError, match="in the middle"):
                    for _ in chunks:
                        pass
        finally:
            process.kill()
        with pytest.raises(PeerError, match="can't be asked"):
            model.complete([Message("user", "Hi")])
        assert model.state().phase == "failed"


def test_on_the_command_line(behind: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_ENGINE_KEY", KEY)
    words = ["docs/example.png", "What is in this picture?", "--engine", "openai", "-e", f"url={behind.url}"]
    shown = CliRunner().invoke(ask, words, catch_exceptions=False)
    assert (
        shown.stdout.strip()
        == behind.llava.complete(
            [behind.llava.question("What is in this picture?", [trifocal.open_image("docs/example.png")])]
        ).text
    )


def test_work_that_is_not_wanted_wakes_whoever_waits() -> None:
    scope, woken = Scope(), list[str]()
    scope.add(lambda: woken.append("early"))
    scope.cancel()
    scope.add(lambda: woken.append("late"))
    assert woken == ["early", "late"]


def test_tools_are_named_as_they_are(passing: Relay) -> None:
    written = passing.write([Message("user", "Hi")], tools=[Tool("look", "Looks.")])
    assert [tool.name for tool in written.tools] == ["look"]


def test_an_answer_that_the_collector_closes_while_its_scope_is_cancelled_waits_for_nobody() -> None:
    scope, woken = Scope(), list[int]()
    scope.add(lambda: woken.append(1))
    wake = lambda: None  # noqa: E731
    scope.add(wake)
    with scope._lock:  # as `cancel` has it
        scope.remove(wake)
    scope.cancel()
    assert woken == [1]
