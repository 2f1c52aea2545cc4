"""Tokenizers out of GGUF metadata, held against the ones that wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_maker as maker
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile
from trifocal.gguf.tokenizer import tokenizer


def built(folder: Path, metadata: dict[str, Any]) -> Tokenizer:
    tensors: dict[str, tuple[Any, str]] = {"t": (np.zeros((1, 4)), "F32")}
    return tokenizer(GgufFile(maker.write(folder / "t.gguf", {"general.architecture": "llama", **metadata}, tensors)))


def test_sentencepiece_joins_the_best_scored_pieces(tmp_path: Path) -> None:
    found = built(tmp_path, maker.SENTENCEPIECE)
    pieces = found.encode("cat at").tokens
    assert pieces == [f"{maker.SPACE}cat", maker.SPACE, "at"]
    assert found.encode("cat", add_special_tokens=True).tokens == [f"{maker.SPACE}cat"]


def test_what_is_in_no_piece_falls_back_to_bytes(tmp_path: Path) -> None:
    found = built(tmp_path, maker.SENTENCEPIECE)
    ids = found.encode("\u20ac").ids
    assert [found.id_to_token(at) for at in ids] == [maker.SPACE, "<0xE2>", "<0x82>", "<0xAC>"]
    assert found.decode(ids) == "\u20ac"


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20).filter(lambda text: maker.SPACE not in text))
def test_sentencepiece_gives_every_text_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    found = built(folder, maker.SENTENCEPIECE)
    if not any(token in text for token in ("<unk>", "<s>", "</s>", "<im_patch>")):
        assert found.decode(found.encode(text).ids) == text


def test_control_and_user_tokens_keep_their_ids(tmp_path: Path) -> None:
    found = built(tmp_path, maker.SENTENCEPIECE)
    assert [found.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "<im_patch>")] == [0, 1, 2, 259]
    assert found.encode("a<im_patch>a").ids[2] == 259
    assert found.decode([1, *found.encode("cat").ids, 2]) == "cat"
    assert found.get_vocab_size() == len(maker.SENTENCEPIECE["tokenizer.ggml.tokens"])


@pytest.mark.parametrize("cut", ["default", "gpt-2"])
def test_byte_level_equals_the_tokenizer_it_came_from(tmp_path: Path, cut: str) -> None:
    source = Tokenizer(models.BPE())
    source.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    source.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    source.train_from_iterator(["the cat sat on the mat, the 1234 cats"], trainer)
    state = json.loads(source.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": [*tokens, "<|im_end|>"],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3],
    }
    found = built(tmp_path, metadata)
    for text in ("the cat sat", "th\u00e9 \u732b\n\n 12", " cats  mats"):
        assert found.encode(text).ids == source.encode(text).ids
        assert found.decode(found.encode(text).ids) == text
    assert found.encode("<|im_end|>").ids == [len(tokens)]


def test_qwen_cuts_digits_one_by_one(tmp_path: Path) -> None:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["1 2"]}
    assert built(tmp_path, {**metadata, "tokenizer.ggml.pre": "qwen2"}).encode("12").tokens == ["1", "2"]
    assert built(tmp_path, {**metadata, "tokenizer.ggml.pre": "llama-bpe"}).encode("12").tokens == ["12"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"tokenizer.ggml.model": None}, "'tokenizer.ggml.model' is missing"),
        ({"tokenizer.ggml.scores": [0.0]}, "have 1 scores"),
        ({"tokenizer.ggml.token_type": [1]}, "have 1 types"),
        ({"tokenizer.ggml.unknown_token_id": 99999}, "unknown token is 99999"),
        ({"tokenizer.ggml.tokens": "abc"}, "is no list of texts"),
        ({"tokenizer.ggml.tokens": ["a"] * 269}, "stand in the vocabulary twice"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["ab"]}, "'ab' is no pair"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["x y"]}, "can't be built"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "who"}, "tokenizer.ggml.pre is 'who'"),
    ],
)
def test_tables_that_do_not_go_together(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    metadata = {key: value for key, value in {**maker.SENTENCEPIECE, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=told):
        built(tmp_path, metadata)
