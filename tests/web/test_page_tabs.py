"""Several tabs, tabs that go away, servers that go away: nothing is lost, nothing is written over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from live import Gated, make_llava, running
from visiting import EXAMPLE, Open, Visit

from trifocal.web import routes


def test_three_tabs_have_one_truth(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        one = visit(live.url)
        one.ask("first")
        two, three = visit(live.url), visit(live.url)
        two.until("document.querySelectorAll('.turn').length === 2")
        two.ask("second, of the other tab")
        one.until("document.querySelectorAll('.turn').length === 4 && !document.querySelector('.growing')")
        one.ask("third")
        everything = ("first", "second, of the other tab", "third")
        for seen in (two, three):
            seen.until("document.querySelectorAll('.turn').length === 6 && !document.querySelector('.growing')")
            seen.expect_said(*everything)
        three.page.reload()
        three.until("document.querySelectorAll('.turn').length === 6")
        three.expect_said(*everything)


def test_another_tabs_start_takes_no_picture_away(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        one = visit(live.url)
        one.add(EXAMPLE)
        two = visit(live.url)  # before and after what is written was kept
        one.say("And this?")
        three = visit(live.url)
        for other in (two, three):
            other.page.reload()
            other.until("document.querySelectorAll('.field .chip img').length === 1")
        bodies = one.bodies()
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector(".costs")
        assert [part["type"] for part in bodies[0]["messages"][-1]["content"]] == ["image_url", "text"]


FORGET = """async () => { const asked = indexedDB.open('trifocal'); await new Promise(done => asked.onsuccess = done);
    const change = asked.result.transaction('pictures', 'readwrite'); change.objectStore('pictures').clear();
    await new Promise(done => change.oncomplete = done); asked.result.close(); }"""


def test_a_missing_picture_stops_the_question_and_says_so(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.add(EXAMPLE)
        seen.ask("What is it?")
        seen.page.evaluate(FORGET)
        seen.page.reload()
        seen.page.wait_for_selector(".sent-missing")
        bodies = seen.bodies()
        seen.ask("And now?")
        assert bodies.all_of(0) == []
        seen.expect(".turn .problem").to_contain_text("missing in this browser")
        seen.until("document.querySelector('.meter-words').innerText.includes('missing in this browser')")
        seen.page.locator(".keep").click()
        seen.page.locator(".problem button", has_text="Try again").click()
        seen.page.wait_for_selector(".turn.assistant:last-child .costs")
        seen.expect_answer().to_contain_text("And now?")


def test_a_tab_that_is_closed_in_the_middle_of_an_answer(visit: Open) -> None:
    engine = Gated(hidden=8)
    with running(make_llava(engine), routes()) as live:
        one = visit(live.url)
        engine.gate.clear()
        one.say("hello there")
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector(".growing")
        two = visit(live.url)
        two.until("document.querySelector('.growing')?.innerText.includes('Another tab is writing')")
        two.say("not yet")
        two.page.keyboard.press("Enter")
        two.toast("Another tab is writing")
        one.page.close(run_before_unload=False)
        two.until("document.querySelector('.stopped')?.innerText.includes('The page was closed here')")
        engine.gate.set()
        assert live.settled()
        two.expect(".field").to_have_text("not yet")
        two.page.locator("[aria-label='Answer anew']").click()
        two.page.wait_for_selector(".costs")
        two.expect_answer().to_contain_text("hello there")


def test_an_answer_goes_on_while_another_chat_is_open(visit: Open) -> None:
    engine = Gated(hidden=8)
    with running(make_llava(engine), routes()) as live:
        seen = visit(live.url)
        engine.gate.clear()
        seen.say("the slow one")
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_selector(".growing")
        seen.page.locator(".new-talk").click()
        seen.page.wait_for_selector(".talk-mark.answering")
        seen.expect(".send").to_have_attribute("aria-label", "Send")
        engine.gate.set()
        seen.page.wait_for_selector(".talk-mark.answered")
        seen.page.locator(".talk-open", has_text="the slow one").click()
        seen.page.wait_for_selector(".costs")
        seen.expect_answer().to_contain_text("the slow one")
        seen.expect(".talk-mark").to_have_count(0)


@pytest.mark.parametrize("then", ["stays", "opens another chat", "reloads the page"])
def test_what_was_asked_while_the_server_was_away_is_asked_again(visit: Open, then: str) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, faults=False)
        seen.ask("before")
        port = live.port
    seen.say("after")
    seen.page.keyboard.press("Enter")
    seen.until("document.querySelector('.turn:last-child')?.innerText.includes('asked again')")
    if then == "opens another chat":
        seen.page.locator(".new-talk").click()
        seen.say("a draft that stays")
    with running(make_llava(), routes(), port=port):
        if then == "reloads the page":
            seen.page.reload()
        if then == "opens another chat":
            seen.page.wait_for_selector(".talk-mark.answered")
            seen.expect(".field").to_have_text("a draft that stays")
            seen.page.locator(".talk-open", has_text="before").click()
        seen.until("[...document.querySelectorAll('.turn.assistant .text')].at(-1)?.innerText.includes('after')")
        seen.expect(".banner").to_be_hidden()


CUT = """() => { const real = fetch; window.fetch = async (path, options) => {
    if (!String(path).includes('completions')) return real(path, options);
    window.fetch = real;
    const event = 'data: {"choices": [{"delta": {"content": "Half an"}}]}\\n\\n';
    let told = false;
    return new Response(new ReadableStream({async pull(stream) {
        if (told) { await new Promise(done => setTimeout(done, 50)); stream.error(new TypeError('network')); }
        else { told = true; stream.enqueue(new TextEncoder().encode(event)); }
    }}), {status: 200}); }; }"""


def test_a_connection_that_ends_in_the_middle_keeps_what_came(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.page.evaluate(CUT)
        seen.ask("tell me")
        seen.expect_answer().to_have_text("Half an")
        seen.expect(".stopped").to_contain_text("Go on")
        seen.page.locator("[aria-label='Go on with this answer']").click()
        seen.page.wait_for_selector(".costs")
        seen.expect_answer().to_have_text(re.compile("^Half an.+"))


def test_an_edit_under_way_survives_a_reload(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.ask("the question")
        seen.say("a draft")
        seen.page.locator(".turn.user").hover()
        seen.page.locator("[aria-label='Edit and ask again']").click()
        seen.expect(".send").to_be_enabled()
        seen.say(", changed")
        seen.keeps("the question, changed")
        seen.page.reload()
        seen.page.wait_for_selector(".editing")
        seen.expect(".field").to_have_text("the question, changed")
        seen.page.keyboard.press("Enter")
        seen.until("document.querySelector('.bubble')?.innerText.includes('changed')")
        seen.page.wait_for_selector(".costs")
        seen.expect_said("the question, changed")
        seen.expect(".field").to_have_text("a draft")


LATE = """(() => { const real = window.setTimeout, get = IDBObjectStore.prototype.get; let held = [];
    window.setTimeout = (act, wait = 0, ...given) => wait === 250 ? (held.push(act), 0) : real(act, wait, ...given);
    IDBObjectStore.prototype.get = function (key) { const found = get.call(this, key);
        if (this.name === 'drafts' && window.late) for (const act of held.splice(0)) act(); return found; }; })()"""


def test_a_draft_is_not_written_over_while_it_is_read(visit: Open) -> None:
    """What was still to be saved when another chat was opened is none of that chat's affair."""
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, script=LATE)
        seen.ask("one")
        seen.say("the draft of one")
        seen.page.locator(".new-talk").click()
        seen.expect(".field").to_have_text("")
        seen.say("two")
        seen.page.evaluate("window.late = true")
        seen.page.locator(".talk-open", has_text="one").click()
        seen.expect(".field").to_have_text("the draft of one")
        seen.page.reload()
        seen.expect(".field").to_have_text("the draft of one")


def test_the_list_of_chats_follows_what_happens_elsewhere(visit: Open) -> None:
    """A search finds what was said since, and a press is not lost because the list was drawn in its middle."""
    with running(make_llava(), routes()) as live:
        one = visit(live.url)
        one.ask("about giraffes")
        two = visit(live.url)
        two.page.locator(".new-talk").click()
        two.page.fill(".talk-search", "elephants")
        two.page.wait_for_selector(".talk-none:not([hidden])")
        one.ask("and elephants")
        two.expect(".talk-open").to_have_text("about giraffes")
        two.page.locator(".talk-open").hover()
        two.page.mouse.down()
        one.page.locator("[aria-label='This chat']").click()
        one.page.locator(".menu-item", has_text="Rename").click()
        one.page.fill(".title-rename", "Of animals")
        one.page.press(".title-rename", "Enter")
        two.expect(".talk-open").to_have_text("Of animals")
        two.page.mouse.up()
        two.expect_said("about giraffes", "and elephants")


def test_a_chat_that_is_deleted_elsewhere_does_not_come_back(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        one = visit(live.url)
        one.ask("one chat")
        two = visit(live.url)
        two.page.wait_for_selector(".costs")
        two.say("what I was writing")
        one.page.locator(".talk").hover()
        one.page.locator(".talk [aria-label^='Delete']").click()
        two.toast("deleted in another tab")
        two.expect(".turn").to_have_count(0)
        two.expect(".field").to_have_text("what I was writing")
        one.page.locator(".toast button", has_text="Undo").click()
        one.until("document.querySelectorAll('.turn').length === 2")
        one.expect_said("one chat")


FULL = """(() => { const put = IDBObjectStore.prototype.put; IDBObjectStore.prototype.put = function (...given) {
    if ([true, this.name].includes(window.full))
        throw new DOMException('no room', 'QuotaExceededError'); return put.apply(this, given); }; })()"""
NONE = "Object.defineProperty(window, 'indexedDB', {get() { throw new DOMException('private', 'SecurityError'); }})"


def test_a_browser_without_room_goes_on_and_says_so(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, script=FULL)
        seen.ask("kept")
        seen.page.evaluate("window.full = true")
        seen.add(EXAMPLE)
        seen.ask("not kept")
        seen.toast("The browser has no room")
        seen.expect_said("kept", "not kept")
        seen.page.locator(".new-talk").click()
        seen.page.locator(".talk-open", has_text="kept").click()
        seen.until("document.querySelectorAll('.turn').length === 4")
        seen.page.locator(".new-talk").click()
        seen.ask("in its way")
        seen.page.evaluate("window.full = false")
        seen.page.locator(".talk", has_text="in its way").hover()
        seen.page.locator(".talk [aria-label='Delete in its way']").click()
        seen.toast("There is room again: all is kept.")
        seen.page.reload()
        seen.page.locator(".talk-open", has_text="kept").click()
        seen.expect_said("kept", "not kept")
        seen.until("document.querySelector('.sent img')?.naturalWidth > 0")


def test_what_is_deleted_to_make_room_is_gone_and_comes_back_whole(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, script=FULL)
        seen.ask("kept")
        seen.page.evaluate("window.full = true")
        seen.ask("not kept")
        seen.toast("The browser has no room")
        seen.page.locator(".talk", has_text="kept").hover()
        seen.page.locator(".talk [aria-label='Delete kept']").click()
        seen.toast("The chat is deleted.")
        seen.expect(".talk-open", has_text="kept").to_have_count(0)
        seen.page.evaluate("window.full = false")
        seen.page.locator(".toast button", has_text="Undo").click()
        seen.expect_said("kept", "not kept")
        seen.page.reload()
        seen.expect_said("kept", "not kept")


def test_a_picture_without_room_that_nothing_mentions_stands_in_nothings_way(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, script=FULL)
        seen.ask("in its way")
        seen.page.locator(".new-talk").click()
        seen.page.evaluate("window.full = true")
        seen.add(EXAMPLE)
        seen.page.locator(".chip").focus()
        seen.page.keyboard.press("Delete")
        seen.ask("not kept")
        seen.page.evaluate("window.full = 'pictures'")
        seen.page.locator(".talk", has_text="in its way").hover()
        seen.page.locator(".talk [aria-label='Delete in its way']").click()
        seen.toast("There is room again: all is kept.")


def test_a_private_window_that_keeps_nothing_still_answers(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, script=NONE)
        seen.toast("keeps nothing here")
        seen.add(EXAMPLE)
        assert "hello" in seen.ask("hello")
        seen.page.locator(".new-talk").click()
        seen.page.locator(".talk-open", has_text="hello").click()
        seen.until("document.querySelectorAll('.turn').length === 2")


OLD = """async () => { const asked = indexedDB.open('trifocal', 1);
    asked.onupgradeneeded = () => {
        for (const name of ['conversations', 'pictures']) asked.result.createObjectStore(name, {keyPath: 'id'});
    };
    await new Promise(done => asked.onsuccess = done);
    const change = asked.result.transaction(['conversations', 'pictures'], 'readwrite');
    const answer = {text: 'A red disc.', outcome: null, stopped: null, problem: null};
    change.objectStore('conversations').put({id: 'old', title: 'An old chat', named: true, updated: 1700000000000,
        draft: {pieces: [{text: 'a draft'}]},
        turns: [{role: 'user', id: 'q', leftOut: [], pieces: [{picture: 'p'}, {text: 'What?'}]},
        {role: 'assistant', id: 'a', shown: 0, answers: [answer]}]});
    change.objectStore('conversations').put({id: 'broken', updated: 1, turns: [{role: 'assistant', id: 'x'}]});
    const blob = await (await fetch('/page/samples/sea.png')).blob();
    const more = asked.result.transaction('pictures', 'readwrite');
    more.objectStore('pictures').put({id: 'p', name: 'sea.png', type: 'image/png', width: 640, height: 480, blob});
    await new Promise(done => more.oncomplete = done); asked.result.close(); }"""


def test_what_an_earlier_page_kept_is_there(visit: Open, browser: Any) -> None:
    context = browser.new_context()
    with running(make_llava(), routes()) as live:
        page = context.new_page()
        page.goto(f"{live.url}/page/icon.svg")
        page.evaluate(OLD)
        page.close()
        seen = visit(live.url, context=context)
        seen.page.locator(".talk-open", has_text="An old chat").click()
        seen.until("document.querySelector('.sent img')?.naturalWidth > 0")
        seen.expect_answer().to_have_text("A red disc.")
        seen.expect(".field").to_have_text("a draft")
        seen.expect(".talk").to_have_count(1)


def export_of(seen: Visit, file: Path) -> Path:
    """All chats, as the page writes them."""
    with seen.page.expect_download() as download:
        seen.page.locator("button", has_text="Export all").click()
    download.value.save_as(file)
    return file


ODD = {
    "no JSON": ("{", "is no JSON file"),
    "another program's": ('[{"title": "x", "mapping": {"a": {"message": null}}}]', "holds no chats of Trifocal"),
    "null": ("null", "holds no chats of Trifocal"),
    "no turns": ('{"format": "trifocal-chats", "conversations": [{"id": "a", "turns": 7}]}', "chat 1 of 1 is damaged"),
    "an answer without answers": (
        '{"format": "trifocal-chats", "conversations": [{"id": "ok", "turns": []}, {"id": "a", "turns": '
        '[{"role": "assistant", "id": "t"}]}]}',
        "chat 2 of 2 is damaged",
    ),
    "a picture that is none": (
        '{"format": "trifocal-chats", "conversations": [], "pictures": {"p": {"name": "x.png", "width": 4, '
        '"height": 4, "data": "data:image/png;base64,aGVsbG8="}}}',
        "its picture x.png is damaged",
    ),
    "a bomb": (
        '{"format": "trifocal-chats", "conversations": [], "pictures": {"p": {"name": "x.png", "data": '
        '"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgABhqAAAYagCAYAAAA="}}}',
        "its picture x.png is damaged",
    ),
}


def test_an_odd_import_changes_nothing(visit: Open, tmp_path: Path) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.ask("mine")
        for number, (text, told) in enumerate(ODD.values()):
            file = tmp_path / f"odd-{number}.json"
            file.write_text(text)
            seen.page.set_input_files("nav input[type=file]", str(file))
            seen.toast(told)
            seen.toast(file.name)
        seen.page.reload()
        seen.page.wait_for_selector(".costs")
        seen.expect(".talk").to_have_count(1)
        assert "again" in seen.ask("again")


CUT_OFF = {  # a file that another program wrote anew
    "format": "trifocal-chats",
    "version": 1,
    "conversations": [
        {
            "id": "c",
            "title": "About <b> & [x]\n# not a heading",
            "turns": [
                {"role": "user", "id": "q", "pieces": [{"text": "# 2*3*4\n1. <b>?"}], "leftOut": []},
                {"role": "assistant", "id": "a", "answers": [{"text": "So:\n```python\nx = 1", "stopped": "here"}]},
                {"role": "user", "id": "r", "pieces": [{"text": "Next"}], "leftOut": []},
            ],
        }
    ],
}


def test_a_chat_as_markdown_says_what_was_said(visit: Open, tmp_path: Path) -> None:
    """A question is no Markdown, and code that was cut off does not take in what follows."""
    file = tmp_path / "chats.json"
    file.write_text(json.dumps(CUT_OFF, indent=1))
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.page.set_input_files("nav input[type=file]", str(file))
        seen.expect(".turn").to_have_count(3)
        with seen.page.expect_download() as download:
            seen.page.locator("[aria-label='This chat']").click()
            seen.page.locator(".menu-item", has_text="Markdown").click()
        download.value.save_as(tmp_path / "chat.md")
    head, *parts = (tmp_path / "chat.md").read_text("utf-8").split("\n## ")
    assert head.startswith("# About \\<b\\> \\& \\[x\\] # not a heading\n")
    assert parts == [
        "Question\n\n\\# 2\\*3\\*4\\\n1\\. \\<b\\>?\n",
        "Answer\n\nSo:\n```python\nx = 1\n```\n",
        "Question\n\nNext\n\n\n",
    ]


def test_the_same_file_twice_is_not_everything_twice(visit: Open, tmp_path: Path, browser: Any) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.add(EXAMPLE)
        seen.ask("one")
        seen.page.locator(".new-talk").click()
        seen.ask("two")
        file = export_of(seen, tmp_path / "chats.json")
        seen.page.set_input_files("nav input[type=file]", str(file))
        seen.toast("2 chats of the file were here already")
        seen.expect(".talk").to_have_count(2)
        other = visit(live.url, context=browser.new_context())
        for told in ("2 chats imported", "were here already"):
            other.page.set_input_files("nav input[type=file]", str(file))
            other.toast(told)
        other.expect(".talk").to_have_count(2)
        other.page.locator(".talk-open", has_text="one").click()
        other.until("document.querySelector('.sent img')?.naturalWidth > 0")
