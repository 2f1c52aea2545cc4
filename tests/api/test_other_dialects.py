from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from live import error_of, png

PICTURE = base64.b64encode(png("red")).decode()
SOURCE = {"type": "base64", "media_type": "image/png", "data": PICTURE}
SEEN = "[picture: 4 positions, mean 85.000000]"


def anthropic(**more: Any) -> dict[str, Any]:
    content = [{"type": "image", "source": SOURCE}, {"type": "text", "text": "What?"}]
    return {"model": "echo", "max_tokens": 600, "messages": [{"role": "user", "content": content}], **more}


def test_anthropic_answers_with_blocks(client: httpx.Client) -> None:
    body = client.post("/v1/messages", json=anthropic(system="Be brief.")).json()
    assert body["type"] == "message"
    assert SEEN in body["content"][0]["text"]
    assert "Be brief." in body["content"][0]["text"]
    assert body["stop_reason"] == "end_turn"
    assert body["usage"]["input_tokens"] > 4
    assert client.post("/v1/messages", json=anthropic(max_tokens=1)).json()["stop_reason"] == "max_tokens"


def test_anthropic_streams_named_events_in_order(client: httpx.Client) -> None:
    response = client.post("/v1/messages", json=anthropic(stream=True))
    names = [line[7:] for line in response.text.split("\n") if line.startswith("event: ")]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    data = [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: ")]
    text = "".join(event["delta"]["text"] for event in data if event["type"] == "content_block_delta")
    assert SEEN in text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"name": "x y"}]}, "tools[0].name"),
        ({"tools": [{"name": "x"}], "tool_choice": {"type": "tool", "name": "y"}}, "tool_choice"),
        ({"tools": [{"name": "x"}], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config.format"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_anthropic_refuses_by_name(client: httpx.Client, more: dict[str, Any], param: str) -> None:
    error = error_of(client.post("/v1/messages", json=anthropic(**more)))
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(param)


def test_anthropic_url_sources_are_never_dropped(client: httpx.Client) -> None:
    body = anthropic()
    body["messages"][0]["content"][0]["source"] = {"type": "url", "url": "https://example.com/a.png"}
    error = error_of(client.post("/v1/messages", json=body))
    assert error["message"].startswith("messages[0].content[0]: ")


def ollama(**more: Any) -> dict[str, Any]:
    return {"model": "echo:latest", "messages": [{"role": "user", "content": "What?", "images": [PICTURE]}], **more}


def test_ollama_streams_lines_by_default(client: httpx.Client) -> None:
    response = client.post("/api/chat", json=ollama())
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert SEEN in "".join(line["message"]["content"] for line in lines)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == "stop"
    assert lines[-1]["prompt_eval_count"] > 4


def test_ollama_answers_whole(client: httpx.Client) -> None:
    body = client.post("/api/chat", json=ollama(stream=False)).json()
    assert SEEN in body["message"]["content"]
    options = {"num_predict": 2, "temperature": 0.5, "repeat_penalty": 1.1, "seed": 3}
    asked = {"model": "echo", "prompt": "Hi", "images": [PICTURE], "stream": False, "options": options}
    body = client.post("/api/generate", json=asked).json()
    assert (body["response"], body["eval_count"], body["done_reason"]) == ("A ", 2, "length")
    raw = client.post("/api/generate", json={"model": "echo", "prompt": "As is", "raw": True, "stream": False}).json()
    assert raw["response"] == "As is"


def test_ollama_tells_of_its_model(client: httpx.Client) -> None:
    assert client.get("/api/tags").json()["models"][0]["name"] == "echo"
    assert "vision" in client.post("/api/show", json={"model": "echo"}).json()["capabilities"]
    assert "known: echo" in error_of(client.post("/api/show", json={"model": "other"}), 404)["message"]
    assert client.get("/api/version").json()["version"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"format": "json"}, "format"),
        ({"format": "xml"}, "format"),
        ({"tools": [{}]}, "tools[0].name"),
    ],
)
def test_ollama_refuses_by_name(client: httpx.Client, more: dict[str, Any], param: str) -> None:
    assert error_of(client.post("/api/chat", json=ollama(**more)))["message"].startswith(f"{param}: ")
