"""The page's tests wait for a state: none reads one at once after an act that changes it later, none sleeps.

And what one leaves in the browser no other finds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live import make_llava, running
from visiting import EXAMPLE, Open, Sent

from trifocal.web import routes

FILES = sorted(file for file in Path(__file__).parent.glob("test_page_*.py") if file.name != Path(__file__).name)
# what reads a state as it is in this moment; `Visit.expect` and `Visit.until` wait for one
READS = {
    "all_inner_texts",
    "bounding_box",
    "count",
    "get_attribute",
    "inner_html",
    "inner_text",
    "input_value",
    "is_checked",
    "is_disabled",
    "is_enabled",
    "is_hidden",
    "is_visible",
    "text_content",
    "wait_for_timeout",
}


def rash(source: str) -> Iterator[str]:
    """What reads a page in this moment, or sleeps."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
            yield ast.unparse(node)
        elif isinstance(node, ast.Assert) and ".answer" in (told := ast.unparse(node.test)):
            yield told


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_state_is_waited_for(file: Path) -> None:
    assert list(rash(file.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        'assert seen.page.locator("dialog").count() == 0',
        'told = seen.page.locator(".notices").inner_text()',
        "seen.page.wait_for_timeout(300)",
        'assert "star" in seen.answer',
    ],
)
def test_a_rash_line_is_found(line: str) -> None:
    assert len(list(rash(line))) == 1


def test_a_page_knows_nothing_of_those_before(visit: Open, shared: Any) -> None:
    with running(make_llava(), routes()) as live:
        before = visit(live.url)
        before.add(EXAMPLE)
        before.ask(" What?")
        before.page.locator("[aria-label='Dark colours']").click()
        before.say("a draft")  # still to be kept, when the page is closed
        before.page.close()
        shared.forget({live.url})
        seen = visit(live.url)
        seen.page.wait_for_selector(".about")
        seen.expect("[aria-label='Dark colours']").to_have_count(1)
        for left in (".talk", ".turn", ".chip"):
            seen.expect(left).to_have_count(0)
        seen.expect(".field").to_have_text("")


def test_a_request_that_the_browser_tells_of_late_is_waited_for() -> None:
    """A read at once found no request of a question that the page already showed answered."""
    late: Any = SimpleNamespace(frames=lambda: sent.take(SimpleNamespace(post_data_json={"n": len(sent.all_of(0))})))
    sent = Sent(late)
    assert sent.all_of(0) == []
    assert sent[1] == {"n": 1}
    assert sent.all_of(2) == [{"n": 0}, {"n": 1}]
