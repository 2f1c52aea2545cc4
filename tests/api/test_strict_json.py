from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifocal.api.errors import Refusal
from trifocal.api.strict_json import SMALL, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_what_json_can_say_is_read_as_it_is(value: Any, ascii_only: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8")) == value


@given(st.binary(max_size=200))
def test_bytes_are_a_value_or_a_refusal(data: bytes) -> None:
    with suppress(Refusal):
        loads(data)


@pytest.mark.parametrize("text", [r'"[[[\"[[[\\"', '"[[[[[[[[[["', r'["\\", "[[[[[[["]', '"{{{{{,,,,,,"'])
def test_brackets_inside_strings_are_letters(text: str) -> None:
    assert loads(text.encode(), depth=2, values=3) == json.loads(text)


@pytest.mark.parametrize(("depth", "ok"), [(63, True), (64, True), (65, False)])
def test_the_depth_is_exact(depth: int, ok: bool) -> None:
    data = b"[" * depth + b"]" * depth
    if ok:
        loads(data)
    else:
        with pytest.raises(Refusal, match="invalid_json"):
            loads(data)


@pytest.mark.parametrize("text", ["[1,1]", '{"a":1,"b":[{}]}', '["a,b,c",2]'])
def test_the_number_of_values_and_keys_is_exact(text: str) -> None:
    values, keys = 2, text.count(":")
    assert loads(text.encode(), values=values, keys=keys) == json.loads(text)
    for bounds, words in ({"values": 1}, "over 1 values"), ({"keys": keys - 1}, f"over {keys - 1} keys"):
        if min(bounds.values()) >= 0:
            with pytest.raises(Refusal) as caught:
                loads(text.encode(), **bounds)
            assert words in caught.value.message


LONG = "word " * (SMALL // 4)


@pytest.mark.parametrize(
    "text", [LONG, LONG + '\\"\\\\\\/\\u0041\\n', LONG + "\u4e2d\U0001f600", LONG + "\\ud83d\\ude00"]
)
def test_long_strings_stand_where_they_stood(text: str) -> None:
    body = f'{{"a": ["{text}", {{"{text}": "{text}"}}, 1], "b": "x"}}'
    assert loads(body.encode()) == json.loads(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f'{{"{LONG}": 1, "{LONG}": 2}}', "a key stands twice"),
        (f'["{LONG}\n"]', "character 8"),
        (f'["{LONG}", "{LONG}\\ud800"]', "UTF-8"),
        (f'["{LONG}", x]', "character 8"),
        (f'["{LONG}', "character 1"),
        ("[" + '"x",' * 70_000 + "1]", "over 60000 strings"),
        ("[" + " " * (17 << 20) + "1]", "beside pictures"),
        (f'["{"n" * 10}{chr(92)}n"]'.replace("\\n", "\\n" * (4 << 20)), "escaped"),
        ("[" + "9" * 401 + "]", "401 digits"),
        ("[0." + "9" * 400 + "]", "402 digits"),
    ],
)
def test_a_large_body_that_is_none_is_refused_with_its_place(body: str, words: str) -> None:
    with pytest.raises(Refusal) as caught:
        loads(body.encode())
    assert words in caught.value.message


def test_a_place_counts_what_was_taken_out() -> None:
    with pytest.raises(Refusal) as caught:
        loads(f'["{LONG}", "{LONG}", x]'.encode())
    assert caught.value.message.endswith(f"character {2 * len(LONG) + 9}")
