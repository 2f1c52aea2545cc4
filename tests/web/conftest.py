"""The browser, the pages that somebody looks at in it, and the bundled model behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live import Live, running
from visiting import ARGUMENTS, CHROMIUM, PATIENT, Visit

import trifocal
from trifocal.web import routes
from waiting import PATIENCE

ON_CI = bool(os.environ.get("CI"))  # as it is while tests are collected


@pytest.fixture(scope="module")  # it keeps an event loop in this thread, which other modules must not find
def browser() -> Iterator[Any]:
    if CHROMIUM is None and not ON_CI:
        pytest.skip("there is no chromium here (apt-get install chromium-headless-shell)")
    assert CHROMIUM, "the page's tests need Debian's chromium"
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def thimble() -> Iterator[Live]:
    with trifocal.load() as llava, running(llava, routes()) as live:
        yield live


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens pages in fresh browsers; at the end nothing has left this machine and nothing broke."""
    contexts, visits = [], []

    def open_page(url: str, *, context: Any = None, faults: bool = True, **options: Any) -> Visit:
        context = context or browser.new_context(**{"viewport": {"width": 1280, "height": 820}, **options})
        contexts.append(context)
        made = Visit(context.new_page())
        made.page.set_default_timeout(PATIENCE * 1000)
        made.page.add_init_script(PATIENT)
        made.page.on("request", lambda request: made.asked.append(request.url))
        made.page.on("pageerror", lambda error: made.faults.append(str(error)))
        made.page.on(
            "console",
            lambda message: (
                made.faults.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        visits.append((made, url, faults))
        return made.open(url)

    yield open_page
    for made, url, strict in visits:
        foreign = [asked for asked in made.asked if not asked.startswith((url, "data:", "blob:"))]
        assert foreign == []
        assert not strict or made.faults == []
    for context in {id(each): each for each in contexts}.values():
        context.close()
