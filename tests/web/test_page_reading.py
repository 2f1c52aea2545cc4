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


def fresh(browser: Any, script: str, **options: Any) -> Any:
    """A browser whose questions are answered by a script."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 820}, **options})
    context.add_init_script(script)
    return context


@pytest.fixture(scope="module")
def echo() -> Any:
    with running(make_llava(), routes()) as live:
        yield live


def end_is_seen(seen: Visit) -> bool:
    """Whether the end of the transcript is above the field."""
    return bool(
        seen.page.evaluate(
            "document.querySelector('.turns').getBoundingClientRect().bottom <="
            " document.querySelector('.composer').getBoundingClientRect().top"
        )
    )


def test_the_answer_is_followed_until_the_reader_goes_up(visit: Open, browser: Any, echo: Live) -> None:
    context = fresh(browser, answering("A line of the answer.\n\n" * 60))
    seen = visit(echo.url, context=context)
    for _ in range(4):
        seen.add(EXAMPLE)
        seen.ask(" What?")
        seen.until("document.querySelectorAll('.turn:last-child .text p').length === 60")
        seen.page.wait_for_timeout(100)
        assert end_is_seen(seen)
    assert not seen.page.locator(".to-end").is_visible()
    seen.page.mouse.move(640, 300)
    seen.page.mouse.wheel(0, -900)
    seen.page.wait_for_selector(".to-end")
    before = seen.page.evaluate("document.querySelector('.scroll').scrollTop")
    seen.page.set_viewport_size({"width": 1280, "height": 700})  # what grows or shrinks moves no reader
    seen.page.wait_for_timeout(150)
    assert seen.page.evaluate("document.querySelector('.scroll').scrollTop") == before
    seen.page.locator(".to-end").click()
    seen.until("document.querySelector('.to-end').hidden")
    assert end_is_seen(seen)


def test_an_error_is_in_view(visit: Open, browser: Any, echo: Live) -> None:
    seen = visit(echo.url, context=fresh(browser, answering("A line.\n\n" * 80)))
    seen.ask("one")
    seen.page.evaluate("window.fetch = () => Promise.resolve(new Response('{}', {status: 500}))")
    seen.ask("two")
    seen.page.wait_for_timeout(100)
    assert seen.page.locator(".turn .problem").is_visible()
    assert end_is_seen(seen)


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
LONG = "".join(PIECE.replace("{n}", str(n)) for n in range(PARTS))
WATCH = """() => { window.made = 0; window.tasks = [];
    new MutationObserver(list => { for (const each of list) for (const node of each.addedNodes) made += 1 +
        (node.querySelectorAll?.('*').length ?? 0); })
        .observe(document.querySelector('.content'), {subtree: true, childList: true});
    new PerformanceObserver(list => tasks.push(...list.getEntries().map(each => Math.round(each.duration))))
        .observe({type: 'longtask'}); }"""


@pytest.mark.parametrize("step", [100, 40_000])
def test_32000_characters_are_drawn_by_what_changed(visit: Open, browser: Any, echo: Live, step: int) -> None:
    """In pieces or in one burst: about as many elements are made as stand there at the end, not the square of it."""
    assert len(LONG) > 32_000
    seen = visit(echo.url, context=fresh(browser, answering(LONG, step)))
    seen.page.evaluate(WATCH)
    seen.ask("tell me all")
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
def test_one_long_block_is_drawn_by_what_changed(visit: Open, browser: Any, echo: Live, kind: str) -> None:
    long = {
        "code": "```python\n" + "x = 1\n" * 1500 + "```\n",
        "list": "- an *item*\n" * 800,
        "table": "| a | b |\n|---|---|\n" + "| 1 | **2** |\n" * 700,
        "paragraph": "some *words* and `code` " * 400,
    }[kind]
    seen = visit(echo.url, context=fresh(browser, answering(long, 60)))
    seen.page.evaluate(WATCH)
    seen.ask("tell me all")
    words = len(long.split())
    seen.until("document.querySelector('.turn.assistant .costs') !== null")
    seen.until(f"document.querySelector('.turn.assistant .text').innerText.split(/\\s+/).length > {words // 4}")
    seen.page.wait_for_timeout(100)
    stand = seen.page.evaluate("document.querySelector('.content').querySelectorAll('*').length")
    assert seen.page.evaluate("window.made") < 6 * stand + 600


def test_what_grows_ends_as_what_is_read_whole(visit: Open, browser: Any, echo: Live) -> None:
    """Links that are explained below, lists that turn loose, fences and formulas that close late."""
    text = (
        "See [there] and [here][h].\n\n- one\n- two\n\n- three\n\n```js\nlet a = 1;\n\nlet b = 2;\n```\n\n"
        "$$\na\\,b\n$$\n\n"
        "Heading\n=======\n\n1. a\n\n   more\n2. b\n\n> quote\nlazy\n\n| a |\n|---|\n| 1 |\n\nlast\r\nline\n\n"
        "[there]: https://example.com/there\n[h]: https://example.com/here\n"
    )
    seen = visit(echo.url, context=fresh(browser, answering(text, 1)))
    seen.ask("go")
    seen.until("document.querySelectorAll('.text a').length === 2 && document.querySelector('.text math')")
    seen.until("document.querySelector('.text .hljs-keyword')")
    grown = seen.page.locator(".text").inner_html()
    seen.page.reload()
    seen.until("document.querySelector('.text math') && document.querySelector('.text .hljs-keyword')")
    assert seen.page.locator(".text").inner_html() == grown


def test_formulas_keep_their_backslashes(visit: Open, browser: Any, echo: Live) -> None:
    seen = visit(echo.url, context=fresh(browser, answering(FORMULA)))
    seen.ask("go")
    seen.until("document.querySelectorAll('.text math').length === 3")
    written = seen.page.evaluate(
        "[...document.querySelectorAll('.text annotation')].map(each => each.textContent.trim())"
    )
    assert written == [r"a\,b = \frac{1}{2}", "x_1 * y_1 * z", r"\int_0^1 x\,dx"]
    assert "$5 and $6" in seen.answer
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
    seen.page.wait_for_timeout(200)
    inside = seen.page.locator(".turn.assistant .text")
    assert inside.count() == len(HOSTILE)
    loading = "img, script, style, iframe, object, svg:not(.icon), [onerror], [onload], [style*=url]"
    assert inside.locator(loading).count() == 0
    links = inside.locator("a").evaluate_all("all => all.map(each => each.protocol)")
    assert all(link in ("https:", "http:", "mailto:", ":") for link in links)
    assert seen.page.locator(".send").is_visible()


def test_long_words_and_tables_break_nothing(visit: Open, browser: Any, echo: Live) -> None:
    word = "internationalisation" * 30
    text = f"{word}\n\n| {'a column | ' * 12}\n|{'---|' * 12}\n| {'unbreakable | ' * 12}\n\nשלום עולם, מה שלומך?"
    seen = visit(echo.url, context=fresh(browser, answering(text), **PHONE))
    seen.say(f"مرحبا {word}")
    seen.page.locator(".send").tap()
    seen.page.wait_for_selector(".costs")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert seen.page.evaluate(
        "document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth"
    )
    cell = seen.page.locator(".text td").first
    assert cell.bounding_box()["height"] < 60  # its word is whole, on one line
    assert seen.page.locator(".wide").evaluate("each => each.scrollWidth > each.clientWidth")
    seen.check()


def test_copying_says_so_and_works_over_plain_http(visit: Open, browser: Any, echo: Live) -> None:
    plain = answering("`x\\,y`") + ";Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    seen = visit(echo.url, context=fresh(browser, plain))
    seen.ask("go")
    seen.page.evaluate(
        "document.addEventListener('copy', () => window.copied = getSelection().toString()"
        " || document.activeElement.value)"
    )
    seen.page.locator("[aria-label='Copy the answer']").click()
    seen.toast("Copied.")
    assert seen.page.evaluate("window.copied") == "`x\\,y`"


def test_panels_stay_inside_the_window_and_close(visit: Open, browser: Any, echo: Live) -> None:
    for options in ({}, PHONE):
        seen = visit(echo.url, context=fresh(browser, answering("Short."), **options))
        seen.say("go")
        seen.page.locator(".send").click()
        seen.page.wait_for_selector(".costs")
        width = seen.page.viewport_size["width"]
        for button in (".costs", ".model-button", "button[aria-label='More']", "button[aria-label='This chat']"):
            for close in ("Escape", "outside", "again"):
                seen.page.locator(button).click()
                box = seen.page.locator(".popover").bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width
                assert box["y"] >= 0
                if close == "Escape":
                    seen.page.keyboard.press("Escape")
                elif close == "outside":
                    seen.page.mouse.click(5, 5)
                else:
                    seen.page.locator(button).click()
                seen.until("!document.querySelector('.popover')")


def test_redraws_keep_the_focus_and_what_is_open(visit: Open, browser: Any) -> None:
    with running(make_llava(), routes()) as live:
        context = browser.new_context(viewport={"width": 1280, "height": 820})
        one = visit(live.url, context=context)
        one.ask("first")
        one.page.locator("[aria-label='Copy the answer']").focus()
        one.page.locator(".look-button").click()
        one.page.wait_for_selector(".look-told")
        one.page.locator(".look-button").focus()
        two = visit(live.url, context=context)
        two.ask("second")
        one.until("document.querySelectorAll('.turn').length === 4 && !document.querySelector('.growing')")
        one.page.wait_for_timeout(200)
        assert "Where did it look" in one.page.evaluate("document.activeElement.innerText")
        assert one.page.locator(".look-told").count() == 1


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
    assert seen.page.locator(".field").inner_text() == "typed anywhere, pasted"


def test_a_sample_erases_nothing(visit: Open, thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.say("my own question")
    seen.page.locator(".sample").first.click()
    seen.page.wait_for_selector(".chip")
    assert "my own question" in seen.page.locator(".field").inner_text()
    assert not seen.page.locator(".send").is_disabled()


def test_enter_on_a_phone_is_a_new_line(visit: Open, echo: Live) -> None:
    seen = visit(echo.url, **PHONE)
    seen.say("one")
    seen.page.keyboard.press("Enter")
    seen.say("two")
    assert seen.page.locator(".turn").count() == 0
    seen.page.locator(".send").tap()
    seen.page.wait_for_selector(".costs")
    assert "one\ntwo" in seen.said()[0]


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
        assert (field, seen.page.input_value(field)) == (field, right)


def test_an_answer_that_was_deleted_is_asked_for_again(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.ask("a question")
    seen.page.locator("[aria-label='More']").click()
    seen.page.locator(".menu-item", has_text="Delete this answer").click()
    seen.until("document.querySelectorAll('.turn').length === 1")
    seen.page.locator(".ask-again").click()
    seen.page.wait_for_selector(".costs")
    assert "a question" in seen.answer


def test_an_answer_is_edited_and_a_chat_branches(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.ask("one")
    seen.page.locator("[aria-label='More']").click()
    seen.page.locator(".menu-item", has_text="Edit the answer").click()
    seen.page.fill(".answer-edit", "my own words")
    seen.page.locator(".answer-form button", has_text="Keep").click()
    seen.until("document.querySelector('.turn.assistant .text').innerText === 'my own words'")
    assert "2 / 2" in seen.page.locator(".variants").inner_text()
    bodies = seen.bodies()
    seen.ask("two")
    assert bodies[0]["messages"][1]["content"] == "my own words"
    seen.page.locator("[aria-label='More']").first.click()
    seen.page.locator(".menu-item", has_text="new chat").click()
    seen.until("document.querySelectorAll('.turn').length === 2")
    seen.ask("another way")
    assert seen.said() == ["one", "another way"]
    seen.page.locator(".talk-open", has_text="one").last.click()
    seen.until("[...document.querySelectorAll('.bubble')].at(-1).innerText.includes('two')")
    assert seen.said() == ["one", "two"]


def test_chats_are_searched_by_day_and_written_as_markdown(visit: Open, echo: Live, tmp_path: Path) -> None:
    seen = visit(echo.url)
    seen.add(EXAMPLE)
    seen.ask(" A giraffe?")
    seen.page.locator(".new-talk").click()
    seen.ask("About elephants")
    assert seen.page.locator(".talk-day").inner_text() == "Today"
    seen.page.fill(".talk-search", "GIRAFFE polite")  # one word of the question, one of the answer
    seen.until("document.querySelectorAll('.talk').length === 1")
    seen.page.locator(".talk-open").click()
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
    assert re.search(r"^\d\d?:\d\d", seen.page.locator("time.moment").first.inner_text())


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
    assert [body.get("max_tokens") for body in bodies] == [None, 7, 9]


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
        assert seen.page.locator(".turn.outside").count() >= 2
        assert seen.page.locator(".sent.dropped figcaption").first.inner_text() == "not shown any more"
        assert seen.page.locator(".turn.outside ~ .memory-ends ~ .turn:not(.outside)").count() >= 1
        assert "Answered without" in seen.page.locator(".without").last.inner_text()
        seen.check()


def test_no_stop_words_among_what_a_picture_drew(visit: Open, thimble: Live) -> None:
    seen = visit(thimble.url)
    seen.add(EXAMPLE)
    seen.ask(" What is in this picture?")
    seen.page.locator(".look-button").click()
    seen.page.wait_for_selector(".look")
    drew = [word.lower() for word in seen.page.locator(".tag").all_inner_texts()]
    assert drew
    assert not {"a", "the", "is", "in", "of", ",", "."} & set(drew)


def test_a_picture_is_enlarged(visit: Open, echo: Live) -> None:
    seen = visit(echo.url)
    seen.add(EXAMPLE)
    seen.ask(" What?")
    seen.page.locator(".sent-open").click()
    assert seen.page.locator("dialog .enlarged").bounding_box()["width"] > 300
    seen.page.locator("dialog button", has_text="What the model sees").click()
    seen.page.wait_for_selector(".preview-pair")


@pytest.mark.parametrize("width", [1440, 1024, 761, 390, 320])
def test_field_and_column_have_one_width(visit: Open, browser: Any, echo: Live, width: int) -> None:
    context = fresh(browser, answering("A line.\n\n" * 60), viewport={"width": width, "height": 800})
    seen = visit(echo.url, context=context)
    seen.ask("go")
    sides = [
        seen.page.evaluate(
            f"(({{left, right}}) => [left, right])(document.querySelector('{part}').getBoundingClientRect())"
        )
        for part in (".turns", ".composer")
    ]
    assert sides[0] == sides[1], json.dumps(sides)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_every_size_in_light_and_dark(visit: Open, browser: Any, thimble: Live, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, **SIZES[width]}
    seen = visit(thimble.url, context=fresh(browser, answering(RICH, image_positions=[256]), **options))
    seen.page.wait_for_selector(".sample")
    seen.check()
    seen.add(EXAMPLE)
    seen.say(" What is in this picture, and how sure are you?")
    seen.page.locator(".send").click()
    seen.until("document.querySelector('.text math') && document.querySelector('.text .hljs-keyword')")
    seen.page.wait_for_selector(".costs")
    seen.page.wait_for_timeout(300)
    seen.shot(f"{width}-{scheme}")
    seen.check()
    seen.page.locator("#settings-button").click()
    seen.page.wait_for_timeout(250)
    seen.check()
