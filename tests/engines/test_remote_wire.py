"""What an engine's process and its front say to each other comes through whole, and what is no frame is told."""

from __future__ import annotations

import io
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trifocal import errors
from trifocal.engines.base import State, Token
from trifocal.engines.remote.wire import (
    Kind,
    WireError,
    error_from,
    error_to,
    prompt_from,
    prompt_to,
    read_frame,
    sampling_from,
    state_from,
    state_to,
    tensor_from,
    tensor_to,
    tokens_from,
    tokens_to,
    write_frame,
)
from trifocal.messages import Sampling
from trifocal.prompt import ImageSpan, Prompt, TokenSpan

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ids = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(), max_size=20)  # lone surrogates too
logprobs = st.floats(allow_nan=False)


@st.composite
def pictures(draw: st.DrawFn) -> ImageSpan:
    rows, width, seed = draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(0, 99))
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return ImageSpan(values.to(draw(st.sampled_from(DTYPES))), draw(texts))


token_spans = st.lists(ids, min_size=1, max_size=9).map(lambda told: TokenSpan(tuple(told)))
prompts = st.builds(Prompt, st.lists(st.one_of(token_spans, pictures()), max_size=5), st.none() | texts)
samplings = st.builds(
    Sampling,
    max_tokens=st.none() | st.integers(1, 2**40),
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.none() | ids,
    stop=st.lists(texts.filter(bool), max_size=3).map(tuple),
    ignore_end=st.booleans(),
    top_logprobs=st.none() | st.integers(0, 20),
    schema=st.none() | texts,
)
tokens = st.builds(Token, ids, logprobs, st.lists(st.tuples(ids, logprobs), max_size=3).map(tuple))


def there_and_back(kind: Kind, head: dict[str, object] | None, parts: list[memoryview]) -> io.BytesIO:
    pipe = io.BytesIO()
    write_frame(pipe, kind, head, parts)
    pipe.seek(0)
    return pipe


@given(prompt=prompts, sampling=samplings)
def test_a_prompt_and_its_sampling_come_as_they_went(prompt: Prompt, sampling: Sampling) -> None:
    head, parts = prompt_to(prompt)
    pipe = there_and_back(Kind.STREAM, {**head, "sampling": asdict(sampling)}, parts)
    frame = read_frame(pipe)
    assert frame is not None
    assert frame.kind is Kind.STREAM
    assert read_frame(pipe) is None
    come, rest = prompt_from(frame.head, frame.rest)
    assert (come, come.scope, len(rest)) == (prompt, prompt.scope, 0)
    for one, other in zip(come.images, prompt.images, strict=True):
        assert one.features.dtype is other.features.dtype
        assert torch.equal(one.features, other.features)
    assert sampling_from(frame.head["sampling"]) == sampling


@given(told=st.lists(st.tuples(st.integers(0, 2**64 - 1), tokens), max_size=5))
def test_tokens_come_as_they_went(told: list[tuple[int, Token]]) -> None:
    frame = read_frame(there_and_back(Kind.TOKENS, None, [tokens_to(told)]))
    assert frame is not None
    assert list(tokens_from(frame.rest)) == told


def test_a_log_probability_of_nothing_comes_as_it_went() -> None:
    ((_, token),) = tokens_from(tokens_to([(1, Token(1, math.nan, ((2, -math.inf),)))]))
    assert math.isnan(token.logprob)
    assert token.top == ((2, -math.inf),)


def test_rows_that_do_not_lie_together_come_as_they_are() -> None:
    rows = torch.arange(24.0).reshape(4, 6).t()[1:5:2]
    told, body = tensor_to(rows)
    come, rest = tensor_from(told, body)
    assert torch.equal(come, rows)
    assert not rest


def test_a_state_comes_as_it_went() -> None:
    state = State("failed", 1, 2, None, 3, "why", 4)
    assert state_from(state_to(state)) == state


@pytest.mark.parametrize(
    "error",
    [
        errors.PromptTooLong(5, 3, 1, 4),
        errors.BadSampling("schema", "no schema"),
        errors.UnknownName("engine", "warp", ["echo"]),
        errors.MissingExtra("this", "vllm"),
        errors.OutOfMemory("no room"),
        errors.CheckpointError("x/y.safetensors: damaged"),
        errors.BadImage("rule", "detail"),
        errors.EngineError(""),
    ],
)
def test_an_error_comes_as_it_went(error: errors.TrifocalError) -> None:
    come = error_from(error_to(error))
    assert type(come) is type(error)
    assert str(come) == str(error)
    assert vars(come) == vars(error)


def test_an_error_that_nobody_here_knows_is_told_as_what_it_is_a_kind_of() -> None:
    class Strange(errors.OutOfMemory):
        def __init__(self) -> None:
            super().__init__("no room")
            self.tensor = torch.zeros(1)

    come = error_from(error_to(Strange()))
    assert (type(come), str(come)) == (errors.OutOfMemory, "no room")
    assert type(error_from({"kind": "SystemExit", "words": "no"})) is errors.EngineError


@given(garbage=st.binary(max_size=80), kind=st.sampled_from([0, *Kind, 99]), claimed=st.integers(0, 2**64 - 1))
def test_what_is_no_frame_is_told_and_nothing_else_happens(garbage: bytes, kind: int, claimed: int) -> None:
    for length in (len(garbage), claimed if claimed < 1000 or claimed > 2**36 else 0):
        pipe = io.BytesIO(length.to_bytes(8, "little") + bytes([kind]) + garbage)
        try:
            frame = read_frame(pipe)
            if frame is not None and frame.kind is Kind.TOKENS:
                list(tokens_from(frame.rest))
            elif frame is not None:
                prompt_from(frame.head, frame.rest)
        except WireError:
            continue


@given(
    spans=st.lists(
        st.one_of(
            st.integers(-3, 9),
            st.lists(st.one_of(st.none(), texts, st.lists(texts | st.lists(st.integers(-9, 2**62)))), max_size=3),
            st.none(),
        ),
        max_size=3,
    ),
    body=st.binary(max_size=64),
)
def test_a_prompt_that_is_none_is_told(spans: list[object], body: bytes) -> None:
    try:
        prompt, _ = prompt_from({"scope": "", "spans": spans}, memoryview(bytearray(body)))
        assert 8 * len(prompt.token_ids) <= len(body)
    except WireError:
        pass
