"""A dialect is a module of its own and one name in `DIALECTS`: everything around it comes with the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live import Live, running
from strange_dialect import router

from trifocal.api import app


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    monkeypatch.setattr(app, "DIALECTS", (*app.DIALECTS, router))
    with running(keys=frozenset()) as live:
        yield live


def test_it_answers_about_a_picture_and_its_errors_are_the_server_s(live: Live) -> None:
    pixel = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    with live.client() as client:
        told = client.post("/strange/ask", json={"question": "hello", "picture": pixel, "words": 4})
        assert told.status_code == 200
        assert told.json()["ended"] == "length"
        assert told.json()["said"]
        for wrong in ({"question": "?", "picture": "data:image/gif;base64,AAAA"}, {"words": 3}, {"question": 3}):
            refused = client.post("/strange/ask", json=wrong)
            assert refused.status_code == 400
            assert refused.json()["error"]["message"]
        assert "/strange/ask" in client.get("/openapi.json").json()["paths"]
