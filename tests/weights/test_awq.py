"""AWQ: the golden word, three packings of one layer, and damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import packers
import pytest
import torch

from trifocal.errors import CheckpointError
from trifocal.weights.awq import Awq, _gemm_columns
from trifocal.weights.parts import Parts

LAYER = packers.layer(128, 256, 4, seed=1)
PACKED = {
    "gemm": packers.awq_gemm(*LAYER),
    "gemv": packers.awq_gemv(*LAYER, multiple=2),
    "gemv_fast": packers.awq_gemv_fast(*LAYER),
}


def parts(tensors: dict[str, torch.Tensor], outputs: int = 128, inputs: int = 256) -> Parts:
    return Parts("model.layers.0.mlp.gate_proj", "shard.safetensors", outputs, inputs, tensors)


def test_golden_word() -> None:
    word = torch.tensor([[-2042464975]], dtype=torch.int32)
    assert _gemm_columns(word).flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("version", PACKED)
@pytest.mark.parametrize("given", [True, False])
def test_every_packing_gives_the_same_weight(version: str, given: bool) -> None:
    scheme = Awq(64, version if given else None)
    expected = packers.weight(*LAYER, group=np.arange(256) // 64)
    assert torch.equal(scheme.dense(parts(PACKED[version])), expected)


def test_a_square_layer_is_told_by_its_neighbours() -> None:
    square = packers.layer(256, 256, 2, seed=2)
    expected = packers.weight(*square, group=np.arange(256) // 128)
    for pack in (packers.awq_gemm, packers.awq_gemv, packers.awq_gemv_fast):
        assert torch.equal(Awq(128).dense(parts(pack(*square), 256, 256)), expected)


def test_a_zero_between_levels_is_kept_as_stored() -> None:
    tensors = dict(PACKED["gemv_fast"])
    tensors["qzeros"] = tensors["qzeros"] * 1.01
    layer = Awq(64).packed(parts(tensors))
    expected = (layer.levels.float() * layer.scales[layer.group].T) + tensors["qzeros"][:4].float()[layer.group].T
    torch.testing.assert_close(Awq(64).dense(parts(tensors)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("version", PACKED)
@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("damage", [lambda t: t[:-1], lambda t: t.double(), None])
def test_damage_is_told(version: str, part: str, damage: Any) -> None:
    tensors = dict(PACKED[version])
    damaged = {} if damage is None else {part: damage(tensors.pop(part))}
    tensors.pop(part, None)
    tensors |= damaged
    with pytest.raises(CheckpointError, match=r"^shard.safetensors: (the )?tensor 'model.layers.0.mlp.gate_proj.(q|s)"):
        Awq(64, version).dense(parts(tensors))


def test_descriptions() -> None:
    assert Awq.from_config({"bits": 4, "group_size": 64, "version": "GEMV"}, "x") == Awq(64, "gemv")
    assert Awq.from_config({"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, "x") == Awq(128, "gemm")
    with pytest.raises(CheckpointError, match="3 bits"):
        Awq.from_config({"w_bit": 3}, "x")
    with pytest.raises(CheckpointError, match="'marlin'"):
        Awq.from_config({"bits": 4, "version": "marlin"}, "x")


def test_without_a_group_size_the_file_that_says_it_is_asked_for() -> None:
    with pytest.raises(CheckpointError, match=r"quant_config\.json"):
        Awq(None, "gemv").dense(parts(PACKED["gemv"]))
