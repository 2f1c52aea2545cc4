"""Pictures as embeddings over HTTP: off unless it is asked for, then bounded, checked and answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from live import HIDDEN, Live, error_of, make_llava, running, user
from safetensors.torch import save

from twins import is_found

ROWS = torch.full((3, HIDDEN), 5.0)


@pytest.fixture(scope="module")
def taking() -> Iterator[Live]:
    with running(make_llava(), image_embeds=True, image_bytes=1 << 16, images=2) as live:
        yield live


def part(data: bytes, *, inside: bool = False) -> dict[str, Any]:
    text = base64.b64encode(data).decode()
    return {"type": "image_embeds", "image_embeds": {"image_embeds": text} if inside else text}


def by_torch(rows: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    return buffer.getvalue()


def asked(*content: Any) -> dict[str, Any]:
    return {"messages": [user(*content, {"type": "text", "text": "What?"})], "max_tokens": 600}


@pytest.mark.parametrize(
    "given", [part(by_torch(ROWS)), part(save({"a": ROWS[None].half()})), part(by_torch(ROWS), inside=True)]
)
def test_they_are_seen(taking: Live, given: dict[str, Any]) -> None:
    with taking.client() as client:
        reply = client.post("/v1/chat/completions", json=asked(given)).json()
    assert "[picture: 3 positions, mean 5.000000]" in reply["choices"][0]["message"]["content"]
    assert reply["trifocal"]["image_positions"] == [3]


def test_they_are_off_unless_asked_for(client: Any) -> None:
    error = error_of(client.post("/v1/chat/completions", json=asked(part(by_torch(ROWS)))))
    assert "--image-embeds" in error["message"]
    assert error["param"] == "messages[0].content[0]"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([part(by_torch(torch.zeros(3, HIDDEN + 1)))], "width of 8, not 9"),
        ([part(by_torch(torch.full((1, HIDDEN), float("nan"))))], "finite"),
        ([part(by_torch(ROWS.double()))], "float32, float16 or bfloat16"),
        ([part(b"nothing")], "safetensors"),
        ([part(b"\0" * (1 << 17))], "allowed are 65536"),
        ([{"type": "image_embeds", "image_embeds": {"image_embeds": "", "image_grid_thw": ""}}], "alone"),
        ([part(by_torch(ROWS))] * 3, "allowed are 2"),
    ],
)
def test_what_is_refused(taking: Live, content: list[Any], said: str) -> None:
    with taking.client() as client:
        assert said in error_of(client.post("/v1/chat/completions", json=asked(*content)))["message"]
        assert client.post("/v1/chat/completions", json=asked(part(by_torch(ROWS)))).status_code == 200


def test_more_than_fits_is_refused_before_anything_is_computed(taking: Live) -> None:
    long = by_torch(torch.zeros(5000, 1).expand(-1, 1).contiguous())
    assert len(long) < 1 << 16
    with taking.client() as client:
        reply = client.post("/v1/chat/completions", json=asked(part(by_torch(torch.zeros(2000, HIDDEN).half()))))
        counted = client.post("/tokenize", json={"messages": asked(part(by_torch(ROWS)))["messages"]})
    assert reply.status_code == 200
    assert counted.status_code == 200


def test_its_twin_that_takes_any_number_for_one_is_found(taking: Live) -> None:
    bad = part(by_torch(torch.full((1, HIDDEN), float("nan"))))
    is_found(lambda: test_what_is_refused(taking, [bad], "finite"), torch, "isfinite", torch.ones_like)
