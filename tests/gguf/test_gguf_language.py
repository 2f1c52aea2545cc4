"""A language model that went into GGUF comes out as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_maker as maker
import pytest
import torch

from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile
from trifocal.gguf.language import GgufLanguage, language_config, unpermute

VOCABULARY = 64


def test_golden_permutation() -> None:
    stored = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # hd = 8: stored row r holds row stored[r]
    assert unpermute(stored, 1).tolist() == list(range(8))
    assert unpermute(torch.arange(8), 1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    weight = torch.randn(24, 5)
    assert torch.equal(unpermute(maker.permuted(weight, 3), 3), weight)


@pytest.mark.parametrize("tied", [False, True])
def test_llama_round_trip_is_exact(tmp_path: Path, tied: bool) -> None:
    tensors = maker.language_tensors(VOCABULARY, tied=tied)
    path = maker.write(tmp_path / "a.gguf", maker.LANGUAGE, maker.stored(tensors, "F16"))
    language = GgufLanguage(GgufFile(path))
    assert set(language) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(language[name].float(), tensor), name
    assert language.config["tie_word_embeddings"] is tied
    assert language.config["vocab_size"] == VOCABULARY
    assert language.config["num_key_value_heads"] == maker.KEYS


def test_qwen_has_biases_and_no_permutation(tmp_path: Path) -> None:
    tensors = maker.language_tensors(VOCABULARY, bias=True)
    metadata = {name.replace("llama.", "qwen2."): value for name, value in maker.LANGUAGE.items()}
    metadata["general.architecture"] = "qwen2"
    path = maker.write(tmp_path / "a.gguf", metadata, maker.stored(tensors, "F16", turned=False))
    language = GgufLanguage(GgufFile(path))
    assert language.config["model_type"] == "qwen2"
    assert all(torch.equal(language[name].float(), tensor) for name, tensor in tensors.items())


def test_quantised_matrices_come_near_and_in_the_right_rows(tmp_path: Path) -> None:
    tensors = maker.language_tensors(VOCABULARY)
    path = maker.write(tmp_path / "a.gguf", maker.LANGUAGE, maker.stored(tensors, "Q8_0"))
    language = GgufLanguage(GgufFile(path))
    for name, tensor in tensors.items():
        assert (language[name] - tensor).abs().max() < 0.01, name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"general.architecture": "mamba"}, "general.architecture is 'mamba'"),
        ({"llama.embedding_length": 128}, r"'token_embd.weight' has the shape \[64, 256\], expected \[64, 128\]"),
        ({"llama.block_count": 3}, "model.layers.2.* is missing"),
        ({"llama.block_count": 1}, "blk.1.* has no place"),
        ({"llama.block_count": 2**31}, "2147483648 blocks are told"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"llama.attention.head_count": 3}, "don't go together"),
        ({"llama.attention.head_count": "four"}, "head_count is 'four'"),
        ({"llama.context_length": None}, "'llama.context_length' is missing"),
        ({"llama.rope.scaling.type": "yarn"}, "positions are scaled"),
    ],
)
def test_metadata_that_does_not_fit_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    metadata = {key: value for key, value in {**maker.LANGUAGE, **change}.items() if value is not None}
    path = maker.write(tmp_path / "a.gguf", metadata, maker.stored(maker.language_tensors(VOCABULARY), "F16"))
    with pytest.raises(CheckpointError, match=told) as error:
        GgufLanguage(GgufFile(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight' is missing"), ("token_embd.weight", "is missing")],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str, told: str) -> None:
    tensors = maker.stored(maker.language_tensors(VOCABULARY), "F16")
    del tensors[name]
    path = maker.write(tmp_path / "a.gguf", maker.LANGUAGE, tensors)
    with pytest.raises(CheckpointError, match=told):
        GgufLanguage(GgufFile(path))


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    tensors = maker.stored(maker.language_tensors(VOCABULARY), "F16")
    tensors["blk.0.ffn_gate_inp.weight"] = tensors["token_embd.weight"]
    path = maker.write(tmp_path / "a.gguf", maker.LANGUAGE, tensors)
    with pytest.raises(CheckpointError, match=r"'blk.0.ffn_gate_inp.weight' has no place"):
        GgufLanguage(GgufFile(path))


def test_linear_scaling_of_positions_is_kept(tmp_path: Path) -> None:
    metadata = {**maker.LANGUAGE, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = maker.write(tmp_path / "a.gguf", metadata, maker.stored(maker.language_tensors(VOCABULARY), "F16"))
    assert language_config(GgufFile(path))["rope_scaling"] == {"type": "linear", "factor": 4.0}
