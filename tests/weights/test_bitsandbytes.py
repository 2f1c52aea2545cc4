"""bitsandbytes layers, by the arithmetic of its own description."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from trifocal.errors import CheckpointError
from trifocal.weights.bitsandbytes import BitsAndBytes
from trifocal.weights.parts import Parts

OUT, IN, BLOCK = 8, 64, 64


def parts(tensors: dict[str, torch.Tensor]) -> Parts:
    return Parts("model.layers.0.mlp.up_proj", "shard.safetensors", OUT, IN, tensors)


def four(*, nested: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer packed by hand, and its weight value by value."""
    random = np.random.default_rng(0)
    levels = random.integers(0, 16, OUT * IN)
    table = torch.from_numpy(np.sort(random.uniform(-1, 1, 16))).float()
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float16", "shape": [OUT, IN]}
    tensors = {
        "weight": torch.from_numpy((levels[0::2] << 4 | levels[1::2]).astype(np.uint8)).reshape(-1, 1),
        "weight.quant_map": table,
    }
    scales = torch.from_numpy(random.uniform(0.1, 1, OUT * IN // BLOCK)).float()
    if nested:
        index = torch.from_numpy(random.integers(0, 256, len(scales)).astype(np.uint8))
        inner = torch.linspace(-1, 1, 256)
        outer = torch.tensor([0.3, 0.6])
        state |= {"nested_blocksize": 4, "nested_offset": 0.5, "nested_dtype": "float32"}
        tensors |= {"weight.absmax": index, "weight.nested_quant_map": inner, "weight.nested_absmax": outer}
        scales = torch.stack([inner[int(at)] * outer[place // 4] + 0.5 for place, at in enumerate(index)])
    else:
        tensors["weight.absmax"] = scales
    text = json.dumps(state).encode()
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    weight = torch.stack([table[level] * scales[at // BLOCK] for at, level in enumerate(levels)])
    return tensors, weight.reshape(OUT, IN)


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits(nested: bool) -> None:
    tensors, weight = four(nested=nested)
    assert torch.equal(BitsAndBytes().dense(parts(tensors)), weight)


def test_eight_bits() -> None:
    rows = torch.randint(-127, 128, (OUT, IN), dtype=torch.int8)
    highest = torch.rand(OUT)
    found = BitsAndBytes().dense(parts({"weight": rows, "SCB": highest}))
    torch.testing.assert_close(found, rows.float() * highest[:, None] / 127)


@pytest.mark.parametrize(
    ("part", "tensor", "told"),
    [
        ("weight", torch.zeros(3, 1, dtype=torch.uint8), "in 3 bytes"),
        ("weight", torch.zeros(OUT * IN // 2, 1), "is float32, expected uint8"),
        ("weight.absmax", torch.zeros(3), r"has the shape \[3\], expected \[8\]"),
        ("weight.quant_map", torch.zeros(4), r"has the shape \[4\], expected \[16\]"),
        ("weight.quant_state.bitsandbytes__nf4", torch.zeros(5, dtype=torch.uint8), "no description"),
        ("weight.quant_state.bitsandbytes__nf4", torch.tensor(list(b"{}"), dtype=torch.uint8), "no whole blocksize"),
    ],
)
def test_damage_is_told(part: str, tensor: torch.Tensor, told: str) -> None:
    tensors, _ = four(nested=False)
    with pytest.raises(CheckpointError, match=told):
        BitsAndBytes().dense(parts({**tensors, part: tensor}))
