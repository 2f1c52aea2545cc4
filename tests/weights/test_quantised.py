"""A quantised checkpoint reads as the dense one that it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
import torch

from trifocal.errors import CheckpointError
from trifocal.weights.packed import PackedWeights
from trifocal.weights.quantised import SCHEMES, Dense, open_weights

CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
}
SHAPES = {
    "self_attn.q_proj": (256, 256),
    "self_attn.k_proj": (256, 256),
    "self_attn.v_proj": (256, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_proj": (512, 256),
    "mlp.up_proj": (512, 256),
    "mlp.down_proj": (256, 512),
}
PLAIN = {"model.embed_tokens.weight": torch.zeros(64, 256), "model.norm.weight": torch.ones(256)}
GROUP = 128


def checkpoint(layout: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Packed tensors and the dense ones they stand for: one block, the same logical weights in every layout."""
    packed, dense = dict(PLAIN), dict(PLAIN)
    for seed, (name, (outputs, inputs)) in enumerate(SHAPES.items()):
        levels, zeros, scales = packers.layer(outputs, inputs, inputs // GROUP, seed=seed)
        group = np.arange(inputs) // GROUP
        made = {
            "gptq": lambda *given: packers.gptq(*given, 4),
            "old": lambda *given: packers.gptq(*given, 4),
            "gptq_v2": lambda *given: packers.gptq(*given, 4, stored_zero=True),
            "gemm": packers.awq_gemm,
            "gemv": packers.awq_gemv,
            "gemv_fast": packers.awq_gemv_fast,
        }[layout](levels, zeros, scales)
        if layout == "old":
            made |= {"bias": torch.zeros(outputs), "scales": scales.float()}
        if layout in ("gptq", "gptq_v2"):
            made["g_idx"] = torch.from_numpy(group).int()
        packed |= {f"model.layers.0.{name}.{part}": tensor for part, tensor in made.items()}
        dense[f"model.layers.0.{name}.weight"] = packers.weight(levels, zeros, scales, group)
    return packed, dense


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
    "old": {"quant_method": "gptq", "bits": 4, "group_size": GROUP},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    "gemm": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
    "gemv": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemv"},
    "gemv_fast": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemv_fast"},
}


@pytest.fixture(scope="module", params=DESCRIPTIONS)
def layout(request: pytest.FixtureRequest) -> tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return (request.param, *checkpoint(request.param))


def same(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    assert len(found) == len(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_described_in_config_json(layout: Any, tmp_path: Path) -> None:
    name, packed, dense = layout
    found = open_weights(packed, {**CONFIG, "quantization_config": DESCRIPTIONS[name]}, tmp_path)
    same(found, dense)
    assert isinstance(found, PackedWeights)
    layer = found.packed("model.layers.0.mlp.down_proj.weight")
    assert layer is not None
    assert (layer.bits, tuple(layer.levels.shape), layer.bias) == (4, (256, 512), None)
    assert found.packed("model.norm.weight") is None


def test_described_in_a_file_of_its_own(layout: Any, tmp_path: Path) -> None:
    name, packed, dense = layout
    given = {key: value for key, value in DESCRIPTIONS[name].items() if key != "quant_method"}
    file = "quantize_config.json" if DESCRIPTIONS[name]["quant_method"] == "gptq" else "quant_config.json"
    (tmp_path / file).write_text(json.dumps(given))
    same(open_weights(packed, CONFIG, tmp_path), dense)


@pytest.mark.parametrize("layout", ["gptq", "old", "gemm"])
def test_told_apart_by_the_tensors_alone(layout: str, tmp_path: Path) -> None:
    packed, dense = checkpoint(layout)
    same(open_weights(packed, CONFIG, tmp_path), dense)


@pytest.mark.parametrize("layout", ["gemv", "gemv_fast"])
def test_what_the_tensors_alone_cannot_tell_is_asked_for(layout: str, tmp_path: Path) -> None:
    found = open_weights(checkpoint(layout)[0], CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match=r"quant_config\.json"):
        found["model.layers.0.mlp.gate_proj.weight"]


def test_ordinary_weights_stay_as_they_are(tmp_path: Path) -> None:
    assert open_weights(PLAIN, CONFIG, tmp_path) is PLAIN


def test_a_bias_of_zeros_goes_and_a_real_one_stays(tmp_path: Path) -> None:
    packed, _ = checkpoint("old")
    packed["model.layers.0.mlp.up_proj.bias"] = torch.ones(512)
    found = open_weights(packed, CONFIG, tmp_path)
    assert [name for name in found if name.endswith(".bias")] == ["model.layers.0.mlp.up_proj.bias"]
    assert found["model.layers.0.mlp.up_proj.bias"].tolist() == [1.0] * 512
    layer = found.packed("model.layers.0.mlp.up_proj.weight")  # type: ignore[attr-defined]
    assert layer.bias is not None
    qwen = open_weights(packed, {**CONFIG, "model_type": "qwen2"}, tmp_path)
    assert "model.layers.0.self_attn.q_proj.bias" in qwen
    assert "model.layers.0.self_attn.o_proj.bias" not in qwen


def test_float8_among_ordinary_layers(tmp_path: Path) -> None:
    weight = torch.randn(256, 256).to(torch.float8_e4m3fn)
    tensors = {
        **PLAIN,
        "model.layers.0.self_attn.q_proj.weight": weight,
        "model.layers.0.self_attn.q_proj.weight_scale": torch.tensor(0.5),
    }
    config = {**CONFIG, "quantization_config": {"quant_method": "fp8"}}
    found = open_weights(tensors, config, tmp_path)
    assert list(found) == [*PLAIN, "model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(found["model.layers.0.self_attn.q_proj.weight"], weight.float() / 2)


@pytest.mark.parametrize("described", [True, False])
def test_rows_of_bitsandbytes_among_ordinary_layers(described: bool, tmp_path: Path) -> None:
    rows, highest = torch.randint(-127, 128, (512, 256), dtype=torch.int8), torch.rand(512)
    layer = "model.layers.0.mlp.up_proj"
    tensors = {**PLAIN, f"{layer}.weight": rows, f"{layer}.SCB": highest, f"{layer}.weight_format": torch.tensor(0)}
    config = CONFIG | ({"quantization_config": {"quant_method": "bitsandbytes"}} if described else {})
    found = open_weights(tensors, config, tmp_path)
    assert list(found) == [*PLAIN, f"{layer}.weight"]
    assert torch.equal(found[f"{layer}.weight"], rows * (highest / 127)[:, None])
    assert found.packed(f"{layer}.weight") is None  # type: ignore[attr-defined]


def test_unknown_kinds_are_refused_by_name(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "aqlm"}}
    with pytest.raises(CheckpointError, match=rf"'aqlm'; can be read: .*{max(SCHEMES)}"):
        open_weights(PLAIN, config, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_damaged_description_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "quantize_config.json").write_text(content, "utf-8", "surrogateescape")
    with pytest.raises(CheckpointError, match=r"quantize_config\.json"):
        open_weights(checkpoint("gptq")[0], CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": 512}, "tensor 'model.layers.0.self_attn.q_proj.qweight'"),
        ({"hidden_size": None}, "says no 'hidden_size'"),
    ],
)
def test_a_configuration_that_does_not_fit(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    packed, _ = checkpoint("gptq")
    config = {key: value for key, value in {**CONFIG, **change}.items() if value is not None}
    found = open_weights(packed, config, tmp_path, lambda name: "part.safetensors")
    with pytest.raises(CheckpointError, match=f"^part.safetensors: .*{told}"):
        found["model.layers.0.self_attn.q_proj.weight"]


def test_a_missing_marker_and_a_layer_of_another_part(tmp_path: Path) -> None:
    packed, _ = checkpoint("gptq")
    alone = {name: tensor for name, tensor in packed.items() if name != "model.layers.0.mlp.up_proj.qweight"}
    with pytest.raises(CheckpointError, match=r"'model.layers.0.mlp.up_proj.qweight' is missing"):
        open_weights(alone, CONFIG, tmp_path)
    packed["model.layers.0.mlp.expert.qweight"] = packed["model.layers.0.mlp.up_proj.qweight"]
    with pytest.raises(CheckpointError, match=r"layer 'model.layers.0.mlp.expert' is quantised"):
        open_weights(packed, CONFIG, tmp_path)["model.layers.0.mlp.expert.weight"]
    with pytest.raises(KeyError):
        open_weights(packed, CONFIG, tmp_path)["model.layers.0.mlp.none.weight"]


def test_a_description_without_packed_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor is called '...qweight'"):
        open_weights(PLAIN, {**CONFIG, "quantization_config": DESCRIPTIONS["gptq"]}, tmp_path)


def test_order_and_len_follow_the_file(tmp_path: Path) -> None:
    packed, dense = checkpoint("gptq")
    found = open_weights(packed, CONFIG, tmp_path)
    assert isinstance(found, Dense)
    assert list(found) == list(dense)
