"""Answers as they are read: followed, drawn by what changed, copied, changed, looked for again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from live import Gated, Live, make_llava, running
from visiting import EXAMPLE, PHONE, Open, Visit, answering

from trifocal.web import routes

FORMULA = r"So $a\,b = \frac{1}{2}$ costs $5 and $6, \(x_1 * y_1 * z\) and" + "\n\n" + r"\[ \int_0^1 x\,dx \]"


@pytest.fixture(scope="module")
def echo() -> Any:
    with running(make_llava(), routes()) as live:
        yield live


def expect_the_end(seen: Visit) -> None:
    """The end of the transcript is above the field."""
    seen.settle()
    seen.until(
        "document.querySelector('.turns').getBoundingClientRect().bottom <="
        " document.querySelector('.composer').getBoundingClientRect().top"
    )


def test_the_answer_is_followed_until_the_reader_goes_up(visit: Open, echo: Live) -> None:
    seen = visit(echo.url, script=answering("A line of the answer.\n\n" * 60))
    for _ in range(2):
        seen.add(EXAMPLE)
        seen.ask(" What?")
        seen.until("document.querySelectorAll('.turn:last-child .text p').length === 60")
        expect_the_end(seen)
    seen.expect(".to-end").to_be_hidden()
    seen.page.mouse.move(640, 300)
    seen.page.evaluate("document.querySelector('.scroll').addEventListener('scrollend', () => window.scrolled = true)")
    seen.page.mouse.wheel(0, -900)
    seen.page.wait_for_selector(".to-end")
    seen.until("window.scrolled")
    place = "document.querySelector('.scroll').scrollTop"
    before = seen.page.evaluate(place)
    seen.page.set_viewport_size({"width": 1280, "height": 700})  # what grows or shrinks moves no reader
    seen.until("innerHeight === 700")
    seen.frames()
    seen.until(f"{place} === {before}")
    seen.page.locator(".to-end").click()
    seen.until("document.querySelector('.to-end').hidden")
    expect_the_end(seen)


def test_an_error_is_in_view(visit: Open, echo: Live) -> None:
    seen = visit(echo.url, script=answering("A line.\n\n" * 80))
    seen.ask("one")
    seen.page.evaluate("window.fetch = () => Promise.resolve(new Response('{}', {status: 500}))")
    seen.ask("two")
    seen.expect(".turn .problem").to_be_visible()
    expect_the_end(seen)


PIECE = """### Part {n}

Some *words* with `code`, a [link](https://example.com/{n}) and $x_{n}$.

| a | b |
|---|---|
| {n} | two |

```python
def f{n}():
    return {n}
```

- one
- two {n}

"""
PARTS = 190
LOW = {"viewport": {"width": 800, "height": 320}}  # what is painted at each step is no part of what is counted
LONG = "".join(PIECE.replace("{n}", str(n)) for n in range(PARTS))
WATCH = """() => { window.made = 0; window.tasks = [];
    new MutationObserver(list => { for (const each of list) for (const node of each.addedNodes) made += 1 +
        (node.querySelectorAll?.('*').length ?? 0); })
        .observe(document.querySelector('.content'), {subtree: true, childList: true});
    new PerformanceObserver(list => tasks.push(...list.getEntries().map(each => Math.round(each.duration))))
        .observe({type: 'longtask'}); }"""


@pytest.mark.parametrize("step", [400, 40_000])
def test_32000_characters_are_drawn_by_what_changed(visit: Open, echo: Live, step: int) -> None:
    """In pieces or in one burst: about as many elements are made as stand there at the end, not the square of it."""
    text = LONG.replace("`code`", "[link below][1]") + "[1]: https://example.com/below\n"
    assert len(text) > 32_000
    seen = visit(echo.url, script=answering(text, step), **LOW)
    seen.page.evaluate(WATCH)
    seen.ask("tell me all")
    seen.until(f"document.querySelectorAll('.text a[href$=below]').length === {PARTS}")
    seen.until(f"document.querySelectorAll('.turn.assistant .text h3').length === {PARTS}")
    seen.until(f"document.querySelectorAll('.turn.assistant .text .code code').length === {PARTS}")
    seen.until("[...document.querySelectorAll('.text .formula')].every(each => each.querySelector('math'))")
    stand = seen.page.evaluate("document.querySelector('.content').querySelectorAll('*').length")
    made = seen.page.evaluate("window.made")
    print(
        f"long tasks in ms with {step} characters an event: {seen.page.evaluate('window.tasks')}; made {made}/{stand}"
    )
    assert made < 4 * stand


@pytest.mark.parametrize("kind", ["code", "list", "table", "paragraph"])
def test_one_long_block_is_drawn_by_what_changed(visit: Open, echo: Live, kind: str) -> None:
    long = {
        "code": "```python\n" + "x = 1\n" * 750 + "```\n",
        "list": "- an *item*\n" * 400,
        "table": "| a | b |\n|---|---|\n" + "| 1 | **2** |\n" * 350,
        "paragraph": "some *words* and `code` " * 200,
    }[kind]
    seen = visit(echo.url, script=answering(long, 60), **LOW)
    seen.page.evaluate(WATCH)
    seen.ask("tell me all")
    words = len(long.split())
    seen.until("document.querySelector('.turn.assistant .costs') !== null")
    seen.until(f"document.querySelector('.turn.assistant .text').innerText.split(/\\s+/).length > {words // 4}")
    seen.settle()
    stand = seen.page.evaluate("document.querySelector('.content').querySelectorAll('*').length")
    made = seen.page.evaluate("window.made")
    assert made < 6 * stand + 600


def test_what_grows_ends_as_what_is_read_whole(visit: Open, echo: Live) -> None:
    """Links that are explained below, lists that turn loose, fences and formulas that close late."""
    text = (
        "See [there] and [here][h].\n\n- one\n- two\n\n- three\n\n```js\nlet a = 1;\n\nlet b = 2;\n```\n\n"
        "$$\na\\,b\n$$\n\n"
        "Heading\n=======\n\n1. a\n\n   more\n2. b\n\n> quote\nlazy\n\n| a |\n|---|\n| 1 |\n\nlast\r\nline\n\n"
        "[there]: https://example.com/there\n[h]: https://example.com/here\n"
    )
    seen = visit(echo.url, script=answering(text, 1))
    seen.ask("go")
    seen.until("document.querySelectorAll('.text a').length === 2 && document.querySelector('.text math')")
    seen.until("document.querySelector('.text .hljs-keyword')")
    seen.settle()
    grown = seen.page.evaluate("document.querySelector('.text').innerHTML")
    seen.page.reload()
    seen.until(f"document.querySelector('.text')?.innerHTML === {json.dumps(grown)}")


LOOKED = """() => { window.looked = 0; const real = {...Object.fromEntries(['indexOf', 'includes', 'endsWith', 'slice']
    .map(name => [name, String.prototype[name]]))};
    for (const [name, act] of Object.entries(real)) String.prototype[name] = function (...given) {
        const found = act.apply(this, given);
        const from = name === 'indexOf' ? (given[1] ?? 0) : 0;
        looked += 1 + (name === 'indexOf' ? (found < 0 ? this.length : found) - from : 0);
        return found; }; }"""


@pytest.mark.parametrize("line", ["\\[ x = 1\n", "\\( x "])
def test_formulas_that_never_close_are_looked_for_once(visit: Open, echo: Live, line: str) -> None:
    """Not once for each that opens: the characters that are looked at grow with the text, not with its square."""
    text = line * (16_000 // len(line))
    seen = visit(echo.url, script=answering(text, 40_000), **LOW)
    seen.page.evaluate(LOOKED)
    seen.ask("go")
    seen.page.wait_for_selector(".costs")
    slices = len(text) // 1200 + 1
    assert seen.page.evaluate("window.looked") < 10 * slices * len(text)


def test_formulas_keep_their_backslashes(visit: Open, echo: Live) -> None:
    seen = visit(echo.url, script=answering(FORMULA))
    seen.ask("go")
    seen.until("document.querySelectorAll('.text math').length === 3")
    seen.expect(".text annotation").to_have_text([r"a\,b = \frac{1}{2}", "x_1 * y_1 * z", r"\int_0^1 x\,dx"])
    seen.expect_answer().to_contain_text("$5 and $6")
    seen.check()


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) [b](data:text/html,x) [c](vbscript:x) <javascript:alert(1)>",
    "![spy](https://example.com/x.png)",
    "<style>body{display:none}</style><svg onload=alert(1)>",
    "```html\n<img src=x onerror=alert(1)>\n<script>alert(1)</script>\n```",
    r"$\href{javascript:alert(1)}{x}$ $\htmlId{x}{y}$ $\includegraphics{https://example.com/x.png}$",
    r"$\def\a{\a\a}\a$ and $\frac{1$ and $" + "{" * 500 + "$",
    "| " * 300 + "\n" + "> " * 300 + "deep",
]


def test_nothing_in_an_answer_runs_or_loads(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    for text in HOSTILE:
        seen.page.evaluate(answering(text, 7))
        seen.ask("go")
    seen.settle()
    inside = seen.page.locator(".turn.assistant .text")
    seen.expect(inside).to_have_count(len(HOSTILE))
    loading = "img, script, style, iframe, object, svg:not(.icon), [onerror], [onload], [style*=url]"
    seen.expect(inside.locator(loading)).to_have_count(0)
    links = inside.locator("a").evaluate_all("all => all.map(each => each.protocol)")
    assert all(link in ("https:", "http:", "mailto:", ":") for link in links)
    seen.expect(".send").to_be_visible()


def test_long_words_and_tables_break_nothing(visit: Open, echo: Live) -> None:
    word = "internationalisation" * 30
    text = f"{word}\n\n| {'a column | ' * 12}\n|{'---|' * 12}\n| {'unbreakable | ' * 12}\n\nשלום עולם, מה שלומך?"
    seen = visit(echo.url, script=answering(text), **PHONE)
    seen.say(f"مرحبا {word}")
    seen.page.locator(".send").tap()
    seen.page.wait_for_selector(".costs")
    seen.until("document.documentElement.scrollWidth <= 390")
    seen.until("document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth")
    seen.until("document.querySelector('.text td').offsetHeight < 60")  # its word is whole, on one line
    seen.until("document.querySelector('.wide').scrollWidth > document.querySelector('.wide').clientWidth")
    seen.check()


def test_copying_says_so_and_works_over_plain_http(visit: Open, echo: Live) -> None:
    plain = answering("`x\\,y`") + ";Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    seen = visit(echo.url, script=plain)
    seen.ask("go")
    seen.page.evaluate(
        "document.addEventListener('copy', () => window.copied = getSelection().toString()"
        " || document.activeElement.value)"
    )
    seen.page.locator("[aria-label='Copy the answer']").click()
    seen.toast("Copied.")
    seen.until(r"window.copied === '`x\\,y`'")


PANELS = {  # all open and close by the same few lines: one shows each way to close it
    ".costs": ("Escape", "outside", "again"),
    ".model-button": ("Escape",),
    "button[aria-label='More']": ("outside",),
    "button[aria-label='This chat']": ("again",),
}


def test_panels_stay_inside_the_window_and_close(visit: Open, echo: Live) -> None:
    for options in ({}, PHONE):
        seen = visit(echo.url, script=answering("Short."), **options)
        seen.say("go")
        seen.page.locator(".send").click()
        seen.page.wait_for_selector(".costs")
        width = seen.page.viewport_size["width"]
        for button, closes in PANELS.items():
            for close in closes:
                seen.page.locator(button).click()
                seen.page.wait_for_selector(".popover")
                box = "document.querySelector('.popover').getBoundingClientRect()"
                seen.until(f"{box}.left >= 0 && {box}.right <= {width} && {box}.top >= 0")
                if close == "Escape":
                    seen.page.keyboard.press("Escape")
                elif close == "outside":
                    seen.page.mouse.click(5, 5)
                else:
                    seen.page.locator(button).click()
                seen.until("!document.querySelector('.popover')")


def test_redraws_keep_the_focus_and_what_is_open(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        one = visit(live.url)
        one.ask("first")
        one.page.locator("[aria-label='Copy the answer']").focus()
        one.page.locator(".look-button").click()
        one.page.wait_for_selector(".look-told")
        one.page.locator(".look-button").focus()
        two = visit(live.url)
        two.ask("second")
        one.until("document.querySelectorAll('.turn').length === 4 && !document.querySelector('.growing')")
        one.settle()
        one.until("document.activeElement.innerText.includes('Where did it look')")
        one.expect(".look-told").to_have_count(1)


def test_focus_typing_and_pasting_reach_the_field(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.until("document.activeElement?.classList.contains('field')")
    seen.page.mouse.click(640, 300)
    seen.page.keyboard.type("typed anywhere")
    seen.page.evaluate(
        """() => { document.activeElement.blur();
        const data = new DataTransfer(); data.setData('text/plain', ', pasted');
        document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); }"""
    )
    seen.expect(".field").to_have_text("typed anywhere, pasted")
    seen.page.evaluate(DROP, "dropped ")
    seen.expect(".field").to_have_text("typed anywhere, pasteddropped ")


DROP = """words => { const data = new DataTransfer(); data.setData('text/plain', words);
    for (const name of ['dragenter', 'dragover', 'drop']) document.querySelector('.scroll').dispatchEvent(
        new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true})); }"""


def test_words_that_are_dragged_within_the_field_move(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.say("one two three")
    seen.settle()  # the meter has come, and moves the field no more
    start, end, middle = seen.page.evaluate(
        """() => { const words = document.querySelector('.field').firstChild, range = document.createRange();
        range.setStart(words, 0); const whole = (range.setEnd(words, 13), range.getBoundingClientRect());
        range.setEnd(words, 4); const first = range.getBoundingClientRect();
        getSelection().removeAllRanges(); getSelection().addRange(range);
        return [first.x + first.width / 2, whole.right - 1, whole.y + whole.height / 2]; }"""
    )
    seen.page.mouse.move(start, middle)
    seen.page.mouse.down()
    seen.page.mouse.move(end, middle, steps=8)
    seen.page.mouse.up()
    seen.expect(".field").to_have_text("two threeone")


def test_a_long_text_is_pasted_at_once(visit: Open, echo: Live) -> None:
    """The browser's own editing would take minutes for some thousand lines: it is handed none of such length."""
    seen = visit(echo.url)
    seen.say("See:")
    seen.page.evaluate(
        """() => { const real = document.execCommand.bind(document); window.longest = 0;
        document.execCommand = (name, shown, text) => {
            longest = Math.max(longest, text.length); return real(name, shown, text); };
        const data = new DataTransfer(); data.setData('text/plain', 'a line of many\\r\\n'.repeat(2000));
        document.activeElement.dispatchEvent(
            new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})); }"""
    )
    seen.say("end")
    seen.until(
        "document.querySelector('.field').textContent ==="
        " 'See:' + Array(2000).fill('a line of many').join('\\n') + 'end'"
    )
    assert seen.page.evaluate("window.longest") < 10_000


def test_back_and_forward_go_from_chat_to_chat(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    for words in ("one", "two", "three"):
        seen.page.locator(".new-talk").click()
        seen.ask(words)
    seen.say("a draft of three")
    seen.keeps("a draft of three")
    seen.page.evaluate(TWICE)  # back again before the chat is there
    seen.expect_said("one")
    seen.expect(".field").to_have_text("")
    for words in ("two", "three"):
        seen.page.go_forward()
        seen.expect_said(words)
    seen.expect(".field").to_have_text("a draft of three")


# the places of the history come one after the other, while the first one's chat is still being read
TWICE = """() => { const real = IDBObjectStore.prototype.get; let late = true;
    IDBObjectStore.prototype.get = function (...given) {
        if (late) { late = false; history.back(); } return real.apply(this, given); };
    history.back(); }"""


def test_each_deletion_keeps_its_undo(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    for words in ("one", "two", "three"):
        seen.page.locator(".new-talk").click()
        seen.ask(words)
    for words in ("one", "two", "three"):
        seen.page.locator(".talk", has_text=words).hover()
        seen.page.locator(f".talk [aria-label='Delete {words}']").click()
        seen.expect(".talk-open", has_text=words).to_have_count(0)
    odd = {"name": "odd.json", "mimeType": "application/json", "buffer": b"{}"}
    seen.page.locator("input[type=file][accept*=json]").set_input_files(odd)
    seen.expect(".toast").to_have_count(4)
    for words in ("one", "two", "three"):
        seen.page.locator(".toast button", has_text="Undo").first.click()
        seen.expect(".talk-open", has_text=words).to_have_count(1)


def test_a_sample_erases_nothing(visit: Open, thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.say("my own question")
    seen.page.locator(".sample").first.click()
    seen.page.wait_for_selector(".chip")
    seen.expect(".field").to_contain_text("my own question")
    seen.expect(".send").to_be_enabled()


def test_enter_on_a_phone_is_a_new_line(visit: Open, echo: Live) -> None:
    seen = visit(echo.url, **PHONE)
    seen.say("one")
    seen.page.keyboard.press("Enter")
    seen.say("two")
    seen.expect(".turn").to_have_count(0)
    seen.page.locator(".send").tap()
    seen.page.wait_for_selector(".costs")
    seen.expect(".turn.user .bubble").to_have_text(re.compile(r"^\s*one\s*\n\s*two\s*$"), use_inner_text=True)


NUMBERS = [
    ("[aria-label='Temperature, as a number']", "9", "2"),
    ("[aria-label='Top k, as a number']", "3.7", "4"),
    ("[aria-label='Min p, as a number']", "-1", "0"),
    ("#set-max_tokens", "-3", "1"),
    ("#set-max_tokens", "2.4", "2"),
    ("#set-seed", "-1", "0"),
    ("#set-seed", "", ""),
]


def test_numbers_out_of_range_are_put_right(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.page.wait_for_selector(".sample")
    seen.page.keyboard.press("Control+,")
    for field, given, right in NUMBERS:
        seen.page.fill(field, given)
        seen.page.keyboard.press("Tab")
        seen.expect(field).to_have_value(right)


def test_an_answer_that_was_deleted_is_asked_for_again(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.ask("a question")
    seen.page.locator("[aria-label='More']").click()
    seen.page.locator(".menu-item", has_text="Delete this answer").click()
    seen.until("document.querySelectorAll('.turn').length === 1")
    seen.page.locator(".ask-again").click()
    seen.page.wait_for_selector(".costs")
    seen.expect_answer().to_contain_text("a question")


def test_an_answer_is_edited_and_a_chat_branches(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.ask("one")
    seen.page.locator("[aria-label='More']").click()
    seen.page.locator(".menu-item", has_text="Edit the answer").click()
    seen.page.fill(".answer-edit", "my own words")
    seen.page.locator(".answer-form button", has_text="Keep").click()
    seen.until("document.querySelector('.turn.assistant .text').innerText === 'my own words'")
    seen.expect(".variants").to_contain_text("2 / 2")
    bodies = seen.bodies()
    seen.ask("two")
    assert bodies[0]["messages"][1]["content"] == "my own words"
    seen.page.locator("[aria-label='More']").first.click()
    seen.page.locator(".menu-item", has_text="new chat").click()
    seen.until("document.querySelectorAll('.turn').length === 2")
    seen.ask("another way")
    seen.expect_said("one", "another way")
    seen.page.locator(".talk-open", has_text="one").last.click()
    seen.until("[...document.querySelectorAll('.bubble')].at(-1).innerText.includes('two')")
    seen.expect_said("one", "two")


def test_chats_are_searched_by_day_and_written_as_markdown(visit: Open, echo: Live, tmp_path: Path) -> None:
    seen = visit(echo.url)
    seen.add(EXAMPLE)
    seen.ask(" A giraffe?")
    seen.page.locator(".new-talk").click()
    seen.ask("About elephants")
    seen.expect(".talk-day").to_have_text("Today")
    seen.page.fill(".talk-search", "GIRAFFE polite")  # one word of the question, one of the answer
    seen.until("document.querySelectorAll('.talk').length === 1")
    seen.page.locator(".talk-open").click()
    seen.page.wait_for_selector(".talk-open[aria-current=true]")
    seen.page.fill(".talk-search", "nobody said this")
    seen.page.wait_for_selector(".talk-none")
    with seen.page.expect_download() as download:
        seen.page.locator("[aria-label='This chat']").click()
        seen.page.locator(".menu-item", has_text="Markdown").click()
    assert download.value.suggested_filename == "A giraffe.md"
    file = tmp_path / "chat.md"
    download.value.save_as(file)
    text = file.read_text("utf-8")
    assert re.search(r"^!\[Example\.png\]\[picture-1\] A giraffe\?$", text, re.MULTILINE | re.IGNORECASE)
    assert "[picture-1]: data:image/png;base64," in text
    seen.expect(seen.page.locator("time.moment").first).to_have_text(re.compile(r"^\d\d?:\d\d"))


def test_each_chat_has_settings_of_its_own(visit: Open, echo: Live) -> None:
    seen = visit(echo.url, viewport={"width": 1400, "height": 900})
    bodies = seen.bodies()
    seen.ask("one")
    seen.page.keyboard.press("Control+,")
    seen.page.fill("#set-max_tokens", "7")
    seen.page.keyboard.press("Tab")
    seen.page.wait_for_selector(".own-settings .link")
    seen.page.locator(".choice", has_text="Every new chat").click()
    seen.page.fill("#set-max_tokens", "9")
    seen.page.keyboard.press("Tab")
    seen.ask("two")
    seen.page.locator(".new-talk").click()
    seen.ask("three")
    assert [body.get("max_tokens") for body in bodies.all_of(3)] == [None, 7, 9]


def test_what_the_server_leaves_out_is_said_where_one_looks(visit: Open) -> None:
    with running(make_llava(Gated(hidden=8, context=600)), routes()) as live:
        seen = visit(live.url)
        seen.page.keyboard.press("Control+,")
        seen.page.fill("#set-max_tokens", "60")
        seen.page.keyboard.press("Tab")
        for number in range(3):
            seen.add(EXAMPLE)
            seen.ask(f" Number {number} " + "x" * 100)
        seen.page.wait_for_selector(".memory-ends")
        seen.until("document.querySelectorAll('.turn.outside').length >= 2")
        seen.expect(seen.page.locator(".sent.dropped figcaption").first).to_have_text("not shown any more")
        seen.until("document.querySelector('.turn.outside ~ .memory-ends ~ .turn:not(.outside)')")
        seen.expect(seen.page.locator(".without").last).to_contain_text("Answered without")
        seen.check()


def test_no_stop_words_among_what_a_picture_drew(visit: Open, thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    seen.page.locator(".look-button").click()
    seen.page.wait_for_selector(".look")
    seen.page.wait_for_selector(".tag")
    stops = json.dumps(["a", "the", "is", "in", "of", ",", "."])
    seen.until(f"![...document.querySelectorAll('.tag')].some(tag => {stops}.includes(tag.innerText.toLowerCase()))")


def test_a_picture_is_enlarged(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.add(EXAMPLE)
    seen.ask(" What?")
    seen.page.locator(".sent-open").click()
    seen.until("document.querySelector('dialog .enlarged').getBoundingClientRect().width > 300")
    seen.page.locator("dialog button", has_text="What the model sees").click()
    seen.page.wait_for_selector(".preview-pair")


def test_field_and_column_have_one_width(visit: Open, echo: Live) -> None:
    seen = visit(echo.url, script=answering("A line.\n\n" * 60))
    seen.ask("go")
    sides = [f"document.querySelector('{part}').getBoundingClientRect()" for part in (".turns", ".composer")]
    for width in (1440, 1024, 761, 390, 320):
        seen.page.set_viewport_size({"width": width, "height": 800})
        seen.until(f"innerWidth === {width}")
        for side in ("left", "right"):
            seen.until(" === ".join(f"{each}.{side}" for each in sides))
        seen.until(f"document.documentElement.scrollWidth <= {width}")


RICH = r"""The picture shows a **red star**, a *green square* and a dog. Its area is
$A = \tfrac{5}{2} r^2 \sin 72°$.

| Thing | Colour | Where | How sure |
|:------|:-------|:------|---------:|
| star | red | top left | 0.98 |
| dog | brown | bottom right | 0.91 |

```python
def area(radius: float) -> float:
    return 2.5 * radius**2 * sin(radians(72))  # of the star
```

> The banana is the odd one out.
"""
SIZES = {1440: {}, 1024: {}, 390: PHONE}


@pytest.mark.parametrize("width", SIZES)
def test_every_size_in_light_and_dark(visit: Open, thimble: Live, width: int) -> None:
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": "dark", **SIZES[width]}
    seen = visit(thimble.url, script=answering(RICH, image_positions=[256]), **options)
    seen.page.wait_for_selector(".sample")
    seen.until("document.documentElement.dataset.theme === 'dark'")  # from the first on, as the system is
    seen.check_dark_and_light()
    seen.add(EXAMPLE)
    seen.say(" What is in this picture, and how sure are you?")
    seen.page.locator(".send").click()
    seen.until("document.querySelector('.text math') && document.querySelector('.text .hljs-keyword')")
    seen.page.wait_for_selector(".costs")
    seen.check_dark_and_light(f"{width}")
    seen.page.locator("#settings-button").click()
    seen.check_dark_and_light()
