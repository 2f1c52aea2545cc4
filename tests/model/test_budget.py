"""The budget of a context adds up to what the answer then takes, and foretells what is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from live import HIDDEN, make_llava

from trifocal.conversation.templates import get_template
from trifocal.engines.echo import Echo
from trifocal.errors import BadMessages, PromptTooLong
from trifocal.images import Image
from trifocal.messages import Message, Sampling
from trifocal.model.budget import Budget

Drawn = Callable[..., Image]


def turns(drawn: Drawn, count: int) -> list[Message]:
    """A system text, and questions with a picture each, all but the last one answered."""
    talk = [Message("system", "Be brief.")]
    for number in range(count):
        talk += [Message("user", ("What is it?", drawn(number))), Message("assistant", "Noise.")]
    return talk[:-1]


@pytest.mark.parametrize("keep", ["all", "last", 0, 1])
@pytest.mark.parametrize("template", ["llava_v1", "chatml_direct"])
def test_it_is_what_the_answer_takes(drawn: Drawn, keep: str | int, template: str) -> None:
    llava, talk = make_llava(), turns(drawn, 3)
    options = {"images": keep, "template": get_template(template)}
    budget = llava.budget(talk, 20, **options)  # type: ignore[arg-type]
    end = llava.complete(talk, Sampling(max_tokens=20), **options).end  # type: ignore[arg-type]
    assert (budget.total, budget.pictures) == (end.prompt_tokens, end.image_tokens)
    assert budget.left_out == end.left_out
    assert budget.text + budget.pictures == budget.total == llava.count(talk, **options)  # type: ignore[arg-type]


def test_each_message_is_told(drawn: Drawn) -> None:
    budget = make_llava().budget(turns(drawn, 2), images="last")
    assert [turn.text for turn in budget.turns] == [9, 11, 6, 11]  # the echo's tokens are bytes
    assert [turn.pictures for turn in budget.turns] == [(), (4,), (), (4,)]
    assert [turn.pictures_left_out for turn in budget.turns] == [(), (True,), (), (False,)]
    assert not any(turn.left_out for turn in budget.turns)
    assert budget.answer == 1024


def test_a_mark_is_no_text_of_its_own(drawn: Drawn) -> None:
    llava = make_llava()
    (marked,) = llava.budget([Message("user", ("What is <image>?", drawn(1)))]).turns
    (typed,) = llava.budget([Message("user", "What is <image>?")]).turns
    assert (marked.text, typed.text) == (len("What is ?"), len("What is <image>?"))


def test_what_would_be_next_is_what_is_left_out_next(drawn: Drawn) -> None:
    """The context is made smaller position by position until something goes; it is what was foretold."""
    talk = turns(drawn, 3)
    whole = make_llava().budget(talk, 10)
    assert whole.next is not None

    def with_context(context: int) -> Budget:
        return make_llava(Echo(hidden=HIDDEN, context=context)).budget(talk, 10)

    just = with_context(whole.total + 10)
    assert (just.fits, just.left_out) == (True, ())
    assert just.next is not None
    assert just.next.endswith("when more than 0 positions are added")
    less = with_context(whole.total + 9)
    assert less.left_out == ("the 2 oldest messages with 1 picture (context is full)",)
    assert just.next == f"the 2 oldest messages with 1 picture ({whole.total - less.total} positions), " + (
        "when more than 0 positions are added"
    )
    assert [turn.left_out for turn in less.turns] == [False, True, True, False, False, False]
    assert less.turns[1].pictures_left_out == (True,)


@pytest.mark.parametrize("max_tokens", [None, 10, 1000])
def test_what_fits_is_answered_and_what_does_not_is_refused(drawn: Drawn, max_tokens: int | None) -> None:
    """Position by position around the length of the last question, which always stays."""
    talk = turns(drawn, 1)
    length = make_llava().budget(talk).total
    for context in range(length - 1, length + 3):
        llava = make_llava(Echo(hidden=HIDDEN, context=context))
        fits = llava.budget(talk, max_tokens).fits
        assert fits is (context > length)
        if fits:
            assert llava.complete(talk, Sampling(max_tokens=max_tokens)).end.prompt_tokens == length
        else:
            with pytest.raises(PromptTooLong):
                llava.stream(talk, Sampling(max_tokens=max_tokens))


def test_the_last_question_stays_even_where_it_does_not_fit(drawn: Drawn) -> None:
    llava = make_llava(Echo(hidden=HIDDEN, context=40))
    budget = llava.budget(turns(drawn, 2), 10)
    assert not budget.fits
    assert budget.next is None
    assert [turn.left_out for turn in budget.turns] == [False, True, True, False]


def test_a_conversation_that_cannot_be_rendered_has_no_budget() -> None:
    with pytest.raises(BadMessages):
        make_llava().budget([])
