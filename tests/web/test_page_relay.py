"""The page over a model that another server has: it answers, and shows no number that nobody told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from live import Live, running
from visiting import EXAMPLE, Visit

import trifocal
from trifocal.web import routes


@pytest.fixture(scope="module")
def front(thimble: Live) -> Iterator[Live]:
    model = trifocal.open_model(engine="openai", engine_options={"url": thimble.url})
    with running(model, routes()) as live:  # type: ignore[arg-type]
        yield live


def test_it_answers_about_a_picture_and_says_what_it_is(visit: Callable[..., Visit], front: Live) -> None:
    page = visit(front.url)
    page.add(EXAMPLE)
    assert "red star" in page.ask("What is in this picture?")
    page.page.get_by_role("button", name="Model", exact=False).first.click()
    page.expect("body").to_contain_text("passed on to the server that has the model")
    page.expect("body").not_to_contain_text("null")
    page.expect("body").to_contain_text("4,096 positions of context")  # as that server lists it
