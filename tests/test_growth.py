"""Whatever reads what strangers send takes time that grows with its length: measured against itself, four times longer.

Four times the text may take four times the work. What takes sixteen times as much, or never ends, is found by the twins
at the end of this file, which are the regular expressions that stood here once.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from trifocal.api.errors import Refusal
from trifocal.api.fetch import parse_url
from trifocal.api.strict_json import loads
from trifocal.api.wire import user_text
from trifocal.conversation.markup import parse
from trifocal.conversation.templates import get_template
from trifocal.errors import TrifocalError
from trifocal.images import from_data_uri
from trifocal.messages import Message
from trifocal.webui import held

Reader = Callable[[str], object]
LEAST = 0.001  # seconds of this thread's own work from which on growth can be told from noise
MOST = 400_000  # characters


def work(reader: Reader, text: str) -> float:
    """How long this thread worked on it; waiting for a busy machine is no work."""
    started = time.thread_time()
    with suppress(TrifocalError, Refusal):
        reader(text)
    return time.thread_time() - started


def grows_faster_than_its_length(reader: Reader, family: Callable[[int], str]) -> bool:
    """Makes the text four times as long until it takes a time that the next one can be held to.

    A measurement that says yes is made anew, five times: noise is not there every time, growth is.
    """
    size = 8
    while size <= MOST:
        if work(reader, family(size)) > LEAST:
            return all(work(reader, family(4 * size)) > 9 * work(reader, family(size)) for _ in range(5))
        size *= 4
    return False


HEADS = ("", "data:image/png", "data:", "<img src=", "<img src='data:", '<img a="', "data:image/png;base64,", "<img ")
UNITS = (
    " ",
    "; ",
    "a",
    "src=a ",
    "src ",
    "<img ",
    "<img src= ",
    "data:",
    "=data:",
    ",",
    "='",
    '"',
    "\\",
    "A" * 511 + " ",
    "<|a",
    "\n",
)
FAMILIES = {f"{head!r} then {unit[:12]!r}": (head, unit) for head in HEADS for unit in UNITS}


def whole_chat(text: str) -> object:
    return get_template("llava_v1").render([Message("user", text)])


READERS: dict[str, Reader] = {
    "a raw prompt": parse,
    "a user's text": lambda text: user_text(text, "x"),
    "a data URI": from_data_uri,
    "a template": whole_chat,
    "a host's prompt": lambda text: held.tagged(text),
    "an address": parse_url,
    "a body": lambda text: loads(text.encode()),
}


@pytest.mark.parametrize("name", READERS)
def test_the_work_grows_with_the_length(name: str) -> None:
    for told, (head, unit) in FAMILIES.items():
        assert not grows_faster_than_its_length(
            READERS[name],
            lambda size, head=head, unit=unit: head + unit * (size // len(unit)),  # type: ignore[misc]
        ), told


BODIES = {
    "empty lists": lambda size: "[" + "[]," * (size // 3) + "[]]",
    "lists without commas": lambda size: "[]" * (size // 2),
    "quotes": lambda size: '"' * size,
    "backslashes": lambda size: '["' + "\\" * size + '"]',
    "escapes": lambda size: '["' + "\\u0041" * (size // 6) + '"]',
    "digits": lambda size: "9" * size,
    "keys": lambda size: "{" + ",".join(f'"{at}":1' for at in range(size // 8)) + "}",
    "deep": lambda size: "[" * size,
}


@pytest.mark.parametrize("name", BODIES)
def test_the_work_on_a_body_grows_with_its_length(name: str) -> None:
    assert not grows_faster_than_its_length(READERS["a body"], BODIES[name])


def test_the_work_on_base64_grows_with_its_length() -> None:
    data = base64.b64encode(bytes(3 * MOST)).decode()
    assert not grows_faster_than_its_length(from_data_uri, lambda size: f"data:;base64,{data[:size]}")


TWINS = {
    "a head that is tried in every way": (
        re.compile(r"\s*data:\s*(?P<type>[^;,\s]*)(?P<parameters>(?:\s*;\s*[^;,]*)*)\s*,"),
        lambda size: "data:image/png" + "; " * (3 * size.bit_length() // 2),  # it doubles with every letter or two
    ),
    "a source that is looked for from everywhere": (
        re.compile(r"<img\b[^<>]{0,400}?src\s*=\s*[\"']?\s*data:"),
        lambda size: "<img src=" + " " * size,
    ),
    "attributes that are passed over again and again": (
        re.compile(r"""<img\b(?:[^<>"']|"[^"<>]*")*?\bsrc\s*=\s*(?P<bare>[^\s"'<>]+)(?:[^<>"']|"[^"<>]*")*>"""),
        lambda size: "<img " + "src=a " * (size // 6),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_its_twin_is_found(name: str) -> None:
    """The measurement can fail: it does on each of these."""
    pattern, family = TWINS[name]
    assert grows_faster_than_its_length(pattern.search, family)
