"""Which pictures and turns of a conversation stay."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image as Pictures

from trifocal.conversation.history import Keep, keep_images, parse_keep, shortened
from trifocal.errors import UsageError
from trifocal.images import from_pil
from trifocal.messages import Message

A, B, C = (from_pil(Pictures.new("L", (2, 2), shade)) for shade in (1, 2, 3))
TALK = [
    Message("system", "s"),
    Message("user", ("one <image> two <image>", A, B)),
    Message("assistant", "yes"),
    Message("user", ("and", C)),
]


@pytest.mark.parametrize(
    ("keep", "texts", "dropped"),
    [
        ("all", "one <image> two <image>", 0),
        (3, "one <image> two <image>", 0),
        (2, "one  two <image>", 1),
        ("last", "one  two ", 2),
        (1, "one  two ", 2),
        (0, "one  two ", 3),
    ],
)
def test_a_picture_that_is_left_out_takes_its_mark_along(keep: Keep, texts: str, dropped: int) -> None:
    kept, count = keep_images(TALK, keep)
    assert count == dropped
    assert kept[1].text == texts
    assert [image for turn in kept for image in turn.images] == [A, B, C][dropped:]
    assert kept[0] == TALK[0]
    assert kept[2] == TALK[2]


def test_without_marks_the_order_of_parts_stays() -> None:
    kept, _ = keep_images([Message("user", (A, "x", B, "y", C))], 1)
    assert kept[0].parts == ("x", "y", C)


def test_the_oldest_exchange_goes_first_and_system_and_question_never() -> None:
    turns = [*TALK, Message("assistant", "no"), Message("user", "last")]
    assert shortened(turns, lambda these: True) == turns
    assert shortened(turns, lambda these: len(these) <= 5) == [turns[0], *turns[3:]]
    assert shortened(turns, lambda these: len(these) <= 3) == [turns[0], turns[-1]]
    assert shortened(turns, lambda these: False) == [turns[0], turns[-1]]


def test_a_conversation_that_starts_with_an_answer_drops_it_first() -> None:
    turns = [Message("assistant", "hello"), Message("user", "q")]
    assert shortened(turns, lambda these: len(these) == 1) == [turns[1]]


@pytest.mark.parametrize("room", range(0, 2000, 37))
def test_a_thousand_turns_are_counted_a_dozen_times(room: int) -> None:
    turns = [Message(role, "x") for _ in range(1000) for role in ("user", "assistant")] + [Message("user", "x")]
    asked: list[int] = []

    def fits(these: Sequence[Message]) -> bool:
        asked.append(len(these))
        return len(these) <= room

    assert len(shortened(turns, fits)) == max(1, room - (room + 1) % 2)
    assert len(asked) <= 12


@pytest.mark.parametrize(("text", "keep"), [("all", "all"), ("last", "last"), ("3", 3), (0, 0)])
def test_what_is_kept_is_read(text: str | int, keep: Keep) -> None:
    assert parse_keep(text) == keep


@pytest.mark.parametrize("text", ["some", "-1", "1.5", "", True])
def test_what_is_kept_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="'all', 'last' or a number"):
        parse_keep(text)
