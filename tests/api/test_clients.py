"""The newest openai, anthropic and ollama packages against a live server; tests/clients has the same for many more."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from checks import CHECKS, Place
from live import png, running

import trifocal

# clients are left to be collected, as most programs do; their open sockets are collected here
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
OURS = [(client, name) for client in ("openai", "openai (responses)", "anthropic", "ollama") for name in CHECKS[client]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    picture = tmp_path_factory.mktemp("clients") / "picture.png"
    picture.write_bytes(png("red", (64, 64)))
    with trifocal.load() as llava, running(llava) as live:
        yield Place(live.url, picture)


@pytest.mark.parametrize(("client", "name"), OURS)
def test_a_client_with_its_own_defaults(place: Place, client: str, name: str) -> None:
    CHECKS[client][name](place)
    gc.collect()
