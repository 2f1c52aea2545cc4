"""What one key asked is not to be told from what another one is answered: neither by counts nor by work left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from live import HIDDEN, NO_AUTHORITIES, Live, Watching, data_uri, make_llava, running

from trifocal.api.serving import Server
from trifocal.api.settings import hash_key

KEYS = {name: name * 16 for name in "ab"}
LONG = "what is in this picture, and why is it there? " * 4
TURN = [
    {"type": "text", "text": LONG},
    {"type": "image_url", "image_url": {"url": data_uri()}},
]
WAYS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TURN}], "max_tokens": 1},
    "/v1/completions": {"prompt": f'{LONG}<img src="{data_uri()}">', "max_tokens": 1},
    "/v1/responses": {
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": LONG},
                    {"type": "input_image", "image_url": data_uri()},
                ],
            }
        ],
        "max_output_tokens": 16,
    },
    "/v1/messages": {
        "model": "echo",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": LONG},
                    {
                        "type": "image",
                        "source": {
                            "type": "base64",
                            "media_type": "image/png",
                            "data": data_uri().partition(",")[2],
                        },
                    },
                ],
            }
        ],
        "max_tokens": 1,
    },
    "/api/chat": {
        "model": "echo",
        "messages": [{"role": "user", "content": LONG, "images": [data_uri().partition(",")[2]]}],
        "stream": False,
        "options": {"num_predict": 1},
    },
    "/api/v1/generate": {"prompt": f'{LONG}<img src="{data_uri()}">', "max_new_tokens": 1},
    "/page/api/explain": {
        "messages": [{"role": "user", "content": TURN}, {"role": "assistant", "content": "a dog"}],
    },
}


class Worked:
    """How many pictures were seen and how many positions computed since it was asked last."""

    def __init__(self, engine: Watching, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seen = self._computed = 0
        see, forward = live.llava.gallery.vision.see, engine.facts.runner.forward

        def seeing(looks: Any) -> Any:
            self._seen += len(looks)
            return see(looks)

        def computing(runs: Any) -> Any:
            self._computed += sum(run.count for run in runs)
            return forward(runs)

        monkeypatch.setattr(live.llava.gallery.vision, "see", seeing)
        monkeypatch.setattr(engine.facts.runner, "forward", computing)

    def __call__(self) -> tuple[int, int]:
        told = self._seen, self._computed
        self._seen = self._computed = 0
        return told


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[tuple[Live, Worked]]:
    from trifocal.web import routes

    engine = Watching(hidden=HIDDEN)
    keys = frozenset(map(hash_key, KEYS.values()))
    with running(make_llava(engine), routes(), keys=keys, **settings) as live:
        yield live, Worked(engine, live, monkeypatch)


def ask(live: Live, way: str, key: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {KEYS[key]}"}
    answer = httpx.post(
        live.url + way, json=WAYS[way], headers=headers, timeout=60, trust_env=False, verify=NO_AUTHORITIES
    )
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def tells(live: Live, worked: Worked, way: str) -> bool:
    """Whether the second key can tell by work or counts that the first one asked the same before it."""
    worked()
    first, cost = ask(live, way, "a"), worked()
    assert cost[0] == 1
    assert ask(live, way, "a").keys() == first.keys()
    again = worked()
    assert again[0] == 0
    assert again[1] < cost[1] or way.endswith("explain")
    second = ask(live, way, "b")
    return worked() != cost or second.get("usage") != first.get("usage")


@pytest.mark.parametrize("way", WAYS)
def test_a_key_meets_nothing_of_what_another_one_asked(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch) as (live, worked):
        assert not tells(live, worked, way)


def test_sharing_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, share_caches=True) as (live, worked):
        assert tells(live, worked, "/v1/chat/completions")


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_forgot_whose_cache_it_is_would_be_found(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "scope", lambda self, caller: "")
    with served(monkeypatch) as (live, worked):
        assert tells(live, worked, way)


def test_who_has_no_key_shares_with_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(make_llava()) as live:
        assert live.server.scope("address 127.0.0.1") == live.server.scope("address ::1") == ""
