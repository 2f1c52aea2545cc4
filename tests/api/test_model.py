"""The faces are content with the small protocol that they say they need."""

from __future__ import annotations

from typing import Any

import pytest
from live import Watching, data_uri, make_llava, running, user

from trifocal.api.model import Model
from trifocal.web import routes

MEMBERS = {name for name in vars(Model) if not name.startswith("_")}


class Only:
    """A model of which nothing can be had but what the protocol names."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        assert name in MEMBERS, f"a face reaches for {name} of the model"
        return getattr(self._model, name)


PICTURE = {"type": "image_url", "image_url": {"url": data_uri()}}
TALK = [{"role": "user", "content": [{"type": "text", "text": "What?"}, PICTURE]}]
ANSWERED = [*TALK, {"role": "assistant", "content": "Red."}]
ASKED = [
    ("/v1/chat/completions", {"messages": TALK, "max_tokens": 2}),
    ("/v1/completions", {"prompt": "Hi", "max_tokens": 2}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 16}),
    ("/v1/messages", {"messages": [user("Hi")], "max_tokens": 2, "model": "echo"}),
    ("/v1/messages/count_tokens", {"messages": [user("Hi")], "model": "echo"}),
    ("/api/chat", {"model": "echo", "messages": [user("Hi")], "stream": False}),
    ("/api/generate", {"model": "echo", "prompt": "Hi", "stream": False}),
    ("/api/show", {"model": "echo"}),
    ("/api/v1/generate", {"prompt": "Hi", "max_new_tokens": 2}),
    ("/api/v1/token-count", {"prompt": "Hi"}),
    ("/tokenize", {"content": "Hi"}),
    ("/detokenize", {"tokens": [20, 21]}),
    ("/page/api/count", {"messages": TALK}),
    ("/page/api/preview", {"image": data_uri()}),
    ("/page/api/explain", {"messages": ANSWERED}),
]
READ = [
    "/v1/models",
    "/v1/limits",
    "/readyz",
    "/metrics",
    "/props",
    "/api/tags",
    "/api/ps",
    "/api/v1/model",
    "/v1/internal/model/info",
    "/page/api/info",
]


@pytest.fixture(scope="module")
def live() -> Any:
    with running(Only(make_llava(Watching())), routes()) as live:  # type: ignore[arg-type]
        yield live


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_what_is_asked(live: Any, path: str, body: dict[str, Any]) -> None:
    with live.client() as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", READ)
def test_what_is_read(live: Any, path: str) -> None:
    with live.client() as client:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
