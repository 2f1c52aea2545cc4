"""Several models behind the page: chosen in the header, remembered by each chat, told while they load."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from live import Live, running
from visiting import EXAMPLE, Open, Visit

import trifocal
from trifocal.api.models import Offered
from trifocal.model.opening import open_model
from trifocal.model.settings import Settings
from trifocal.web import routes
from waiting import PATIENCE


class Gates:
    """Holds a model back while it loads."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.loads: list[str] = []

    def load(self, settings: Settings, *given: Any) -> Any:
        assert self.open.wait(PATIENCE)
        self.loads.append(Path(settings.checkpoint).name)
        return open_model(settings, *given)


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Gates:
    gates = Gates()
    monkeypatch.setattr("trifocal.api.serving.open_model", gates.load)
    return gates


@pytest.fixture
def both(gates: Gates, tmp_path: Path) -> Iterator[Live]:
    """A server with thimble under two names, of which one is loaded at a time."""
    folders = [tmp_path / name for name in ("amber", "birch")]
    for folder in folders:
        shutil.copytree(str(resources.files("trifocal") / "thimble"), folder)
    offers = [Offered(folder.name, Settings(checkpoint=str(folder))) for folder in folders]
    first = trifocal.load(offers[0].settings)
    with running(first, routes(), offers=offers, replicas=0) as live:
        yield live


def choose(seen: Visit, name: str) -> None:
    seen.page.locator(".model-button").click()
    seen.page.locator(".models .menu-item", has_text=name).click()


def test_the_header_switches_and_a_chat_remembers(visit: Open, both: Live, gates: Gates) -> None:
    seen = visit(both.url)
    seen.expect(".model-button").to_have_text("amber")
    bodies = seen.bodies()
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    gates.open.clear()
    choose(seen, "birch")
    seen.expect(".model-button").to_have_text("birch, loading…")
    gates.open.set()
    seen.expect(".model-button").to_have_text("birch")
    seen.ask("Where is the dog?")
    seen.page.locator(".costs").last.click()
    seen.expect(".popover dl").to_contain_text("birch")
    seen.page.keyboard.press("Escape")
    seen.page.locator(".new-talk").click()
    seen.expect(".model-button").to_have_text("birch")
    seen.page.locator(".model-button").click()
    seen.page.wait_for_selector(".models")
    seen.shot("models")
    seen.check()
    seen.page.keyboard.press("Escape")
    choose(seen, "amber")
    seen.expect(".model-button").to_have_text("amber")
    seen.ask("Hello?")
    seen.page.locator(".talk-open").last.click()
    seen.expect(".model-button").to_have_text("birch")
    seen.page.reload()
    seen.expect(".model-button").to_have_text("birch")
    assert [body["model"] for body in bodies.all_of(3)] == ["amber", "birch", "amber"]


def test_an_answer_says_that_its_model_is_being_loaded(visit: Open, both: Live, gates: Gates) -> None:
    seen = visit(both.url)
    seen.expect(".model-button").to_have_text("amber")
    gates.open.clear()
    choose(seen, "birch")
    seen.say("Hello?")
    seen.page.keyboard.press("Enter")
    seen.expect(".waits-for").to_have_text("birch is being loaded…")
    gates.open.set()
    seen.page.wait_for_selector(".costs")
    seen.expect(".waits-for").to_have_count(0)


def test_reading_old_chats_loads_nothing(visit: Open, both: Live, gates: Gates) -> None:
    seen = visit(both.url)
    seen.ask("Hello?")
    seen.page.locator(".new-talk").click()
    choose(seen, "birch")
    seen.ask("Hello again?")
    seen.page.locator(".talk-open").last.click()
    seen.expect(".model-button").to_have_text("amber")
    seen.settle()
    assert gates.loads == ["birch"]
    seen.say("And now?")  # the meter counts for amber: it has to come
    seen.until("!document.querySelector('.meter').hidden")
    assert gates.loads == ["birch", "amber"]


def test_a_switch_in_the_middle_of_an_answer_lets_it_end(visit: Open, both: Live) -> None:
    seen = visit(both.url)
    bodies = seen.bodies()
    seen.add(EXAMPLE)
    seen.say(" What is in this picture?")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".turn.assistant")
    for name in ("birch", "amber", "birch"):
        choose(seen, name)
    seen.page.wait_for_selector(".costs")
    seen.expect_answer().to_contain_text("star")
    seen.expect(".model-button").to_have_text("birch")
    seen.ask("Where is the dog?")
    assert [body["model"] for body in bodies.all_of(2)] == ["amber", "birch"]


def test_one_that_cannot_be_loaded_is_told(visit: Open, both: Live, gates: Gates, tmp_path: Path) -> None:
    (tmp_path / "birch" / "config.json").unlink()
    seen = visit(both.url)
    seen.expect(".model-button").to_have_text("amber")
    choose(seen, "birch")
    seen.toast("birch can't be loaded")
    seen.ask("Hello?")
    seen.expect(".turn .problem").to_contain_text("Choose another model at the top")
    choose(seen, "amber")
    seen.page.locator(".problem button", has_text="Try again").click()
    seen.page.wait_for_selector(".costs")
