"""Messages and sampling options check themselves."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image as Pictures

from trifocal.errors import BadMessages, BadSampling
from trifocal.images import from_pil
from trifocal.messages import Message, Sampling

PICTURE = from_pil(Pictures.new("RGB", (2, 2)))


def test_one_part_or_many() -> None:
    assert Message("user", "hi") == Message("user", ["hi"])
    both = Message("user", ("a", PICTURE, "b"))
    assert (both.text, both.images) == ("ab", (PICTURE,))


@pytest.mark.parametrize(
    ("role", "parts", "match"),
    [
        ("robot", "x", "unknown role 'robot'; known: system, user, assistant, tool"),
        ("user", [3], "not int"),
        ("system", PICTURE, "a picture stands in a system turn"),
        ("assistant", ("x", PICTURE), "a picture stands in a assistant turn"),
    ],
)
def test_what_is_no_message_is_refused(role: Any, parts: Any, match: str) -> None:
    with pytest.raises(BadMessages, match=match):
        Message(role, parts)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**63),
        ("stop", ("",)),
        ("top_logprobs", 21),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(BadSampling, match=f"{option}: .* is out of range; allowed") as error:
        Sampling(**{option: value})
    assert error.value.option == option


def test_the_defaults_are_greedy() -> None:
    assert Sampling().greedy
    assert not Sampling(temperature=0.1).greedy
