"""A prompt is a row of spans: its length, its ids, its matrix, its equality."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trifocal.errors import PromptTooLong
from trifocal.prompt import ImageSpan, Prompt, Span, TokenSpan

HIDDEN = 3
TABLE = torch.arange(30.0).reshape(10, HIDDEN)


def picture(rows: int, mark: int = 0) -> ImageSpan:
    return ImageSpan(torch.full((rows, HIDDEN), -1.0 - mark), f"digest {mark}")


spans = st.lists(
    st.one_of(
        st.lists(st.integers(0, 9), max_size=4).map(lambda ids: TokenSpan(tuple(ids))),
        st.tuples(st.integers(0, 4), st.integers(0, 3)).map(lambda made: picture(*made)),
    ),
    max_size=6,
)


@given(spans)
def test_lengths_agree(row: list[Span]) -> None:
    prompt = Prompt(row)
    matrix = prompt.splice(lambda ids: TABLE[ids])
    assert len(prompt) == sum(len(span) for span in row) == len(prompt.ids(0)) == len(matrix)
    assert prompt.image_positions + len(prompt.token_ids) == len(prompt)
    assert matrix.shape == (len(prompt), HIDDEN)


@given(spans)
def test_every_row_of_the_matrix_is_the_tokens_or_the_pictures(row: list[Span]) -> None:
    prompt = Prompt(row)
    wanted = [TABLE[list(span.ids)] if isinstance(span, TokenSpan) else span.features for span in row if len(span)]
    assert torch.equal(prompt.splice(lambda ids: TABLE[ids]), torch.cat(wanted) if wanted else torch.empty(0, HIDDEN))


@given(spans, st.integers(0, 6))
def test_prompts_are_equal_however_they_were_cut(row: list[Span], at: int) -> None:
    halves = [TokenSpan(part) for span in row if isinstance(span, TokenSpan) for part in (span.ids[:at], span.ids[at:])]
    texts = [span for span in row if isinstance(span, TokenSpan)]
    assert Prompt(halves) == Prompt(texts)
    assert Prompt(row) == Prompt(Prompt(row).spans)


def test_placeholders_stand_where_pictures_do() -> None:
    assert Prompt([TokenSpan((1, 2)), picture(3), TokenSpan((4,))]).ids(9) == [1, 2, 9, 9, 9, 4]


def test_a_picture_is_its_digest() -> None:
    assert picture(2, 1) == ImageSpan(torch.zeros(2, HIDDEN), "digest 1")
    assert picture(2, 1) != picture(2, 2)
    assert len({picture(2, 1), picture(2, 1), picture(2, 2)}) == 2


def test_what_does_not_fit_is_refused_with_its_counts() -> None:
    prompt = Prompt([TokenSpan((1, 2)), picture(3)])
    assert prompt.fit(context=8, max_tokens=3) is prompt
    with pytest.raises(PromptTooLong, match=r"5 positions \(3 of them pictures\) and 4 .* context is 8") as error:
        prompt.fit(context=8, max_tokens=4)
    assert (error.value.positions, error.value.images, error.value.max_tokens, error.value.context) == (5, 3, 4, 8)


def test_pictures_take_the_tables_dtype() -> None:
    prompt = Prompt([TokenSpan((1,)), picture(2)])
    assert prompt.splice(lambda ids: TABLE[ids].bfloat16()).dtype == torch.bfloat16


def test_a_picture_of_another_width_is_refused() -> None:
    prompt = Prompt([TokenSpan((1,)), ImageSpan(torch.zeros(2, HIDDEN + 1), "wide")])
    with pytest.raises(ValueError, match="rows of 4, the language model of 3"):
        prompt.splice(lambda ids: TABLE[ids])
