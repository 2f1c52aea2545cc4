from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from live import Gated, Live, data_uri, error_of, make_llava, running
from websockets.sync.client import ClientConnection, connect

from trifocal.api.serving import Server
from twins import is_found
from waiting import PATIENCE, until

GENERATE = "/api/v1/generate"
HELLO = "A chat between a curious human"


@contextmanager
def socket(live: Live, path: str) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{live.port}{path}", proxy=None) as websocket:
        yield websocket


def talk(websocket: ClientConnection, content: Any) -> list[Any]:
    websocket.send(content if isinstance(content, str) else json.dumps(content))
    frames = []
    while not frames or frames[-1]["event"] != "stream_end":
        frames.append(json.loads(websocket.recv(timeout=PATIENCE)))
    return frames


def test_generate_gives_only_the_new_text(client: httpx.Client) -> None:
    response = client.post(GENERATE, json={"prompt": "Say this"})
    assert response.content == b'{"results":[{"text":"Say this"}]}'


def test_pictures_stand_in_the_prompt(client: httpx.Client) -> None:
    prompt = f'### Human: \nWhat is this?\n<img src="{data_uri("red", "jpeg")}">\n### Assistant: \n'
    text = client.post(GENERATE, json={"prompt": prompt}).json()["results"][0]["text"]
    assert "### Human: \nWhat is this?\n[picture: 4 positions, mean 8" in text


def test_numbers_may_come_as_text_as_the_host_took_them(client: httpx.Client) -> None:
    response = client.post(GENERATE, json={"prompt": "Hello", "max_new_tokens": "2", "temperature": "0.7"})
    assert response.json() == {"results": [{"text": "He"}]}


@pytest.mark.parametrize("alias", [{"max_length": 3}, {"max_new_tokens": 3}, {"max_length": 3, "max_new_tokens": 3}])
def test_aliases_of_the_host_are_known(client: httpx.Client, alias: dict[str, int]) -> None:
    neutral = {"typical": 1, "rep_pen": 1.0, "max_context_length": 2048}
    response = client.post(GENERATE, json={"prompt": "Hello", **alias, **neutral})
    assert response.json() == {"results": [{"text": "Hel"}]}


def test_stopping_strings_end_the_answer(client: httpx.Client) -> None:
    response = client.post(GENERATE, json={"prompt": "one\n### two", "stopping_strings": ["\n###"]})
    assert response.json() == {"results": [{"text": "one"}]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 2),
        ("penalty_alpha", 0.6),
        ("typical_p", 0.5),
        ("mirostat_mode", 2),
        ("encoder_repetition_penalty", 1.2),
        ("no_repeat_ngram_size", 3),
        ("min_length", 5),
        ("length_penalty", 2),
        ("early_stopping", True),
        ("add_bos_token", False),
        ("skip_special_tokens", False),
        ("epsilon_cutoff", 3),
        ("eta_cutoff", 3),
        ("tfs", 0.9),
        ("top_a", 0.1),
        ("guidance_scale", 1.5),
        ("custom_stopping_strings", '"x"'),
        ("preset", "Shortwave"),
        ("no_such_thing", 1),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(client: httpx.Client, name: str, value: Any) -> None:
    error = error_of(client.post(GENERATE, json={"prompt": "Hi", name: value}))
    assert error["param"] == name
    assert error["code"] in ("unsupported_parameter", "unknown_parameter")


def test_every_default_of_the_host_is_taken(client: httpx.Client) -> None:
    defaults: dict[str, Any] = dict(  # noqa: C408
        max_new_tokens=200, do_sample=True, temperature=0.5, top_p=1, typical_p=1, repetition_penalty=1.1,
        encoder_repetition_penalty=1.0, top_k=0, min_length=0, no_repeat_ngram_size=0, num_beams=1, penalty_alpha=0,
        length_penalty=1, early_stopping=False, seed=-1, add_bos_token=True, truncation_length=2048,
        ban_eos_token=False, skip_special_tokens=True, stopping_strings=[], custom_stopping_strings="",
        epsilon_cutoff=0, eta_cutoff=0, tfs=1, top_a=0, mirostat_mode=0, mirostat_tau=5, mirostat_eta=0.1,
    )  # fmt: skip
    assert client.post(GENERATE, json={"prompt": "Hi", **defaults}).json() == {"results": [{"text": "Hi"}]}


def test_a_prompt_beyond_the_named_room_is_refused_with_counts(client: httpx.Client) -> None:
    error = error_of(client.post(GENERATE, json={"prompt": "x" * 300, "truncation_length": 250}))
    assert error["code"] == "context_length_exceeded"
    assert "301 positions" in error["message"]


def test_an_answer_is_bounded_by_the_named_room(client: httpx.Client) -> None:
    body = {"prompt": "x" * 100, "truncation_length": 150, "max_new_tokens": 250}
    assert client.post(GENERATE, json=body).json() == {"results": [{"text": "x" * 49}]}


def test_token_count_counts_pictures_as_positions(client: httpx.Client) -> None:
    def count(prompt: str) -> int:
        return int(client.post("/api/v1/token-count", json={"prompt": prompt}).json()["results"][0]["tokens"])

    assert count("four") == 5
    assert count(f'<img src="{data_uri()}">') == 5


def test_model_is_its_name(client: httpx.Client) -> None:
    assert client.get("/api/v1/model").json() == {"result": "echo"}


def test_chat_gives_the_history_with_the_reply(client: httpx.Client) -> None:
    history = {"internal": [["Hi", "Hello & welcome"]], "visible": [["Hi", "Hello &amp; welcome"]]}
    body = client.post("/api/v1/chat", json={"user_input": "Who?", "history": history, "max_new_tokens": 30}).json()
    told = body["results"][0]["history"]
    assert told["internal"] == [["Hi", "Hello & welcome"], ["Who?", HELLO]]
    assert told["visible"][0] == ["Hi", "Hello &amp; welcome"]


def test_chat_regenerates_and_goes_on(client: httpx.Client) -> None:
    history = {"internal": [["Hi", "Well, "]], "visible": [["Hi", "Well, "]]}
    common = {"user_input": "", "history": history, "max_new_tokens": 30}
    again = client.post("/api/v1/chat", json={**common, "regenerate": True}).json()
    assert again["results"][0]["history"]["internal"] == [["Hi", HELLO]]
    more = client.post("/api/v1/chat", json={**common, "_continue": True}).json()
    assert more["results"][0]["history"]["internal"] == [["Hi", "Well, " + HELLO]]
    nothing = client.post("/api/v1/chat", json={"user_input": "", "regenerate": True})
    assert error_of(nothing)["param"] == "history"


def test_chat_leaves_the_oldest_exchanges_out_when_the_room_is_full(client: httpx.Client) -> None:
    pairs = [["old " * 40, "reply"], ["new", "reply"]]
    request = {"user_input": "Now", "history": {"internal": pairs, "visible": pairs}, "max_new_tokens": 200}
    text = client.post("/api/v1/chat", json={**request, "truncation_length": 520}).json()
    reply = text["results"][0]["history"]["internal"][-1][1]
    assert "old" not in reply
    assert "USER: new" in reply


def test_a_frame_is_answered_with_deltas_and_an_end(live: Live) -> None:
    with socket(live, "/api/v1/stream") as websocket:
        for _ in range(2):
            frames = talk(websocket, {"prompt": "Hey", "max_new_tokens": 2})
            assert frames == [
                {"event": "text_stream", "message_num": 0, "text": ""},
                {"event": "text_stream", "message_num": 1, "text": "H"},
                {"event": "text_stream", "message_num": 2, "text": "e"},
                {"event": "stream_end", "message_num": 3},
            ]


def test_the_chat_socket_sends_growing_histories(live: Live) -> None:
    with socket(live, "/api/v1/chat-stream") as websocket:
        frames = talk(websocket, {"user_input": "Hey", "max_new_tokens": 2})
    assert [frame["history"]["internal"] for frame in frames[:-1]] == [[["Hey", ""]], [["Hey", "A"]], [["Hey", "A "]]]


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"prompt": 5}', '{"prompt": "x", "num_beams": 2}', '{"prompt": "<img src=\'http://a.b/c\'>"}'],
)
def test_a_bad_frame_gets_an_error_and_then_the_end(live: Live, content: str) -> None:
    with socket(live, "/api/v1/stream") as websocket:
        frames = talk(websocket, content)
        assert [frame["event"] for frame in frames] == ["error", "stream_end"]
        assert frames[0]["error"]["code"]
        assert talk(websocket, {"prompt": "Still here", "max_new_tokens": 1})[-1]["event"] == "stream_end"


def test_a_frame_of_megabytes_is_taken(live: Live) -> None:
    big = f'<img src="{data_uri()}">' + " " * (2 << 20)
    with socket(live, "/api/v1/stream") as websocket:
        frames = talk(websocket, {"prompt": big})
    assert frames[0]["error"]["code"] in ("context_length_exceeded", "invalid_value")


def test_stop_stream_ends_only_answers_of_its_caller() -> None:
    engine = Gated(hidden=8)
    engine.gate.clear()
    with running(make_llava(engine)) as live, live.client() as client:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.post(GENERATE, json={"prompt": "x" * 99})))
        thread.start()
        until(lambda: engine.open, "the answer")
        strangers = live.server.stop("address 10.0.0.9")
        assert client.post("/api/v1/stop-stream").json() == {"results": "success"}
        engine.gate.set()
        thread.join(PATIENCE)
        assert strangers == 0
        assert len(answers[0].json()["results"][0]["text"]) < 99
        assert live.settled()


def test_its_twin_that_stops_everybody_is_found() -> None:
    def stop(server: Server, caller: str) -> int:
        return sum(Server.__dict__["_stop"](server, run.caller) for run in list(server._runs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "_stop", Server.stop, raising=False)
        is_found(test_stop_stream_ends_only_answers_of_its_caller, Server, "stop", stop)
