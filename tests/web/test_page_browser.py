"""The page in a real browser, as somebody uses it from the first visit on, against a server with the bundled model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from live import Gated, Live, make_llava, running
from visiting import EXAMPLE, LOADED, PHONE, Visit, drawn

from trifocal.api.settings import hash_key
from trifocal.web import routes
from waiting import until

KEY = "correct-horse-battery-staple"


def test_the_first_visit_shows_what_this_is_and_a_sample_answers(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.page.wait_for_selector(".sample")
    assert "thimble" in seen.page.locator(".about").inner_text()
    assert "trifocal serve -m" in seen.page.locator(".about").inner_text()
    seen.until("[...document.querySelectorAll('.sample img')].every(i => i.complete && i.naturalWidth)")
    seen.shot("welcome")
    seen.check()
    seen.page.locator(".sample").first.click()
    seen.page.wait_for_selector(".chip")
    question = seen.page.locator(".field").inner_text().strip()
    assert question.endswith("?")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".costs")
    assert len(seen.answer.split()) > 2


def test_drop_a_picture_ask_and_read(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    transfer = seen.page.evaluate_handle(
        """([bytes]) => {
            const data = Uint8Array.from(atob(bytes), letter => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([data], 'dropped.png', {type: 'image/png'}));
            return transfer;
        }""",
        [_base64(EXAMPLE)],
    )
    seen.page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    assert seen.page.locator(".app.dropping").count() == 1
    seen.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    seen.page.wait_for_selector(".chip")
    assert seen.page.locator(".app.dropping").count() == 0
    seen.page.locator(".field").click()
    seen.page.keyboard.press("End")
    answer = seen.ask(" What is in this picture?")
    assert "star" in answer
    assert "dog" in answer
    seen.page.locator(".costs").click()
    told = seen.page.locator(".popover dl").inner_text()
    assert "vision tower" in told
    assert "256" in told
    seen.page.keyboard.press("Escape")
    seen.shot("answer")
    seen.check()
    seen.page.locator("[aria-label='Dark colours']").click()
    seen.shot("answer-dark")
    seen.check()


def test_it_streams_stops_goes_on_and_answers_anew(visit: Callable[..., Visit]) -> None:
    engine = Gated(hidden=8)
    with running(make_llava(engine), routes()) as live:
        seen = visit(live.url)
        engine.gate.clear()
        seen.say("one two three four five")
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_selector(".waiting")
        seen.page.wait_for_selector(".send[aria-label='Stop']")
        engine.gate.set()
        seen.page.wait_for_selector(".costs")
        whole = seen.answer
        assert "one two three four five" in whole
        engine.gate.clear()
        seen.page.locator("[aria-label='Answer anew']").click()
        seen.page.wait_for_selector(".growing")
        seen.page.locator(".send").click()
        seen.page.wait_for_selector(".stopped")
        engine.gate.set()
        assert live.settled()
        assert "2 / 2" in seen.page.locator(".variants").inner_text()
        seen.page.locator("[aria-label='The answer before']").click()
        assert seen.answer == whole
        seen.page.locator("[aria-label='Go on with this answer']").click()
        seen.until("!document.querySelector('.growing') && document.querySelector('.costs')")
        assert len(seen.answer) > len(whole)
        seen.page.keyboard.press("Escape")


def test_the_answer_grows_while_it_is_made(visit: Callable[..., Visit]) -> None:
    engine = Gated(hidden=8)
    with running(make_llava(engine), routes()) as live:
        seen = visit(live.url)
        seen.page.evaluate(
            """() => { window.lengths = new Set(); new MutationObserver(() => {
                const text = document.querySelector('.growing .text');
                if (text) window.lengths.add(text.innerText.length);
            }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
        )
        seen.ask("a question of quite a few words that the echo says again word by word")
        assert len(seen.page.evaluate("[...window.lengths]")) > 3


def test_pictures_stand_and_move_in_the_text(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.say("Is ")
    seen.add(EXAMPLE)
    seen.say(" a picture with a dog?")
    seen.shot("placed")
    seen.page.locator(".chip").focus()
    seen.page.keyboard.press("Alt+ArrowRight")
    assert _order(seen) == ["Is  a ", "picture", "picture with a dog?"]
    seen.page.keyboard.press("Alt+ArrowLeft")
    seen.page.keyboard.press("Alt+ArrowLeft")
    assert _order(seen)[0] == "picture"
    seen.page.keyboard.press("Alt+ArrowRight")
    bodies: list[Any] = []
    seen.page.on(
        "request", lambda request: bodies.append(request.post_data_json) if "completions" in request.url else None
    )
    seen.page.locator(".field").click()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".costs")
    (text, image) = bodies[0]["messages"][-1]["content"]
    assert text["text"].replace("  ", " ") == "Is <image> a picture with a dog?"
    assert image["type"] == "image_url"
    assert seen.page.locator(".bubble.placed .sent").count() == 1
    assert "dog" in seen.answer or "Yes" in seen.answer


def test_two_pictures_one_left_out_and_the_meter_right(
    visit: Callable[..., Visit], thimble: Live, tmp_path: Path
) -> None:
    seen = visit(thimble.url)
    other = tmp_path / "other.png"
    other.write_bytes(drawn("blue"))
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    seen.add(other)
    seen.say(" And what is in this one?")
    draft = seen.total
    seen.page.keyboard.press("Enter")
    seen.until("document.querySelectorAll('.costs').length === 2")
    assert prompt_of(seen) == draft
    both = seen.total
    seen.page.locator(".turn.user").first.hover()
    seen.page.locator(".keep").first.click()
    assert seen.page.locator(".sent.out").count() == 1
    assert both - seen.total >= 256
    seen.page.locator(".meter summary").click()
    assert "other.png" in seen.page.locator(".meter-legend").inner_text()
    seen.shot("meter")
    seen.check()
    seen.page.locator(".meter summary").click()
    seen.say("How many pictures are there?")
    draft = seen.total
    seen.page.keyboard.press("Enter")
    seen.until("document.querySelectorAll('.costs').length === 3")
    assert prompt_of(seen) == draft


def test_where_it_looked_for_a_word(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    seen.page.locator(".look-button").click()
    seen.page.wait_for_selector(".look")
    seen.page.locator(".look-word", has_text="star").hover()
    assert "star" in seen.page.locator(".look-caption").inner_text()
    # docs/example.png has its star in the upper left
    at = seen.page.evaluate(HOTTEST)
    assert at[0] < 0.4
    assert at[1] < 0.5
    seen.page.wait_for_timeout(300)
    seen.shot("look")
    seen.page.locator(".look-word", has_text="dog").hover()
    at = seen.page.evaluate(HOTTEST)
    assert at[0] > 0.55
    assert at[1] > 0.5
    assert seen.page.locator(".tag").count() >= 1
    seen.check()


HOTTEST = """() => {
    const canvas = document.querySelector('.heat');
    const {data, width} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let most = -1, at = 0;
    for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] + data[i] > most) { most = data[i + 3] + data[i]; at = i / 4; }
    }
    const left = parseFloat(canvas.style.left), top = parseFloat(canvas.style.top);
    const wide = parseFloat(canvas.style.width), high = parseFloat(canvas.style.height);
    return [(left + at % width / width * wide) / 100, (top + Math.floor(at / width) / width * high) / 100];
}"""


def test_nothing_typed_is_lost(visit: Callable[..., Visit], browser: Any, thimble: Live) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 820})
    seen = visit(thimble.url, context=context)
    seen.add(EXAMPLE)
    first = seen.ask(" What is in this picture?")
    seen.add(EXAMPLE)
    seen.say(" And a second thought")
    seen.page.wait_for_timeout(400)
    seen.page.reload()
    seen.page.wait_for_selector(".turn.assistant")
    assert seen.answer == first
    assert seen.page.locator(".field .chip").count() == 1
    assert "And a second thought" in seen.page.locator(".field").inner_text()
    seen.until(LOADED)
    seen.page.locator(".new-talk").click()
    assert seen.page.locator(".turn").count() == 0
    seen.page.locator(".talk-open").first.click()
    assert seen.answer == first


def test_edit_delete_undo_rename_and_a_file_of_all(visit: Callable[..., Visit], thimble: Live, tmp_path: Path) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    seen.page.locator(".field").click()
    seen.page.keyboard.press("ArrowUp")
    seen.page.wait_for_selector(".editing")
    assert seen.page.locator(".field .chip").count() == 1
    seen.say(" Where is the dog?")
    seen.page.keyboard.press("Enter")
    seen.until("document.querySelector('.turn.assistant .text')?.innerText.includes('right')")
    assert seen.page.locator(".turn.user").count() == 1
    seen.page.locator(".turn.assistant").hover()
    seen.page.locator(".turn.user").hover()
    seen.page.locator("[aria-label='Delete the question and its answer']").click()
    assert seen.page.locator(".turn").count() == 0
    seen.page.locator(".toast button", has_text="Undo").click()
    assert seen.page.locator(".turn").count() == 2
    seen.page.locator(".talk").hover()
    seen.page.locator(".talk [aria-label^='Rename']").click()
    seen.page.keyboard.type("A dog")
    seen.page.keyboard.press("Enter")
    assert seen.page.locator(".title").inner_text() == "A dog"
    with seen.page.expect_download() as download:
        seen.page.locator("button", has_text="Export all").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    seen.page.locator(".talk").hover()
    seen.page.locator(".talk [aria-label^='Delete']").click()
    seen.until("!document.querySelector('.talk')")
    seen.page.set_input_files("nav input[type=file]", str(file))
    seen.page.wait_for_selector(".turn.assistant")
    assert seen.page.locator(".title").inner_text() == "A dog"
    seen.until(LOADED)


def test_a_corrupt_picture_is_told_in_words(visit: Callable[..., Visit], thimble: Live, tmp_path: Path) -> None:
    seen = visit(thimble.url)
    broken, text = tmp_path / "broken.png", tmp_path / "words.txt"
    broken.write_bytes(EXAMPLE.read_bytes()[:900])
    text.write_text("no picture")
    seen.page.set_input_files("#files", [str(broken), str(text)])
    seen.until("document.querySelectorAll('.notices .problem').length === 2")
    told = seen.page.locator(".notices").inner_text()
    assert "broken.png is damaged" in told
    assert "words.txt is no picture" in told
    assert "Save it as PNG or JPEG" in told
    assert seen.page.locator(".chip").count() == 0
    seen.shot("problem")
    seen.check()


def test_a_full_context_and_a_busy_server_are_told(visit: Callable[..., Visit]) -> None:
    engine = Gated(hidden=8, context=600)
    with running(make_llava(engine), routes(), queue=0) as live:
        seen = visit(live.url)
        engine.gate.clear()
        body = {"messages": [{"role": "user", "content": "x"}]}

        def hold() -> None:
            with live.client() as client:
                client.post("/v1/chat/completions", json=body)

        other = threading.Thread(target=hold)
        other.start()
        until(lambda: engine.open, "the answer")
        seen.ask("hello")
        assert "1 requests run" in seen.page.locator(".turn .problem").inner_text()
        assert "Try again in a moment" in seen.page.locator(".turn .problem").inner_text()
        engine.gate.set()
        other.join()
        assert live.settled()
        seen.page.locator(".problem button", has_text="Try again").click()
        seen.page.wait_for_selector(".costs")
        assert "hello" in seen.answer
        seen.ask("word " * 200)
        told = seen.page.locator(".turn .problem").inner_text()
        assert "600" in told
        assert "start a new chat" in told


def test_a_restart_loses_nothing(visit: Callable[..., Visit]) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, faults=False)
        seen.ask("before")
        port = live.port
    seen.say("after")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".banner:not([hidden])")
    assert "Nothing is lost" in seen.page.locator(".banner").inner_text()
    with running(make_llava(), routes(), port=port):
        seen.until("[...document.querySelectorAll('.turn.assistant .text')].at(-1)?.innerText.includes('after')")
        assert seen.page.locator(".banner:not([hidden])").count() == 0


def test_a_server_with_a_key_asks_for_it_once(visit: Callable[..., Visit]) -> None:
    with running(make_llava(), routes(), keys=frozenset({hash_key(KEY)})) as live:
        seen = visit(live.url)
        seen.page.fill("#server-key", KEY)
        seen.page.keyboard.press("Enter")
        assert "hello" in seen.ask("hello")
        seen.page.reload()
        assert "again" in seen.ask("again")


def test_what_the_model_sees(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    seen.page.locator(".chip").focus()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".preview-pair")
    told = seen.page.locator("dialog").inner_text()
    assert "padded" in told
    assert "256 positions" in told
    size = seen.page.evaluate(
        "[...document.querySelectorAll('.preview-tiles img')].map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert size == [[224, 224]]
    seen.shot("preview")
    seen.check()
    seen.page.keyboard.press("Escape")
    assert seen.page.locator("dialog").count() == 0


def test_settings_reach_the_server_and_last(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url, viewport={"width": 1400, "height": 900})
    bodies: list[Any] = []
    seen.page.on(
        "request", lambda request: bodies.append(request.post_data_json) if "completions" in request.url else None
    )
    seen.page.keyboard.press("Control+,")
    seen.page.wait_for_selector(".settings-open .choice")
    assert "Vision tower" in seen.page.locator(".parts").inner_text()
    seen.shot("settings")
    seen.page.locator(".choice", has_text="Creative").click()
    seen.page.fill("#set-max_tokens", "7")
    seen.page.fill("#set-seed", "3")
    seen.page.select_option("#set-template", "llava_v1")
    seen.page.fill("#set-system", "Be brief.")
    seen.page.locator("#all-images").uncheck()
    seen.check()
    seen.ask("Hello?")
    body = bodies[0]
    assert (body["temperature"], body["top_p"], body["min_p"], body["max_tokens"], body["seed"]) == (
        1,
        0.95,
        0.05,
        7,
        3,
    )
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["trifocal"] == {"images": "last", "template": "llava_v1"}
    seen.page.reload()
    seen.page.wait_for_selector(".settings-open #set-seed")
    assert seen.page.input_value("#set-seed") == "3"
    assert not seen.page.is_checked("#all-images")


def test_a_phone(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url, **PHONE)
    seen.page.wait_for_selector(".sample")
    seen.shot("phone-welcome")
    seen.check()
    seen.add(EXAMPLE)
    seen.say(" Where is the dog?")
    seen.page.locator(".send").tap()
    seen.page.wait_for_selector(".costs")
    assert "right" in seen.answer
    seen.page.locator(".look-button").tap()
    seen.page.wait_for_selector(".look")
    seen.page.wait_for_timeout(700)  # the panel scrolls into view
    seen.page.locator(".look-word", has_text="dog").tap()
    assert seen.page.locator(".looked.lit").count() == 1
    seen.page.wait_for_timeout(500)
    seen.shot("phone-look")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    seen.check()
    seen.page.locator("button[aria-label='Chats']").tap()
    seen.page.wait_for_selector(".talks-open")
    seen.check()


def test_answers_can_load_and_run_nothing(visit: Callable[..., Visit]) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        spies = "![spy](https://example.com/x.png) <img src=https://example.com/y.png>"
        seen.ask(f"{spies} <script>alert(1)</script> [go](javascript:alert(1))")
        assert seen.page.locator(".turn.assistant .text :is(img, script)").count() == 0
        assert seen.page.locator(".turn.assistant .text a[href^=javascript]").count() == 0
        assert "<script>" in seen.answer


def prompt_of(seen: Visit) -> int:
    """What the server says that the last answer's prompt took."""
    return int(seen.page.locator(".costs").last.get_attribute("data-prompt"))


def _order(seen: Visit) -> list[str]:
    return seen.page.evaluate(
        """[...document.querySelector('.field').childNodes].map(n => n.dataset?.picture ? 'picture' : n.textContent)
           .filter(text => text.trim())"""
    )


def _base64(file: Path) -> str:
    import base64

    return base64.b64encode(file.read_bytes()).decode()
