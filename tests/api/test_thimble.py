"""True answers about a picture from the bundled model, by the clients that people have.

Two clients are imported where they ask: each takes seconds, which whoever only collects the tests need not spend.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest
from live import Live, error_of, events_of, png, running
from websockets.sync.client import connect

import trifocal
from trifocal.api.server import listen
from trifocal.api.settings import ServerSettings
from trifocal.errors import UsageError
from waiting import PATIENCE, until

QUESTION = "What colour is the picture?"
SEED = Path(__file__).with_name("seed_example.txt")  # the example of the README that this project began with


@pytest.fixture(scope="module")
def thimble() -> Iterator[Live]:
    with trifocal.load() as llava, running(llava) as live:
        yield live


@pytest.fixture
def parts() -> list[dict[str, object]]:
    url = f"data:image/png;base64,{base64.b64encode(png('red', (64, 64))).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]


@pytest.mark.parametrize("stream", [False, True])
def test_openai(thimble: Live, parts: list[dict[str, object]], stream: bool) -> None:
    import openai

    with openai.OpenAI(base_url=f"{thimble.url}/v1", api_key="none") as client:
        messages = [{"role": "user", "content": parts}]
        if stream:
            chunks = client.chat.completions.create(model="thimble", messages=messages, stream=True)  # type: ignore[call-overload]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            text = client.chat.completions.create(model="thimble", messages=messages).choices[0].message.content  # type: ignore[call-overload]
    assert "red" in text


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_is_held_to_a_json_schema(thimble: Live, parts: list[dict[str, object]], temperature: float) -> None:
    import openai

    shape = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA, "strict": True}}
    with openai.OpenAI(base_url=f"{thimble.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(  # type: ignore[call-overload]
            model="thimble",
            messages=[{"role": "user", "content": parts}],
            response_format=shape,
            temperature=temperature,
            seed=3,
        )
    seen = json.loads(answer.choices[0].message.content)
    assert seen["colour"] in ("red", "green", "blue")
    assert isinstance(seen["count"], int)


@pytest.mark.parametrize("schema", [{"type": "strin"}, {"propertyNames": {"minLength": 3}}])
def test_a_schema_that_can_not_be_held_is_refused(thimble: Live, schema: dict[str, object]) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "response_format": shape}
    with thimble.client() as client:
        assert error_of(client.post("/v1/chat/completions", json=body))["param"] == "response_format"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_answer(thimble: Live, parts: list[dict[str, object]], stream: bool) -> None:
    asked = {"messages": [{"role": "user", "content": parts}], "logprobs": True, "top_logprobs": 3, "stream": stream}
    with thimble.client() as client:
        response = client.post("/v1/chat/completions", json=asked)
        text = client.post("/v1/completions", json={"prompt": "The", "logprobs": 2, "max_tokens": 3}).json()
    choices = [event["choices"][0] for event in events_of(response)[:-1]] if stream else response.json()["choices"]
    said = "".join((choice.get("delta") or choice.get("message") or {}).get("content", "") for choice in choices)
    tokens = [token for choice in choices for token in (choice["logprobs"] or {"content": []})["content"]]
    assert "".join(token["token"] for token in tokens).strip().startswith(said.strip())  # the stop string comes after
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0  # a greedy answer takes the likeliest
    assert len(text["choices"][0]["logprobs"]["tokens"]) == len(text["choices"][0]["logprobs"]["token_logprobs"]) == 3


def test_ollama_s_format_is_held_too(thimble: Live) -> None:
    asked = {"model": "thimble", "prompt": QUESTION, "format": SCHEMA, "stream": False}
    with thimble.client() as client:
        assert set(json.loads(client.post("/api/generate", json=asked).json()["response"])) == {"colour", "count"}


def test_openai_sees_our_errors_as_its_own(thimble: Live) -> None:
    import openai

    with openai.OpenAI(base_url=f"{thimble.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Hi"}])
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model="thimble", messages=[{"role": "user", "content": "Hi"}], top_p=-1)
        assert bad.value.param == "top_p"


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic(thimble: Live, stream: bool) -> None:
    import anthropic

    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png("red", (64, 64))).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    asked = {"model": "thimble", "max_tokens": 100, "messages": [{"role": "user", "content": content}]}
    with anthropic.Anthropic(base_url=thimble.url, api_key="none") as client:
        if stream:
            with client.messages.stream(**asked) as answer:  # type: ignore[arg-type]
                text = "".join(answer.text_stream)
                assert answer.get_final_message().usage.output_tokens > 0
        else:
            text = client.messages.create(**asked).content[0].text  # type: ignore[call-overload]
    assert "red" in text


@pytest.mark.parametrize("stream", [False, True])
def test_ollama(thimble: Live, stream: bool) -> None:
    client = ollama.Client(thimble.url, trust_env=False)
    messages = [{"role": "user", "content": QUESTION, "images": [png("red", (64, 64))]}]
    try:
        answer = client.chat("thimble", messages, stream=stream)
        text = "".join(part.message.content for part in answer) if stream else answer.message.content  # type: ignore[union-attr]
        assert client.list().models[0].model == "thimble"
    finally:
        client._client.close()
    assert "red" in text


@pytest.mark.parametrize("stream", [False, True])
def test_curl(thimble: Live, parts: list[dict[str, object]], tmp_path: Path, stream: bool) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"messages": [{"role": "user", "content": parts}], "stream": stream}))
    command = ["curl", "-sS", "--noproxy", "*", f"{thimble.url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d", f"@{body}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert "red" in shown
    assert shown.endswith("data: [DONE]\n\n") == stream


def test_the_old_websocket(thimble: Live) -> None:
    picture = base64.b64encode(png("red", (64, 64), "JPEG")).decode()
    prompt = f'### Human: \n{QUESTION}\n<img src="data:image/jpeg;base64,{picture}">\n### Assistant: \n'
    with connect(f"ws://127.0.0.1:{thimble.port}/api/v1/stream", proxy=None) as socket:
        socket.send(json.dumps({"prompt": prompt, "stopping_strings": ["\n###"], "do_sample": False}))
        text = ""
        while (frame := json.loads(socket.recv(timeout=PATIENCE)))["event"] == "text_stream":
            text += frame["text"]
    assert "red" in text


def wait_for_port(port: int) -> None:
    """Until the port is free: somebody else on this machine may run the same test."""

    def is_free() -> bool:
        try:
            for sock in listen(ServerSettings(port=port)):
                sock.close()
        except UsageError:
            return False
        return True

    until(is_free, f"port {port}, which the script names and another program has,")


def test_the_seed_s_own_script_runs_word_for_word(tmp_path: Path) -> None:
    """Port 5000 and the picture's name are the script's own; the picture is one that thimble knows."""
    script = tmp_path / "script.py"
    shutil.copy(SEED, script)
    (tmp_path / "extreme_ironing.jpg").write_bytes(png("red", (224, 224), "JPEG"))
    environment = {**os.environ, "NO_PROXY": "*"}
    wait_for_port(5000)
    with trifocal.load() as llava, running(llava, port=5000):
        command = [sys.executable, str(script)]
        shown = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE
        )
    ((answer,),) = ast.literal_eval(shown.stdout).values()
    assert "unusual" in answer["text"]


def test_the_same_picture_in_a_later_request_is_not_seen_twice(thimble: Live) -> None:
    def images(client: object) -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()  # type: ignore[attr-defined]
        return {
            line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith("trifocal_images_total{")
        }

    url = f"data:image/png;base64,{base64.b64encode(png('teal', (65, 65))).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    with thimble.client() as client:
        before = images(client)
        bodies = [
            client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}).json()
            for _ in range(2)
        ]
        after = images(client)
    assert [body["trifocal"]["cached_images"] for body in bodies] == [0, 1]
    assert [body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in bodies] == [0, 256]
    assert "tower" in bodies[0]["trifocal"]["timings"]
    assert bodies[0]["choices"][0]["message"] == bodies[1]["choices"][0]["message"]
    assert (after["hit"] - before["hit"], after["miss"] - before["miss"]) == (1, 1)
