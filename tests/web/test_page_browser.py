"""The page in a real browser, as somebody uses it from the first visit on, against a server with the bundled model."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from live import Gated, Live, make_llava, running
from PIL import Image as Pictures
from visiting import EXAMPLE, LOADED, PHONE, Visit, drawn

from trifocal.api.settings import hash_key
from trifocal.web import routes
from waiting import PATIENCE, until

KEY = "correct-horse-battery-staple"


def test_the_first_visit_shows_what_this_is_and_a_sample_answers(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.page.wait_for_selector(".sample")
    seen.expect(".about").to_contain_text("thimble")
    seen.expect(".about").to_contain_text("trifocal serve -m")
    seen.until("[...document.querySelectorAll('.sample img')].every(i => i.complete && i.naturalWidth)")
    seen.shot("welcome")
    seen.check()
    seen.page.locator(".sample").first.click()
    seen.page.wait_for_selector(".chip")
    seen.expect(".field").to_have_text(re.compile(r"\?\s*$"))
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".costs")
    seen.expect_answer().to_have_text(re.compile(r"\S+ \S+ \S+"))


def test_drop_a_picture_ask_and_read(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    transfer = seen.page.evaluate_handle(
        """([bytes]) => {
            const data = Uint8Array.from(atob(bytes), letter => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([data], 'dropped.png', {type: 'image/png'}));
            return transfer;
        }""",
        [base64.b64encode(_unseen()).decode()],
    )
    seen.page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    seen.expect(".app.dropping").to_have_count(1)
    seen.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    seen.page.wait_for_selector(".chip")
    seen.expect(".app.dropping").to_have_count(0)
    seen.page.locator(".field").click()
    seen.page.keyboard.press("End")
    answer = seen.ask(" What is in this picture?")
    assert "star" in answer
    assert "dog" in answer
    seen.page.locator(".costs").click()
    seen.expect(".popover dl").to_contain_text("vision tower")
    seen.expect(".popover dl").to_contain_text("256")
    seen.page.keyboard.press("Escape")
    seen.expect(".popover").to_have_count(0)
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
        seen.expect_answer().to_contain_text("one two three four five")
        seen.settle()
        whole = seen.answer
        engine.gate.clear()
        seen.page.locator("[aria-label='Answer anew']").click()
        seen.page.wait_for_selector(".growing")
        seen.page.locator(".send").click()
        seen.page.wait_for_selector(".stopped")
        engine.gate.set()
        assert live.settled()
        seen.expect(".variants").to_contain_text("2 / 2")
        seen.page.locator("[aria-label='The answer before']").click()
        seen.expect_answer().to_have_text(whole)
        seen.page.locator("[aria-label='Go on with this answer']").click()
        seen.expect_answer().to_have_text(re.compile(rf"{re.escape(whole)}\s*\S"))


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
    _expect_order(seen, "Is  a ", "picture", "picture with a dog?")
    seen.page.keyboard.press("Alt+ArrowLeft")
    seen.page.keyboard.press("Alt+ArrowLeft")
    _expect_order(seen, "picture", "Is  a picture with a dog?")
    seen.page.keyboard.press("Alt+ArrowRight")
    bodies = seen.bodies()
    seen.page.locator(".field").click()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".costs")
    (text, image) = bodies[0]["messages"][-1]["content"]
    assert text["text"].replace("  ", " ") == "Is <image> a picture with a dog?"
    assert image["type"] == "image_url"
    seen.expect(".bubble.placed .sent").to_have_count(1)
    seen.expect_answer().to_have_text(re.compile("dog|Yes"))


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
    seen.expect(seen.page.locator(".costs").last).to_have_attribute("data-prompt", str(draft))
    both = seen.total
    seen.page.locator(".turn.user").first.hover()
    seen.page.locator(".keep").first.click()
    seen.expect(".sent.out").to_have_count(1)
    seen.until(f"Number(document.querySelector('.meter-words').dataset.total) <= {both - 256}")
    seen.page.locator(".meter summary").click()
    seen.expect(".meter-legend").to_contain_text("other.png")
    seen.shot("meter")
    seen.check()
    seen.page.locator(".meter summary").click()
    seen.say("How many pictures are there?")
    draft = seen.total
    seen.page.keyboard.press("Enter")
    seen.until("document.querySelectorAll('.costs').length === 3")
    seen.expect(seen.page.locator(".costs").last).to_have_attribute("data-prompt", str(draft))


def test_where_it_looked_for_a_word(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    seen.page.locator(".look-button").click()
    seen.page.wait_for_selector(".look")
    seen.page.locator(".look-word", has_text="star").hover()
    seen.expect(".look-caption").to_contain_text("star")
    # docs/example.png has its star in the upper left
    seen.until(f"(([left, top]) => left < 0.4 && top < 0.5)(({HOTTEST})())")
    seen.shot("look")
    seen.page.locator(".look-word", has_text="dog").hover()
    seen.until(f"(([left, top]) => left > 0.55 && top > 0.5)(({HOTTEST})())")
    seen.page.wait_for_selector(".tag")
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


def test_nothing_typed_is_lost(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    first = seen.ask(" What is in this picture?")
    seen.add(EXAMPLE)
    seen.say(" And a second thought")
    seen.keeps("And a second thought")
    seen.page.reload()
    seen.page.wait_for_selector(".turn.assistant")
    seen.expect_answer().to_have_text(first)
    seen.expect(".field .chip").to_have_count(1)
    seen.expect(".field").to_contain_text("And a second thought")
    seen.until(LOADED)
    seen.page.locator(".new-talk").click()
    seen.expect(".turn").to_have_count(0)
    seen.page.locator(".talk-open").first.click()
    seen.expect_answer().to_have_text(first)


def test_edit_delete_undo_rename_and_a_file_of_all(visit: Callable[..., Visit], thimble: Live, tmp_path: Path) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    seen.page.locator(".field").click()
    seen.page.keyboard.press("ArrowUp")
    seen.page.wait_for_selector(".editing")
    seen.expect(".field .chip").to_have_count(1)
    seen.say(" Where is the dog?")
    seen.page.keyboard.press("Enter")
    seen.until("document.querySelector('.turn.assistant .text')?.innerText.includes('right')")
    seen.expect(".turn.user").to_have_count(1)
    seen.page.locator(".turn.assistant").hover()
    seen.page.locator(".turn.user").hover()
    seen.page.locator("[aria-label='Delete the question and its answer']").click()
    seen.expect(".turn").to_have_count(0)
    seen.page.locator(".toast button", has_text="Undo").last.click()
    seen.expect(".turn").to_have_count(2)
    seen.page.locator(".talk").hover()
    seen.page.locator(".talk [aria-label^='Rename']").click()
    seen.page.keyboard.type("A dog")
    seen.page.keyboard.press("Enter")
    seen.expect(".title").to_have_text("A dog")
    with seen.page.expect_download() as download:
        seen.page.locator("button", has_text="Export all").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    seen.page.locator(".talk").hover()
    seen.page.locator(".talk [aria-label^='Delete']").click()
    seen.until("!document.querySelector('.talk')")
    seen.page.set_input_files("nav input[type=file]", str(file))
    seen.page.wait_for_selector(".turn.assistant")
    seen.expect(".title").to_have_text("A dog")
    seen.until(LOADED)


def test_a_corrupt_picture_is_told_in_words(visit: Callable[..., Visit], thimble: Live, tmp_path: Path) -> None:
    seen = visit(thimble.url)
    broken, text = tmp_path / "broken.png", tmp_path / "words.txt"
    broken.write_bytes(EXAMPLE.read_bytes()[:900])
    text.write_text("no picture")
    seen.page.set_input_files("#files", [str(broken), str(text)])
    seen.until("document.querySelectorAll('.notices .problem').length === 2")
    for told in ("broken.png is damaged", "words.txt is no picture", "Save it as PNG or JPEG"):
        seen.expect(".notices").to_contain_text(told)
    seen.expect(".chip").to_have_count(0)
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
        seen.expect(".turn .problem").to_contain_text("1 requests run")
        seen.expect(".turn .problem").to_contain_text("Try again in a moment")
        engine.gate.set()
        other.join(PATIENCE)
        assert live.settled()
        seen.page.locator(".problem button", has_text="Try again").click()
        seen.page.wait_for_selector(".costs")
        seen.expect_answer().to_contain_text("hello")
        seen.ask("word " * 200)
        seen.expect(".turn .problem").to_contain_text("600")
        seen.expect(".turn .problem").to_contain_text("start a new chat")


def test_a_restart_loses_nothing(visit: Callable[..., Visit]) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, faults=False)
        seen.ask("before")
        port = live.port
    seen.say("after")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector(".banner:not([hidden])")
    seen.expect(".banner").to_contain_text("Nothing is lost")
    seen.page.locator("#settings-button").click()
    seen.page.fill("#set-system", "half written")  # and not left yet
    with running(make_llava(), routes(), port=port):
        seen.until("[...document.querySelectorAll('.turn.assistant .text')].at(-1)?.innerText.includes('after')")
        seen.expect(".banner").to_be_hidden()
        seen.expect("#set-system").to_have_value("half written")


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
    seen.expect("dialog").to_contain_text("padded")
    seen.expect("dialog").to_contain_text("256 positions")
    seen.until("document.querySelector('.preview-tiles img').complete")
    seen.expect(".preview-tiles img").to_have_count(1)
    for side in ("naturalWidth", "naturalHeight"):
        seen.expect(".preview-tiles img").to_have_js_property(side, 224)
    seen.shot("preview")
    seen.check()
    seen.page.keyboard.press("Escape")
    seen.expect("dialog").to_have_count(0)


def test_settings_reach_the_server_and_last(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url, viewport={"width": 1400, "height": 900})
    bodies = seen.bodies()
    seen.page.keyboard.press("Control+,")
    seen.page.wait_for_selector(".settings-open .choice")
    seen.expect(".parts").to_contain_text("Vision tower")
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
    seen.expect("#set-seed").to_have_value("3")
    seen.expect("#all-images").not_to_be_checked()


def test_a_phone(visit: Callable[..., Visit], thimble: Live) -> None:
    seen = visit(thimble.url, **PHONE)
    seen.page.wait_for_selector(".sample")
    seen.shot("phone-welcome")
    seen.check()
    seen.add(EXAMPLE)
    seen.say(" Where is the dog?")
    seen.page.locator(".send").tap()
    seen.page.wait_for_selector(".costs")
    seen.expect_answer().to_contain_text("right")
    seen.page.locator(".look-button").tap()
    seen.page.wait_for_selector(".look")
    seen.expect(".look-word >> nth=0").to_be_in_viewport()
    seen.page.locator(".look-word", has_text="dog").tap()
    seen.expect(".looked.lit").to_have_count(1)
    seen.shot("phone-look")
    seen.until("document.documentElement.scrollWidth <= 390")
    seen.check()
    seen.page.locator("button[aria-label='Chats']").tap()
    seen.page.wait_for_selector(".talks-open")
    seen.check()


def test_answers_can_load_and_run_nothing(visit: Callable[..., Visit]) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        spies = "![spy](https://example.com/x.png) <img src=https://example.com/y.png>"
        seen.ask(f"{spies} <script>alert(1)</script> [go](javascript:alert(1))")
        seen.expect(".turn.assistant .text :is(img, script)").to_have_count(0)
        seen.expect(".turn.assistant .text a[href^=javascript]").to_have_count(0)
        seen.expect_answer().to_contain_text("<script>")


def _expect_order(seen: Visit, *pieces: str) -> None:
    seen.until(
        f"""JSON.stringify([...document.querySelector('.field').childNodes].map(each =>
            each.dataset?.picture ? 'picture' : each.textContent).filter(text => text.trim()))
            === JSON.stringify({json.dumps(pieces)})"""
    )


def _unseen() -> bytes:
    """The example with another corner: what the vision tower made of it is in no memory yet."""
    buffer = BytesIO()
    with Pictures.open(EXAMPLE) as example:
        example.putpixel((0, 0), (1, 2, 3))
        example.save(buffer, "PNG")
    return buffer.getvalue()
