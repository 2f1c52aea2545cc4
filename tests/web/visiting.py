"""Visits to the page in a real browser: Debian's Chromium, driven by Playwright.

Chromium's own shell for machines without a screen comes first, the same engine from the same source: a page opened in
a fresh browser there takes 0.4 s of CPU time, not the 1.3 of the whole browser with its three processes a page.

``TRIFOCAL_SCREENSHOTS=1`` writes what was seen to ``docs/page``.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from waiting import PATIENCE

ROOT = Path(__file__).parent.parent.parent
SHOTS = ROOT / "docs" / "page"
EXAMPLE = ROOT / "docs" / "example.png"
AXE = Path(__file__).parent / "axe.min.js"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--renderer-process-limit=1",  # tabs of a browser are drawn by one process, which compiles the page's scripts once
]
MOVING = (
    "document.getAnimations().some(each => each.playState === 'running'"
    " && each.effect.getComputedTiming().endTime !== Infinity)"
)
DRAFTS = """async () => { const asked = indexedDB.open('trifocal'); await new Promise(done => asked.onsuccess = done);
    const all = asked.result.transaction('drafts').objectStore('drafts').getAll();
    await new Promise(done => all.onsuccess = done); asked.result.close(); return all.result; }"""
# messages that go away after seconds stay for as long as anything is waited for
PATIENT = """(() => { const real = window.setTimeout;
    window.setTimeout = (act, wait = 0, ...given) =>
        real(act, wait === 2000 || wait >= 8000 ? 1000 * wait : wait, ...given); })()"""
LINE = 40  # letters that are typed, which take 6 ms of CPU time each
OF_COLOURS = ("color-contrast", "link-in-text-block")  # axe's rules that ask what colours things have
LOADED = "[...document.images].every(image => image.complete && image.naturalWidth)"
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


class Sent:
    """Bodies of a page's requests. Who reads one waits for it: the browser tells of it behind what the page shows."""

    def __init__(self, visit: Visit) -> None:
        self._visit, self._found = visit, list[Any]()

    def take(self, request: Any) -> None:
        self._found.append(request.post_data_json)

    def __getitem__(self, at: int) -> Any:
        return self.all_of(at + 1)[at]

    def all_of(self, count: int) -> list[Any]:
        """All that were sent, once there are so many."""
        end = time.monotonic() + PATIENCE
        while len(self._found) < count:
            assert time.monotonic() < end, f"{len(self._found)} requests were sent, {count} were expected"
            self._visit.frames()
        return list(self._found)


@dataclass
class Visit:
    """A page that somebody looks at, what it asked for, and what went wrong in it."""

    page: Any
    asked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def open(self, url: str) -> Visit:
        self.page.goto(url)
        self.page.wait_for_selector(".composer")
        return self

    def add(self, *files: Path) -> None:
        before = self.page.locator(".chip").count()
        self.page.set_input_files("#files", [str(file) for file in files])
        self.until(f"document.querySelectorAll('.chip').length === {before + len(files)}")

    def say(self, words: str) -> None:
        """Types a line of the words key by key; what is longer comes at once, as an input method gives it."""
        self.page.locator(".field").press_sequentially(words[:LINE])
        if rest := words[LINE:]:
            self.page.keyboard.insert_text(rest)

    def ask(self, words: str) -> str:
        """Types a question and sends it; the answer."""
        self.say(words)
        answers = self.page.locator(".turn.assistant").count()
        self.page.keyboard.press("Enter")
        self.until(f"document.querySelectorAll('.turn.assistant').length > {answers}")
        self.until("!document.querySelector('.growing, .text[aria-busy=true]')")
        return self.answer

    @property
    def answer(self) -> str:
        return str(self.page.locator(".turn.assistant .text").last.inner_text()).strip()

    @property
    def total(self) -> int:
        """What the meter says, once it has counted."""
        self.settle()
        return int(self.page.locator(".meter-words").get_attribute("data-total"))

    def expect(self, what: Any, **options: Any) -> Any:
        """What is expected of a place in the page, of a selector or a locator, as soon as it holds."""
        from playwright.sync_api import expect

        return expect(self.page.locator(what, **options) if isinstance(what, str) else what)

    def expect_answer(self) -> Any:
        return self.expect(self.page.locator(".turn.assistant .text").last)

    def expect_said(self, *words: str) -> None:
        """These are the questions, in order."""
        self.expect(".turn.user .bubble").to_have_text(list(words))

    def settle(self) -> None:
        """Waits until nothing is drawn, counted or moved any more; what keeps turning is not waited for."""
        self.until(f"!document.querySelector('[aria-busy=true]') && !({MOVING})")
        self.frames()

    def frames(self) -> None:
        """Waits until the browser has drawn anew, and told those who watch sizes."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def keeps(self, words: str) -> None:
        """Waits until a draft with these words is in the browser's database."""
        self.until(f"({DRAFTS})().then(drafts => JSON.stringify(drafts).includes({json.dumps(words)}))")

    def toast(self, words: str) -> None:
        """Waits for a message with these words."""
        self.until(f"document.querySelector('.toasts')?.innerText.includes({json.dumps(words)})")

    def until(self, expression: str) -> None:
        """Waits for an expression to hold; Playwright's own waiting is an `eval`, which the page forbids."""
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"this never held: {expression}"
            self.page.wait_for_timeout(30)

    def shot(self, name: str) -> None:
        if os.environ.get("TRIFOCAL_SCREENSHOTS"):
            SHOTS.mkdir(exist_ok=True)
            self.page.mouse.move(2, 400) if "look" not in name else None
            self.settle()
            self.page.screenshot(path=SHOTS / f"{name}.png")

    def bodies(self) -> Sent:
        """What the page asks answers with, from now on."""
        found = Sent(self)
        self.page.on("request", lambda request: found.take(request) if "completions" in request.url else None)
        return found

    def check(self, rules: Sequence[str] = ()) -> None:
        """No serious fault for people who can't see or point, as axe finds them: by these rules, or by all."""
        self.settle()
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text("utf-8"))
        options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
        found = self.page.evaluate("options => axe.run(document, options)", options)["violations"]
        serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
        assert not serious, [(fault["id"], [node["html"][:120] for node in fault["nodes"]]) for fault in serious]

    def check_dark_and_light(self, name: str = "") -> None:
        """No serious fault in dark colours, and then none of colours in light: nothing else hangs on them.

        The page follows the system from one to the other. ``name`` is what the pictures of it are called.
        """
        for scheme, rules in (("dark", ()), ("light", OF_COLOURS)):
            self.page.emulate_media(color_scheme=scheme)
            self.until(f"document.documentElement.dataset.theme === '{scheme}'")
            if name:
                self.shot(f"{name}-{scheme}")
            self.check(rules)


Open = Callable[..., Visit]  # what the fixture `visit` gives


def drawn(colour: str, size: tuple[int, int] = (300, 300), kind: str = "PNG") -> bytes:
    """A picture file with a disc in it."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    picture = Pictures.new("RGB", size, "white")
    ImageDraw.Draw(picture).ellipse((80, 80, 220, 220), fill=colour)
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


ANSWERING = """(() => { const real = fetch; window.fetch = async (path, options) => {
    if (!String(path).includes('completions')) return real(path, options);
    const text = TEXT, step = STEP, letters = new TextEncoder();
    const event = told => letters.encode('data: ' + JSON.stringify(told) + '\\n\\n');
    let at = 0;
    return new Response(new ReadableStream({async pull(stream) {
        await new Promise(resolve => setTimeout(resolve));
        if (at < text.length) stream.enqueue(event({choices: [{delta: {content: text.slice(at, at += step)}}]}));
        else { stream.enqueue(event(END)); stream.close(); }
    }}), {status: 200});
}; })()"""


def answering(text: str, step: int = 40, **told: Any) -> str:
    """A script for a page: every question is answered with this text, so many characters an event, one event a task."""
    end = {
        "choices": [{"delta": {}, "finish_reason": "stop"}],
        "trifocal": {"image_positions": [], "left_out": [], "timings": {}, **told},
        "usage": {"prompt_tokens": 30, "completion_tokens": 12},
    }
    return ANSWERING.replace("END", json.dumps(end)).replace("STEP", str(step)).replace("TEXT", json.dumps(text))
