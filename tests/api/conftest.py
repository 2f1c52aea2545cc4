"""The server that most tests of the dialects share: it echoes, in four slots."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from live import HIDDEN, Live, Watching, make_llava, running

from trifocal.web import routes


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    with running(make_llava(Watching(hidden=HIDDEN)), routes(), slots=4) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    with live.client() as http:
        yield http
