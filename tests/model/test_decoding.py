"""Text comes as soon as it is sure, and nothing that was given out is ever taken back."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_maker import bytes_tokenizer, llama_tokenizer, save_tokenizer
from trifocal.engines.base import Tokenizer
from trifocal.engines.echo import Bytes
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.messages import Chunk, End, Sampling
from trifocal.model.decoding import Decoder, collect, stream_text
from trifocal.tokens.folder import read_words


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    made: list[Tokenizer] = [Bytes()]
    for name, tokenizer in [("llama", llama_tokenizer(["<x>"])), ("bytes", bytes_tokenizer(["<x>"]))]:
        folder = tmp_path_factory.mktemp(name)
        save_tokenizer(tokenizer, folder)
        made.append(FileTokenizer(read_words(folder)))
    return made


def ids_of(ids: list[int], closed: list[bool] | None = None) -> Generator[int, None, None]:
    try:
        yield from ids
    finally:
        if closed is not None:
            closed.append(True)


def said(ids: list[int], tokenizer: Tokenizer, *stops: str, limit: int | None = None) -> tuple[list[str], str, int]:
    pieces = list(stream_text(ids_of(ids), tokenizer, Sampling(stop=stops, max_tokens=limit)))
    assert [piece.finish is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    return [piece.text for piece in pieces], str(pieces[-1].finish), pieces[-1].tokens


@given(text=st.text(max_size=30))
def test_the_pieces_make_the_whole_text(tokenizers: list[Tokenizer], text: str) -> None:
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text, start=False)
        pieces, finish, count = said(ids, tokenizer)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert (finish, count) == ("stop", len(ids))


@given(
    text=st.text(alphabet="ab#\n é😀", max_size=40),
    stops=st.lists(st.text(alphabet="ab#\n", min_size=1, max_size=4), max_size=3),
)
def test_an_answer_ends_before_the_stop_string_that_is_whole_first(text: str, stops: list[str]) -> None:
    tokenizer = Bytes()
    pieces, finish, _ = said(tokenizer.encode(text, start=False), tokenizer, *stops)
    starts = [text[:end] for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)]
    at = min(starts[0].find(stop) for stop in stops if stop in starts[0]) if starts else len(text)
    assert "".join(pieces) == text[:at]
    assert finish == "stop"


def test_half_a_character_is_held_back() -> None:
    decoder = Decoder(Bytes())
    given_out = [decoder.push(i) for i in Bytes().encode("a😀é", start=False)]
    assert given_out == ["a", "", "", "", "😀", "", "é"]


def test_ids_without_text_are_not_decoded_again_and_again() -> None:
    asked: list[int] = []

    class Counting(Bytes):
        def decode(self, ids: list[int]) -> str:
            asked.append(len(ids))
            return super().decode([i for i in ids if i < 1000])

    first, last = Bytes().encode("ab", start=False)
    decoder = Decoder(Counting())
    text = [decoder.push(i) for i in (first, *[1000] * 500, last)]
    assert "".join(text) + decoder.flush() == "ab"
    assert sum(asked) < 10 * len(text)


def test_a_real_replacement_character_does_not_stop_the_stream() -> None:
    tokenizer = Bytes()
    broken = [*tokenizer.encode("a", start=False), tokenizer.encode("é", start=False)[0]]
    ids = [*broken, *tokenizer.encode(" and on \N{REPLACEMENT CHARACTER} it goes", start=False)]
    pieces, _, _ = said(ids, tokenizer)
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER} and on \N{REPLACEMENT CHARACTER} it goes"


def test_half_a_stop_string_is_held_back_and_given_out_when_it_is_none() -> None:
    tokenizer = Bytes()
    pieces, _, _ = said(tokenizer.encode("x##y###z", start=False), tokenizer, "###")
    assert pieces == ["x", "##y", ""]


def test_the_engine_is_closed_at_a_stop_and_when_the_reader_leaves() -> None:
    tokenizer = Bytes()
    for stops in (("b",), ()):
        closed: list[bool] = []
        stream = stream_text(ids_of(tokenizer.encode("abc", start=False), closed), tokenizer, Sampling(stop=stops))
        next(stream)
        if stops:
            list(stream)
        else:
            stream.close()
        assert closed == [True]


def test_running_into_the_limit_is_told() -> None:
    tokenizer = Bytes()
    assert said(tokenizer.encode("abc", start=False), tokenizer, limit=3)[1] == "length"
    assert said(tokenizer.encode("abc", start=False), tokenizer, limit=4)[1] == "stop"
    assert said(tokenizer.encode("ab#", start=False), tokenizer, "#", limit=3)[1] == "stop"


def test_chunks_become_a_reply() -> None:
    end = End("stop", 3, 1, 2)
    reply = collect([Chunk("a"), Chunk("b"), Chunk("c", end)])
    assert (reply.text, reply.end) == ("abc", end)
