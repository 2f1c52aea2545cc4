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

from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile
from trifocal.gguf.ends import ENDING, end_tokens
from trifocal.gguf.tokenizer import tokenizer
from trifocal.tokens.bytelevel import PRE
from trifocal.tokens.words import Words


def built(folder: Path, metadata: dict[str, Any]) -> FileTokenizer:
    return FileTokenizer(words(folder, metadata))


def words(folder: Path, metadata: dict[str, Any]) -> Words:
    tensors: dict[str, tuple[Any, str]] = {"t": (np.zeros((1, 4)), "F32")}
    return tokenizer(GgufFile(maker.write(folder / "t.gguf", {"general.architecture": "llama", **metadata}, tensors)))


def shown(found: Words, text: str) -> list[str]:
    """The tokens of a text, as the file calls them."""
    ids = FileTokenizer(found).encode(text, start=False)
    return [str(found.backend.id_to_token(at)) for at in ids]


def test_sentencepiece_joins_the_best_scored_pieces(tmp_path: Path) -> None:
    found = words(tmp_path, maker.SENTENCEPIECE)
    assert shown(found, "cat at") == [f"{maker.SPACE}cat", maker.SPACE, "at"]


def test_what_is_in_no_piece_falls_back_to_bytes(tmp_path: Path) -> None:
    found = words(tmp_path, maker.SENTENCEPIECE)
    assert shown(found, "\u20ac") == [maker.SPACE, "<0xE2>", "<0x82>", "<0xAC>"]
    assert built(tmp_path, maker.SENTENCEPIECE).decode([found.backend.token_to_id("<0xE2>")]) == "\ufffd"


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20).filter(lambda text: maker.SPACE not in text))
def test_sentencepiece_gives_every_text_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    found = built(tmp_path_factory.getbasetemp(), maker.SENTENCEPIECE)
    assert found.decode(found.encode(text, start=False)) == text


def test_control_and_user_tokens_keep_their_ids(tmp_path: Path) -> None:
    found = built(tmp_path, maker.SENTENCEPIECE)
    assert [found.token(token) for token in ("<unk>", "<s>", "</s>", "<im_patch>")] == [0, 1, 2, 259]
    assert found.decode([1, *found.encode("cat", start=False), 2]) == "cat"
    typed = found.encode("a</s>b<im_patch>", start=False)
    assert not {1, 2, 259} & set(typed)
    assert found.decode(typed) == "a</s>b<im_patch>"


def test_no_merge_spells_a_control_token(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "<", "s", ">", "<s", "a", maker.SPACE]
    table = {
        "tokens": tokens,
        "scores": [0.0, 9.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0],
        "token_type": [2, 3, 1, 1, 1, 1, 1, 1],
    }
    metadata = {"tokenizer.ggml.model": "llama", **{f"tokenizer.ggml.{key}": value for key, value in table.items()}}
    assert shown(words(tmp_path, metadata), "a<s>") == [maker.SPACE, "a", "<s", ">"]


def test_tokens_of_the_maker_are_found_whole_and_shown(tmp_path: Path) -> None:
    tokens = ["<unk>", "<table>", "a", maker.SPACE, "  "]
    table = {"tokens": tokens, "scores": [0.0] * 5, "token_type": [2, 4, 1, 1, 4]}
    metadata = {"tokenizer.ggml.model": "llama", **{f"tokenizer.ggml.{key}": value for key, value in table.items()}}
    bare = {**metadata, "tokenizer.ggml.add_space_prefix": False}
    assert FileTokenizer(words(tmp_path, bare)).encode("a<table>a  a", start=False) == [2, 1, 2, 4, 2]
    prefixed = FileTokenizer(words(tmp_path, metadata))
    assert prefixed.encode("a<table>a", start=False) == [3, 2, 1, 3, 2]
    assert prefixed.decode([2, 1, 2]) == "a<table>a"


def byte_level(merged: str) -> tuple[Tokenizer, dict[str, Any]]:
    """A byte-level tokenizer whose merges were learned from a text, and its tables."""
    source = Tokenizer(models.BPE())
    source.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    source.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    source.train_from_iterator([merged], trainer)
    state = json.loads(source.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    return source, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*tokens, "<|im_end|>"],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3],
    }


def test_byte_level_equals_the_tokenizer_it_came_from(tmp_path: Path) -> None:
    source, metadata = byte_level("the cat sat on the mat, the 1234 cats")
    found = built(tmp_path, {**metadata, "tokenizer.ggml.pre": "gpt-2"})
    for text in ("the cat sat", "th\u00e9 \u732b\n\n 12", " cats  mats"):
        assert found.encode(text, start=False) == source.encode(text).ids
        assert found.decode(found.encode(text, start=False)) == text
    end = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert found.token("<|im_end|>") == end
    assert end not in found.encode("<|im_end|>", start=False)


def test_qwen_cuts_digits_one_by_one(tmp_path: Path) -> None:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["1 2"]}
    assert shown(words(tmp_path, {**metadata, "tokenizer.ggml.pre": "qwen2"}), "12") == ["1", "2"]
    assert shown(words(tmp_path, {**metadata, "tokenizer.ggml.pre": "llama-bpe"}), "12") == ["12"]


# of which llama.cpp takes a word that is a token as it is, whatever its merges make of it (`ignore_merges`)
WHOLE = {
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "glm4",
    "glm5",
    "tekken",
    "granite-embed-multi-97m",
    "minicpm5",
    "youtu",
}


def test_a_word_that_no_merge_makes_is_taken_whole_where_its_family_does(tmp_path: Path) -> None:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ze", "zebra"]
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["z e"]}
    found = {pre: shown(words(tmp_path, {**metadata, "tokenizer.ggml.pre": pre}), "zebra") for pre in PRE}
    assert found == {pre: ["zebra"] if pre in WHOLE else ["ze", "b", "r", "a"] for pre in PRE}


def test_a_family_begins_where_its_file_does_not_say(tmp_path: Path) -> None:
    _, metadata = byte_level("cat")
    told = {**metadata, "tokenizer.ggml.bos_token_id": 7}
    assert built(tmp_path, {**told, "tokenizer.ggml.pre": "llama-bpe"}).encode("", start=True) == [7]
    assert built(tmp_path, {**told, "tokenizer.ggml.pre": "qwen2"}).encode("", start=True) == []
    silent = {**told, "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}
    assert built(tmp_path, silent).encode("", start=True) == []
    asked = {**told, "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": True}
    assert built(tmp_path, asked).encode("", start=True) == [7]


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
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": ["qwen2"]}, r"tokenizer.ggml.pre is \['qwen2'\]"),
        ({"tokenizer.ggml.model": ["gpt2"]}, r"tokenizer.ggml.model is \['gpt2'\]"),
        ({"tokenizer.ggml.unknown_token_id": "0"}, "unknown token is '0'"),
        ({"tokenizer.ggml.bos_token_id": "1"}, "beginning token is '1'"),
        ({"tokenizer.ggml.add_bos_token": "no"}, "add_bos_token is 'no', true or false"),
        ({"tokenizer.ggml.token_type": ["1"]}, "token_type is no list of numbers"),
        ({"tokenizer.ggml.scores": [float("nan")]}, "scores is no list of numbers"),
    ],
)
def test_tables_that_do_not_go_together(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    metadata = {key: value for key, value in {**maker.SENTENCEPIECE, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=told):
        built(tmp_path, metadata)


@pytest.mark.parametrize(
    ("named", "keys", "ends"),
    [  # each held against llama.cpp's `llama_vocab_is_eog`
        ({}, {}, ["</s>"]),
        ({"<|eot_id|>": 3, "<|eom_id|>": 3, "<|other|>": 3}, {}, ["</s>", "<|eom_id|>", "<|eot_id|>"]),
        ({"<|end|>": 4}, {"eos": 5, "eot": 7, "eom": 9}, ["<0x02>", "<0x04>", "<0x06>", "</s>", "<|end|>"]),
        ({"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}, {}, ["</s>", "<|call|>", "<|return|>"]),
        ({"<|tool_response>": 3, "<turn|>": 3}, {"eos": 5}, ["<0x02>", "<turn|>", "<|tool_response>"]),
        (
            {"<|file_sep|>": 4, "<PAD>": 3, "<fim_pad>": 3},
            {"fim_rep": 8},
            ["</s>", "<0x05>", "<fim_pad>", "<|file_sep|>"],
        ),
    ],
)
def test_what_ends_an_answer_is_what_llama_cpp_ends_at(
    tmp_path: Path, named: dict[str, int], keys: dict[str, int], ends: list[str]
) -> None:
    tokens, scores, kinds = (
        maker.SENTENCEPIECE[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
    )
    told = {
        **maker.SENTENCEPIECE,
        "tokenizer.ggml.tokens": [*tokens, *named],
        "tokenizer.ggml.scores": [*scores, *[0.0] * len(named)],
        "tokenizer.ggml.token_type": [*kinds, *named.values()],
        **{f"tokenizer.ggml.{key}_token_id": at for key, at in keys.items()},
    }
    file = GgufFile(
        maker.write(tmp_path / "t.gguf", {"general.architecture": "llama", **told}, {"t": (np.zeros((1, 4)), "F32")})
    )
    found = [file.metadata["tokenizer.ggml.tokens"][at] for at in end_tokens(file)]
    assert found[0] == ends[0]
    assert sorted(found) == sorted(ends)
    words = tokenizer(file)
    assert all(words.added[name].special for name in named if name in ENDING)


def test_sentencepiece_begins_with_its_first_token_where_no_key_names_another(tmp_path: Path) -> None:
    """As in llama.cpp, whose old converters left out what a folder's settings did not say."""
    assert built(tmp_path, maker.SENTENCEPIECE).start == [1]
    assert built(tmp_path, {**maker.SENTENCEPIECE, "tokenizer.ggml.add_bos_token": False}).start == []
    assert built(tmp_path, {**maker.SENTENCEPIECE, "tokenizer.ggml.bos_token_id": 5}).start == [5]


def test_a_word_of_the_vocabulary_that_is_called_like_an_end_stays_one(tmp_path: Path) -> None:
    """llama.cpp ends at it; a page that strikes a text out would be cut short."""
    told = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.token_type": [1, 1],
    }
    file = GgufFile(maker.write(tmp_path / "t.gguf", told, {"t": (np.zeros((1, 4)), "F32")}))
    assert end_tokens(file) == []


@pytest.mark.parametrize("value", [[1, 2], "</s>", 2.0, True])
def test_an_end_that_is_no_id_is_told_by_its_key(tmp_path: Path, value: Any) -> None:
    told = {"general.architecture": "llama", "tokenizer.ggml.tokens": 5, "tokenizer.ggml.eot_token_id": value}
    file = GgufFile(maker.write(tmp_path / "t.gguf", told, {"t": (np.zeros((1, 4)), "F32")}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.eot_token_id is"):
        end_tokens(file)
