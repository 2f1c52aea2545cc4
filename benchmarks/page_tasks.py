"""How long the page holds the browser while an answer of 32,000 characters of Markdown is drawn: the Long Tasks API.

    PYTHONPATH=tests:tests/api:tests/web python benchmarks/page_tasks.py [RUNS]

Needs what `make test` installs. Each run draws the same answer in pieces of 100 characters and in one burst; a
line tells how many tasks took over 50 ms by the clock, the longest, and how many processes wanted to run.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from live import make_llava, running
from playwright.sync_api import sync_playwright
from test_page_reading import LONG, WATCH
from visiting import ARGUMENTS, CHROMIUM, Visit, answering

from trifocal.web import routes


def tasks_of(browser: Any, url: str, step: int) -> list[int]:
    """The tasks over 50 ms of one answer, in milliseconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 820})
    context.add_init_script(answering(LONG, step))
    seen = Visit(context.new_page()).open(url)
    seen.settle()
    seen.page.evaluate(WATCH)
    seen.ask("tell me all")
    seen.settle()
    found: list[int] = seen.page.evaluate("window.tasks")
    context.close()
    return found


def main(runs: int) -> None:
    """Prints one line a run."""
    with running(make_llava(), routes()) as live, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for run in range(runs):
            for name, step in (("pieces of 100", 100), ("one burst", 40_000)):
                tasks = tasks_of(browser, live.url, step)
                told = f"{len(tasks)} tasks over 50 ms, the longest {max(tasks, default=0)} ms"
                print(f"run {run + 1}, {name}: {told}; load {os.getloadavg()[0]:.1f}", flush=True)
        browser.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
