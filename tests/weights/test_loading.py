"""Quantised language halves through the ordinary door: found, loaded, and equal to what they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from checkpoint_maker import llama_tokenizer, make_v0, save_tokenizer, shaken
from trifocal.checkpoints import find_checkpoint, from_folder, language_recipe
from trifocal.engines.int4 import Int4Linear
from trifocal.engines.language import open_language
from trifocal.engines.transformers import load
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import Prompt, TokenSpan

GROUP = 64
DIMS: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", params=["old CUDA", "act-order", "AWQ"])
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A language half as it was released, and the model with just the weights that it stands for."""
    folder = tmp_path_factory.mktemp("quantised")
    tokenizer = llama_tokenizer(["<im_patch>", "<im_start>", "<im_end>"])
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    config = LlamaConfig(**DIMS, vocab_size=tokenizer.get_vocab_size())
    model = LlamaForCausalLM(config)
    shaken(model, 0)
    random, tensors = np.random.default_rng(0), {}
    for name, parameter in model.state_dict().items():
        layer = name.rpartition(".")[0]
        if not layer.endswith(LINEARS):
            tensors[name] = parameter.half()
            parameter.copy_(tensors[name])
            continue
        levels, zeros, scales, group = packers.nearest(
            parameter, random, size=GROUP, ordered=request.param == "act-order"
        )
        parameter.copy_(packers.weight(levels, zeros, scales, group))
        made = (
            packers.awq_gemm(levels, zeros, scales)
            if request.param == "AWQ"
            else packers.gptq(levels, zeros, scales, 4)
        )
        if request.param == "old CUDA":
            made["bias"] = torch.zeros(len(parameter))
        if request.param == "act-order":
            made |= {"scales": made["scales"].half(), "g_idx": torch.from_numpy(group).int()}
        tensors |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in made.items()}
    if request.param == "old CUDA":
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)
    save_file(tensors, folder / "llava-13b-v0-4bit-128g.safetensors")
    values = {**config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    if request.param == "AWQ":
        values["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    if request.param == "act-order":
        (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": GROUP, "desc_act": True}))
    (folder / "config.json").write_text(json.dumps(values))
    return folder, model.eval()


@pytest.fixture
def language(released: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> Any:
    """Found as in the seed: the tower from one place, the projector from another."""
    places = make_v0(tmp_path / "v0")
    checkpoint = from_folder(released[0], tower=str(places.tower), projector=str(places.projector))
    return language_recipe(checkpoint)


IDS = [1, 300, 310, 320, 290, 280]


def greedy(model: LlamaForCausalLM, steps: int) -> list[int]:
    ids = torch.tensor([IDS])
    for _ in range(steps):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(IDS) :].tolist()


@torch.inference_mode()
def test_dequantised_it_is_the_model_it_stands_for(released: Any, language: Any) -> None:
    engine = load(language, Placement("cpu", "float32"))
    expected = released[1].state_dict()
    found = engine.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    answer = [token.id for token in engine.stream(Prompt((TokenSpan(tuple(IDS)),)), Sampling(max_tokens=6))]
    assert answer == greedy(released[1], 6)[: len(answer)]
    assert answer


@torch.inference_mode()
def test_packed_it_comes_within_bfloat16(released: Any, language: Any) -> None:
    engine = load(language, Placement("cpu", "float32"), int4=True)
    packed = [name for name, module in engine.model.named_modules() if isinstance(module, Int4Linear)]
    assert len(packed) == 2 * len(LINEARS)
    ids = torch.tensor([IDS])
    expected, found = released[1](ids).logits, engine.model(ids).logits
    assert (found - expected).norm() / expected.norm() < 0.05


def test_the_seed_release_by_its_name(released: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = make_v0(tmp_path / "v0", pickle=True)
    name = "wojtab/llava-13b-v0-4bit-128g"
    hub = {
        name: released[0],
        "openai/clip-vit-large-patch14": places.tower,
        "liuhaotian/LLaVA-13b-delta-v0/mm_projector.bin": places.projector,
    }
    monkeypatch.setattr("trifocal.checkpoints.finding.locate", lambda asked, patterns: hub[asked])
    checkpoint = find_checkpoint(name)
    assert (checkpoint.name, checkpoint.template, checkpoint.family) == (name, "llava_v0_webui", "llava-v0")
    assert (checkpoint.image_start, checkpoint.projector.kind) == ("<im_start>", "linear")
    weights = open_language(language_recipe(checkpoint)).weights
    assert set(weights) == set(released[1].state_dict())
    last = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(weights[last], released[1].state_dict()[last])
