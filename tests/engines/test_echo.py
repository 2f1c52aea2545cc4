"""What echo says, how long it takes and where it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trifocal.engines.echo import Bytes, Echo, load
from trifocal.engines.recipe import Recipe
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt, TokenSpan


def spoken(echo: Echo, prompt: Prompt, sampling: Sampling | None = None) -> str:
    return echo.tokenizer.decode([token.id for token in echo.stream(prompt, sampling or Sampling())])


def test_it_says_text_and_pictures_in_order() -> None:
    echo, picture = Echo(hidden=2), ImageSpan(torch.full((3, 2), 0.25), "a")
    before, after = (
        TokenSpan(tuple(echo.tokenizer.encode(words, start=False))) for words in ("Look: ", " What is it?")
    )
    said = spoken(echo, Prompt([before, picture, after]))
    assert said == "Look: [picture: 3 positions, mean 0.250000] What is it?"


@given(words=st.text())
def test_any_text_comes_back_byte_by_byte(words: str) -> None:
    tokenizer = Bytes()
    ids = tokenizer.encode(words, start=True)
    assert ids[0] == tokenizer.token("<s>")
    assert len(ids) == 1 + len(words.encode())
    assert tokenizer.decode(ids) == words


def test_control_tokens_are_not_said() -> None:
    echo = Echo()
    start, end = (echo.tokenizer.token(name) for name in ("<im_start>", "</s>"))
    assert start is not None
    assert end is not None
    assert spoken(echo, Prompt([TokenSpan((start, *echo.tokenizer.encode("a", start=True), end))])) == "a"


def test_it_ends_where_the_answer_or_the_context_does() -> None:
    prompt = Prompt([TokenSpan(tuple(Bytes().encode("abcdef", start=False)))])
    assert spoken(Echo(), prompt, Sampling(max_tokens=2)) == "ab"
    assert spoken(Echo(context=9), prompt, Sampling(max_tokens=50)) == "abc"


def test_the_delay_is_before_every_id_and_closing_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt([TokenSpan(tuple(Bytes().encode("a" * 1000, start=False)))])
    waited: list[float] = []
    monkeypatch.setattr("trifocal.engines.echo.time", SimpleNamespace(sleep=waited.append))
    stream = Echo(delay=0.02).stream(prompt, Sampling())
    for ids in range(1, 4):
        next(stream)
        assert len(waited) >= ids  # the engine goes on while nobody reads
    assert set(waited) == {0.02}
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize(("given_width", "width"), [(0, 64), (16, 16)])
def test_it_is_as_wide_as_the_model_that_it_stands_for(tmp_path: Path, given_width: int, width: int) -> None:
    recipe = Recipe(source=str(tmp_path), config={"hidden_size": 64})
    assert load(recipe, Placement("cpu"), hidden=given_width).hidden == width
