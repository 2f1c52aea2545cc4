from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifocal.api.errors import Refusal
from trifocal.api.strict_json import loads

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
