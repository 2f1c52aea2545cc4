"""Eight-bit floats: one scale, one a row, one a block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trifocal.errors import CheckpointError
from trifocal.weights.fp8 import Fp8
from trifocal.weights.parts import Parts

WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)


def dense(scheme: Fp8, **tensors: torch.Tensor) -> torch.Tensor:
    return scheme.dense(Parts("model.layers.0.mlp.up_proj", "shard.safetensors", 6, 8, tensors))


@pytest.mark.parametrize("shape", [(), (1,), (6,), (6, 1)])
def test_a_scale_a_tensor_or_a_row(shape: tuple[int, ...]) -> None:
    scale = torch.rand(shape)
    expected = WEIGHT.float() * (scale.reshape(6, 1) if scale.numel() == 6 else scale.reshape(()))
    assert torch.equal(dense(Fp8(), weight=WEIGHT, weight_scale=scale), expected)


def test_a_scale_a_block_with_ragged_ends() -> None:
    scale = torch.rand(2, 3)
    found = dense(Fp8((4, 3)), weight=WEIGHT, weight_scale_inv=scale)
    expected = torch.tensor(
        [[WEIGHT[row, column].float() * scale[row // 4, column // 3] for column in range(8)] for row in range(6)]
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"weight": WEIGHT}, "'model.layers.0.mlp.up_proj.weight_scale' is missing"),
        ({"weight": WEIGHT, "weight_scale": torch.ones(4)}, r"has the shape \[4\], expected one scale"),
        ({"weight": WEIGHT[:4], "weight_scale": torch.ones(1)}, r"has the shape \[4, 8\], expected \[6, 8\]"),
        ({"weight": WEIGHT.half(), "weight_scale": torch.ones(1)}, "is float16, expected float8_e4m3fn"),
    ],
)
def test_damage_is_told(tensors: dict[str, torch.Tensor], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        dense(Fp8(), **tensors)


@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized", "marlin-24"])
def test_other_compressed_tensors_are_refused_by_name(form: str) -> None:
    config: dict[str, Any] = {"quant_method": "compressed-tensors", "format": form}
    with pytest.raises(CheckpointError, match=f"'{form}' can't be read; .* GPTQ"):
        Fp8.from_config(config, "config.json")
