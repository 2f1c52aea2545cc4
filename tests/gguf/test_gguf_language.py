"""A language model that went into GGUF comes out as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_maker as maker
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

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
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'.*as safetensors instead"),
        ({"llama.rope.dimension_count": 32}, "rope.dimension_count is 32, heads have 64"),
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


LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def with_frequencies(path: Path, factors: torch.Tensor | None, **metadata: Any) -> GgufFile:
    tensors = maker.stored(maker.language_tensors(VOCABULARY), "F32")
    if factors is not None:
        tensors["rope_freqs.weight"] = (factors.numpy(), "F32")
    said = {**maker.LANGUAGE, **{name.replace("__", "."): value for name, value in metadata.items()}}
    return GgufFile(maker.write(path / "a.gguf", said, tensors))


@torch.no_grad()
def logits(config: dict[str, Any], tensors: Any) -> torch.Tensor:
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    made.load_state_dict({name: tensors[name].float() for name in tensors}, strict=True)
    answer: torch.Tensor = made(input_ids=torch.arange(200)[None] % VOCABULARY).logits
    return answer


def test_llama_3s_frequencies_are_those_of_transformers(tmp_path: Path) -> None:
    """Llama 3.1 in GGUF holds what its rule makes of each frequency; 200 positions, 64 of them before it stretches."""
    plain = language_config(with_frequencies(tmp_path, None))
    rule = {**plain, "rope_scaling": LLAMA_3}
    usual, ruled = (LlamaRotaryEmbedding(AutoConfig.for_model(**each)).inv_freq for each in (plain, rule))
    factors = usual / ruled
    assert factors.min() == 1
    assert factors.max() == 8
    language = GgufLanguage(with_frequencies(tmp_path, factors))
    wanted = logits(rule, maker.language_tensors(VOCABULARY))
    ours = LlamaRotaryEmbedding(AutoConfig.for_model(**language.config)).inv_freq
    torch.testing.assert_close(ours, ruled, atol=0, rtol=1e-6)
    torch.testing.assert_close(logits(dict(language.config), language), wanted, atol=1e-4, rtol=0)
    assert not torch.allclose(logits(plain, language), wanted, atol=1e-2)


@pytest.mark.parametrize(
    ("factors", "metadata"),
    [
        (torch.ones(31), {}),
        (torch.zeros(32), {}),
        (torch.full((32,), torch.inf), {}),
        (torch.ones(32), {"llama__rope__scaling__factor": 4.0}),
    ],
)
def test_frequencies_that_make_no_sense_are_told(
    tmp_path: Path, factors: torch.Tensor, metadata: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is"):
        language_config(with_frequencies(tmp_path, factors, **metadata))


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({}, None),
        ({"llama__rope__scaling__factor": 4.0}, 4.0),
        ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}, 4.0),
        ({"llama__rope__scale_linear": 2.0}, 2.0),
        ({"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0}, None),
        ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 1.0}, None),
    ],
)
def test_a_factor_is_linear_unless_it_is_said_otherwise(
    tmp_path: Path, metadata: dict[str, Any], factor: float | None
) -> None:
    config = language_config(with_frequencies(tmp_path, None, **metadata))
    assert config.get("rope_scaling") == (None if factor is None else {"type": "linear", "factor": factor})
