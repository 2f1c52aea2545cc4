"""The language half against transformers' ``generate`` on the same spliced embeddings, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoint_maker import llama_tokenizer, save_tokenizer
from logits import logits_along
from recipes import written
from trifocal.engines.transformers import Transformers, load
from trifocal.errors import CheckpointError
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt, Span, TokenSpan

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 400,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama 3": {"model_type": "llama", "num_key_value_heads": 2, "rope_scaling": LLAMA3_ROPE},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
    "mistral, window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 8},
    "qwen2, tied": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gemma 2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
    "cohere 2": {"model_type": "cohere2", "num_key_value_heads": 2, "sliding_window": 8},
    "qwen3, tied": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
}
LONG = Sampling(max_tokens=64, ignore_end=True)


def picture(seed: int) -> ImageSpan:
    return ImageSpan(torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) / 20, f"picture {seed}")


FIRST, LAST = TokenSpan((1, 9, 10)), TokenSpan((5, 6, 7))
ORDERS: dict[str, list[Span]] = {
    "one first": [picture(1), LAST],
    "one middle": [FIRST, picture(1), LAST],
    "one last": [FIRST, picture(1)],
    "three together": [FIRST, picture(1), picture(2), picture(3), LAST],
    "three apart": [picture(1), FIRST, picture(2), LAST, picture(3)],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(llama_tokenizer(["<x>"]), folder)
    return folder


def pair(family: dict[str, Any], folder: Path, dtype: str, **options: int) -> tuple[Transformers, Any]:
    """The engine and the reference with the same random weights."""
    values = {**SIZES, **family}
    kind = values.pop("model_type")
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **values), dtype=getattr(torch, dtype)
    ).eval()
    weights = dict(reference.state_dict())
    if values.get("tie_word_embeddings"):
        weights.pop("lm_head.weight")
    recipe = written(folder, {**values, "model_type": kind}, weights, folder)
    return load(recipe, Placement("cpu", dtype), **options), reference


def along(reference: Any, prompt: Prompt, said: list[int]) -> torch.Tensor:
    """The reference's logits before each token that was said, its end tokens forbidden."""
    end = reference.generation_config.eos_token_id
    rows = prompt.splice(reference.get_input_embeddings())[None]
    return logits_along(reference, said, [] if end is None else [end], inputs_embeds=rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_logits_and_64_tokens_are_those_of_transformers(family: dict[str, Any], dtype: str, tokenizer: Path) -> None:
    # without the prefix cache: rows that were computed beside others differ in bfloat16's last bit,
    # and tied logits fall the other way
    engine, reference = pair(family, tokenizer, dtype, prefix_cache=0)
    for spans in ORDERS.values():
        prompt = Prompt(spans)
        with torch.no_grad():
            theirs = reference(inputs_embeds=prompt.splice(reference.get_input_embeddings())[None]).logits
            ours = engine.model(inputs_embeds=prompt.splice(engine.embed)[None]).logits
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        said = [token.id for token in engine.stream(prompt, LONG)]
        wanted = along(reference, prompt, said).float()
        if dtype == "float32":
            assert said == wanted.argmax(-1).tolist()
        # in bfloat16 rows that are computed together round otherwise, and what is tied falls the other way: no token is
        # further below the best one than by its two last bits
        best, ours = wanted.max(-1).values, wanted.gather(-1, torch.tensor(said)[:, None])[:, 0]
        assert ((best - ours) <= 2**-6 * best.abs()).all()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_second_turn_from_the_cache_is_that_of_transformers(family: dict[str, Any], tokenizer: Path) -> None:
    engine, reference = pair(family, tokenizer, "float32")
    first = Prompt(ORDERS["one middle"])
    said = [token.id for token in engine.stream(first, LONG)]
    for ids in ((*said, 11, 12), (*said[:20], 13)):
        second = Prompt([*first.spans, TokenSpan(ids), picture(2), LAST])
        answer = [token.id for token in engine.stream(second, LONG)]
        assert answer == along(reference, second, answer).argmax(-1).tolist()


def test_a_family_whose_buffers_we_can_not_fill_is_refused(tokenizer: Path) -> None:
    with pytest.raises(CheckpointError, match="'xglm' computes values in 'embed_positions'"):
        pair({"model_type": "xglm", "d_model": 64, "attention_heads": 4, "num_layers": 2}, tokenizer, "float32")


def test_a_family_that_keeps_more_than_keys_and_values_is_refused(tokenizer: Path) -> None:
    layers = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
    with pytest.raises(CheckpointError, match="'lfm2' keeps other states than keys and values: conv"):
        pair({"model_type": "lfm2", "num_key_value_heads": 2, **layers}, tokenizer, "float32")
