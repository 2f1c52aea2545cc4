"""Histories that began elsewhere: what other services' tools did in them is read, a picture in them is seen."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from live import data_uri, error_of, png, user

CHAT = "/v1/chat/completions"
PICTURE = base64.b64encode(png("red")).decode()
HOSTED = [
    ({"type": "web_search_call", "action": {"type": "search", "query": "apples"}}, "apples"),
    ({"type": "file_search_call", "queries": ["apples"], "results": [{"filename": "a", "text": "A pip."}]}, "A pip."),
    ({"type": "file_search_call", "queries": ["apples"], "results": None}, "apples"),
    ({"type": "code_interpreter_call", "code": "1+1", "outputs": [{"type": "logs", "logs": "two"}]}, "two"),
    ({"type": "code_interpreter_call", "code": "1", "outputs": [{"type": "image", "url": data_uri("red")}]}, "mean 85"),
    ({"type": "image_generation_call", "result": PICTURE}, "mean 85"),
    ({"type": "mcp_call", "server_label": "s", "name": "look", "arguments": '{"a":1}', "output": "seen"}, "seen"),
    ({"type": "mcp_list_tools", "server_label": "s", "tools": []}, ""),
    ({"type": "mcp_approval_request", "server_label": "s", "name": "look", "arguments": "{}"}, ""),
    ({"type": "computer_call", "call_id": "c", "action": {"type": "click", "x": 1, "y": 2}}, "click"),
    (
        {
            "type": "computer_call_output",
            "call_id": "c",
            "output": {"type": "computer_screenshot", "image_url": data_uri("red")},
        },
        "mean 85",
    ),
    ({"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}}, "ls"),
    ({"type": "local_shell_call_output", "output": "a.txt"}, "a.txt"),
    ({"type": "program", "call_id": "c", "code": "say()", "fingerprint": "f"}, "say()"),
    ({"type": "program_output", "call_id": "c", "result": "said"}, "said"),
    ({"type": "configuration_update", "reasoning": {"effort": "low"}}, ""),
    ({"type": "image_generation_call", "result": None, "error": {"code": "moderation"}}, "moderation"),
    ({"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "*** Begin"}, "*** Begin"),
    ({"type": "custom_tool_call_output", "call_id": "c", "output": "patched"}, "patched"),
]


@pytest.mark.parametrize(("item", "words"), HOSTED, ids=[f"{at} {item['type']}" for at, (item, _) in enumerate(HOSTED)])
def test_what_another_service_s_tools_did_is_read(client: httpx.Client, item: dict[str, Any], words: str) -> None:
    given = [user("Hi"), {"id": "x", "status": "completed", **item}, user("And?")]
    answer = client.post("/v1/responses", json={"input": given})
    assert answer.status_code == 200, answer.text
    assert words in answer.json()["output"][0]["content"][0]["text"]
    listed = client.get(f"/v1/responses/{answer.json()['id']}/input_items", params={"order": "asc"}).json()["data"]
    assert listed[1] == {name: value for name, value in given[1].items() if value is not None}


@pytest.mark.parametrize("kind", ["additional_tools", "configuration_update"])
def test_functions_that_an_item_adds_are_offered(client: httpx.Client, kind: str) -> None:
    added = {"type": kind, "role": "developer", "tools": [{"type": "function", "name": "paint"}]}
    body = {"input": [user("Hi"), added]}
    assert "tools were not offered" in str(client.post("/v1/responses", json=body).json()["trifocal"]["notes"])
    counted = client.post("/v1/responses/input_tokens", json=body)
    assert counted.status_code == 200, counted.text
    first = client.post("/v1/responses", json=body).json()["id"]
    again = client.post("/v1/responses", json={"input": "And?", "previous_response_id": first}).json()
    assert "tools were not offered" in str(again["trifocal"]["notes"])


def test_a_call_with_a_text_is_read_in_a_chat(client: httpx.Client) -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    turns = [
        user("Hi"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": ""},
    ]
    assert "*** Begin" in client.post(CHAT, json={"messages": turns}).text
    turns[1] = {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}
    assert error_of(client.post(CHAT, json={"messages": turns}))["param"] == "messages[1].tool_calls[0].custom"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image_generation_call", "id": "x", "status": "completed"},
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "file_id": "f"}},
    ],
)
def test_a_picture_that_a_service_kept_is_not_passed_over(client: httpx.Client, item: dict[str, Any]) -> None:
    error = error_of(client.post("/v1/responses", json={"input": [user("Hi"), item]}))
    assert (error["param"], "is not in it" in error["message"]) == ("input[1]", True)


def _source(type: str, **more: Any) -> dict[str, Any]:
    return {"type": type, **more}


DRAWN = {"type": "image", "source": _source("base64", media_type="image/png", data=PICTURE)}
TEXT = {"type": "text", "text": "A pip."}
FOUND = {"type": "web_search_result", "title": "A pip.", "url": "https://a.example", "encrypted_content": "x" * 700}
RAN = {"type": "code_execution_result", "stdout": "A pip.", "stderr": "", "return_code": 0, "content": []}
ASKED = [
    {"type": "search_result", "title": "On", "source": "https://a.example", "content": [TEXT]},
    {"type": "document", "source": _source("text", media_type="text/plain", data="A pip.")},
    {"type": "document", "source": _source("content", content="A pip."), "title": "On", "context": "apples"},
    {"type": "document", "source": _source("content", content=[TEXT, DRAWN])},
    {
        "type": "document",
        "source": _source("base64", media_type="text/csv", data=base64.b64encode(b"A pip.").decode()),
    },
    {"type": "compaction", "content": "A pip."},
]
ANSWERED = [
    ("server_tool_use", "web_search_tool_result", [FOUND]),
    ("server_tool_use", "web_fetch_tool_result", {"type": "web_fetch_result", "url": "a", "content": ASKED[1]}),
    ("server_tool_use", "code_execution_tool_result", RAN),
    ("server_tool_use", "bash_code_execution_tool_result", {"type": "error", "error_code": "A pip."}),
    ("mcp_tool_use", "mcp_tool_result", [TEXT, DRAWN]),
    ("mcp_tool_use", "mcp_tool_result", "A pip."),
]


def _answer(client: httpx.Client, *turns: dict[str, Any]) -> httpx.Response:
    body = {"model": "echo", "max_tokens": 4096, "messages": turns}
    counted = client.post("/v1/messages/count_tokens", json={"model": "echo", "messages": turns})
    answer = client.post("/v1/messages", json=body)
    assert counted.status_code == answer.status_code
    return answer


@pytest.mark.parametrize(("block", "inside"), [(each, inside) for each in ASKED for inside in (False, True)][:-1])
def test_what_is_text_in_a_block_is_read(client: httpx.Client, block: dict[str, Any], inside: bool) -> None:
    block = {**block, "cache_control": {"type": "ephemeral"}, "citations": {"enabled": True}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    found = _answer(client, user(result if inside else block)).json()
    said = found["content"][0]["text"]
    assert "A pip." in said
    assert ("mean 85" in said) == ("image/png" in str(block))
    assert "citations have no effect here" in found["trifocal"]["notes"]


@pytest.mark.parametrize(("call", "kind", "content"), ANSWERED)
def test_what_a_service_did_in_its_answer_is_read_where_it_came(
    client: httpx.Client, call: str, kind: str, content: Any
) -> None:
    blocks = [
        {"type": "text", "text": "I look."},
        {"type": call, "id": "s", "name": "look", "input": {"query": "apples"}, "caller": {"type": "direct"}},
        {"type": kind, "tool_use_id": "s", "content": content},
        {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
        {"type": "text", "text": "Well.", "citations": [{"type": "web_search_result_location", "url": "a"}]},
    ]
    answer = _answer(client, user("Hi"), {"role": "assistant", "content": blocks}, user("And?"))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    said = found["content"][0]["text"]
    assert said.index("I look.") < said.index("apples") < said.index("A pip.") < said.index("Well.")
    assert ("mean 85" in said) == (PICTURE in str(content))
    assert ("encrypted" in " ".join(found["trifocal"]["notes"])) == ("encrypted_" in str(content))
    assert "xxxx" not in said


PDF = _source("base64", media_type="application/pdf", data="JVBERi0=")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "document", "source": PDF}, "application/pdf"),
        ({"type": "document", "source": _source("url", url="https://a.example/a.pdf")}, "neither uploaded nor fetched"),
        ({"type": "document", "source": _source("file", file_id="f")}, "neither uploaded nor fetched"),
        ({"type": "container_upload", "file_id": "f"}, "no uploaded files"),
        ({"type": "web_fetch_tool_result", "tool_use_id": "t", "content": {"source": PDF}}, "application/pdf"),
        ({"type": "compaction", "content": "x", "tool_changes": [{"type": "tool_removal"}]}, "tool_changes"),
    ],
)
def test_what_nobody_here_can_read_is_refused_with_its_place(
    client: httpx.Client, block: dict[str, Any], words: str
) -> None:
    message = error_of(_answer(client, user("Hi"), {"role": "user", "content": [block]}))["message"]
    assert "messages[1].content[0]" in message
    assert words in message


@pytest.mark.parametrize("data", ["data:text/plain;base64,QSBwaXAu", "data:text/csv,A%20pip."])
def test_a_file_that_is_a_text_or_a_picture_is_taken(client: httpx.Client, data: str) -> None:
    file = {"filename": "a.txt", "file_data": data}
    chat = client.post(CHAT, json={"messages": [user({"type": "file", "file": file})]}).json()
    assert "a.txt:\nA pip." in chat["choices"][0]["message"]["content"]
    item = {"role": "user", "content": [{"type": "input_file", **file}]}
    answer = client.post("/v1/responses", json={"input": [item]}).json()
    assert "A pip." in answer["output"][0]["content"][0]["text"]
    drawn = {"filename": "a.png", "file_data": data_uri("red")}
    assert "mean 85" in client.post(CHAT, json={"messages": [user({"type": "file", "file": drawn})]}).text


@pytest.mark.parametrize("file", [{"file_id": "f"}, {"file_data": "data:application/pdf;base64,JVBERi0="}])
def test_a_file_that_is_neither_is_refused(client: httpx.Client, file: dict[str, Any]) -> None:
    error = error_of(client.post(CHAT, json={"messages": [user({"type": "file", "file": file})]}))
    assert (error["param"], error["code"]) == ("messages[0].content[0]", "unsupported_parameter")


def test_an_uploaded_picture_is_refused_with_its_place(client: httpx.Client) -> None:
    item = {"role": "user", "content": [{"type": "input_image", "image_url": None, "file_id": "f"}]}
    error = error_of(client.post("/v1/responses", json={"input": [item]}))
    assert (error["param"], error["code"]) == ("input[0].content[0]", "unsupported_parameter")
