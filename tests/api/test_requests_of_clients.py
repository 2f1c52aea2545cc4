"""What clients that people run by hand send, as they sent it: every request is taken, and its picture is seen.

``requests_of_clients.json`` has one request a client with every field that it sent; words, pictures and most functions
are cut.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import data_uri, png

RECORDED = json.loads(Path(__file__).with_name("requests_of_clients.json").read_text("utf-8"))
PICTURES = {"PICTURE": base64.b64encode(png("red")).decode(), "PICTURE_URI": data_uri("red")}


@pytest.mark.parametrize("recorded", RECORDED, ids=[each["client"] for each in RECORDED])
def test_a_client_s_own_request_is_taken(client: httpx.Client, recorded: dict[str, Any]) -> None:
    response = client.post(recorded["path"], json=_with_pictures(recorded["body"]))
    assert response.status_code == 200, response.text
    assert '"error":{' not in response.text
    assert ("mean 85" in _text(response.text)) == ("PICTURE" in json.dumps(recorded["body"]))


def _with_pictures(value: Any) -> Any:
    match value:
        case str():
            return PICTURES.get(value, value)
        case list():
            return [_with_pictures(each) for each in value]
        case dict():
            return {name: _with_pictures(each) for name, each in value.items()}
    return value


def _text(stream: str) -> str:
    """The text of a stream in any dialect, piece by piece."""
    lines = (line.removeprefix("data: ") for line in stream.splitlines())
    return "".join(_pieces([json.loads(line) for line in lines if line.startswith("{")]))


def _pieces(value: Any) -> list[str]:
    """The texts of the events that add to an answer."""
    if isinstance(value, list):
        return [piece for each in value for piece in _pieces(each)]
    found = [value.get("message", {}), value.get("delta", {})] + [each["delta"] for each in value.get("choices", ())]
    return [each if isinstance(each, str) else each.get("content") or each.get("text") or "" for each in found]
