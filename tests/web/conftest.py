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

WINDOW = {"width": 1280, "height": 820}
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


class Shared:
    """One profile of the browser for the pages of a module, emptied after each test.

    A page that stays open keeps the process which draws them all: a new one would compile the page's scripts anew,
    a quarter of what a page takes.
    """

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context(viewport=WINDOW)
        self._tools: Any = None

    def page(self, url: str) -> Any:
        if self._tools is None:
            stays = self.context.new_page()
            stays.goto(f"{url}/page/icon.svg")
            self._tools = self.context.new_cdp_session(stays)
        return self.context.new_page()

    def forget(self, urls: set[str]) -> None:
        """Nothing of what these servers' pages kept is there any more."""
        for url in urls:
            self._tools.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})


@pytest.fixture(scope="module")
def shared(browser: Any) -> Iterator[Shared]:
    shared = Shared(browser)
    yield shared
    shared.context.close()


@pytest.fixture
def visit(browser: Any, shared: Shared) -> Iterator[Callable[..., Visit]]:
    """Opens pages, those of a test as tabs of one browser that knows nothing from before.

    A `context` or what only a context can have makes it another browser. At the end nothing has left this machine and
    nothing broke.
    """
    contexts, visits = [], []

    def open_page(url: str, *, context: Any = None, script: str = "", faults: bool = True, **options: Any) -> Visit:
        if context is None and options.keys() - {"viewport"}:
            context = browser.new_context(**{"viewport": WINDOW, **options})
        if context is None:
            page = shared.page(url)
            page.set_viewport_size(options.get("viewport", WINDOW))
        else:
            contexts.append(context)
            page = context.new_page()
        made = Visit(page)
        page.set_default_timeout(PATIENCE * 1000)
        for each in (PATIENT, script):
            page.add_init_script(each)
        page.on("request", lambda request: made.asked.append(request.url))
        page.on("pageerror", lambda error: made.faults.append(str(error)))
        page.on(
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
    try:
        for made, url, strict in visits:
            foreign = [asked for asked in made.asked if not asked.startswith((url, "data:", "blob:"))]
            assert foreign == []
            assert not strict or made.faults == []
    finally:
        for context in {id(each): each for each in contexts}.values():
            context.close()
        for made, _, _ in visits:
            made.page.close()
        shared.forget({url for made, url, _ in visits if made.page.context is shared.context})
