"""SentencePiece models with pieces of every kind, held against sentencepiece's own library on odd texts.

Its maker's own pieces, pieces that are not used and bytes, of byte pairs and of unigrams.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from odd_texts import ODD

from trifocal.engines.tokenizer import FileTokenizer
from trifocal.tokens.folder import read_words
from trifocal.tokens.pieces import _fields

LLAMA = Path(__file__).parents[1] / "data" / "tokens" / "llama.model"
NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5
TEXTS = [text.encode("utf-8", "replace").decode() for text in ODD]


def varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def field(key: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(key << 3) + varint(value)
    return varint(key << 3 | 2) + varint(len(value)) + value


def with_kinds(model: bytes, kind_of: Callable[[int, str], int]) -> bytes:
    """The model with other kinds for its ordinary pieces."""
    made, at = b"", 0
    for key, value in _fields(model):
        if key == 1:
            assert isinstance(value, bytes)
            piece = dict(_fields(value))
            name, score, kind = piece[1], piece.get(2, bytes(4)), piece.get(3, NORMAL)
            assert isinstance(name, bytes)
            assert isinstance(score, bytes)
            kind = kind_of(at, name.decode()) if kind == NORMAL else kind
            value = field(1, name) + varint(2 << 3 | 5) + score + field(3, kind)
            at += 1
        made += field(key, value)
    return made


def unigram(**options: object) -> bytes:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text().splitlines() * 2), model_writer=made, model_type="unigram",
        vocab_size=400, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    return made.getvalue()


def check(folder: Path, model: bytes) -> FileTokenizer:
    """Ids and texts are sentencepiece's; of ways that score alike, either is its."""
    (folder / "tokenizer.model").write_bytes(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = FileTokenizer(read_words(folder, slow=True), rows=theirs.get_piece_size(), begins=True, parts=True)
    assert ours.largest < theirs.get_piece_size()
    for text in TEXTS:
        wanted, found = theirs.encode(text), ours.encode(text, start=False)
        scores = [sum(theirs.get_score(at) for at in ids) for ids in (wanted, found)]
        assert found == wanted or (len(found) == len(wanted) and scores[0] == pytest.approx(scores[1], abs=1e-4)), text
        assert ours.decode(wanted) == theirs.decode(wanted), text
    return ours


@pytest.mark.parametrize(
    "unused",
    [lambda at, name: at % 5 == 0 and len(name) > 1, lambda at, name: len(name) == 2, lambda at, name: at % 7 == 0],
    ids=["each fifth", "each pair", "letters, too"],
)
def test_pieces_that_are_not_used_fall_apart_into_what_they_were_joined_of(
    tmp_path: Path, unused: Callable[[int, str], bool]
) -> None:
    check(tmp_path, with_kinds(LLAMA.read_bytes(), lambda at, name: UNUSED if unused(at, name) else NORMAL))


@pytest.mark.parametrize("kind", [USER, CONTROL])
def test_pieces_of_its_maker_and_control_pieces(tmp_path: Path, kind: int) -> None:
    model = with_kinds(LLAMA.read_bytes(), lambda at, name: kind if at % 9 == 0 and len(name) > 1 else NORMAL)
    check(tmp_path, model)


def test_a_piece_with_a_space_in_its_name_is_never_found(tmp_path: Path) -> None:
    model = LLAMA.read_bytes() + field(1, field(1, b" He") + field(3, USER))
    assert check(tmp_path, model).encode("a Hello", start=False)


def test_the_makers_pieces_of_a_unigram_model_keep_their_ids(tmp_path: Path) -> None:
    """They were numbered anew, beyond the vocabulary, as the beginning and the end of a text among others."""
    ours = check(tmp_path, unigram(user_defined_symbols=["<img>", "don", "12", "ello"]))
    assert [at for at in ours.encode("don't 12", start=False) if at in (4, 5)] == [4, 5]


@pytest.mark.parametrize("unused", [False, True])
def test_a_typed_name_of_a_byte_is_text_to_a_unigram_model(tmp_path: Path, unused: bool) -> None:
    model = unigram()
    if unused:
        model = with_kinds(model, lambda at, name: UNUSED if at % 5 == 0 and len(name) > 1 else NORMAL)
    assert len(check(tmp_path, model).encode("<0x41>", start=False)) > 3
