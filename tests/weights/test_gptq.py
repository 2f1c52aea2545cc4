"""GPTQ: golden words, every width, act-order, both kinds of zeros, and damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import packers
import pytest
import torch

from trifocal.errors import CheckpointError
from trifocal.weights.gptq import Gptq
from trifocal.weights.parts import Parts, unpack


def parts(tensors: dict[str, torch.Tensor], outputs: int, inputs: int) -> Parts:
    return Parts("model.layers.0.self_attn.q_proj", "shard.safetensors", outputs, inputs, tensors)


def test_golden_words() -> None:
    assert unpack(torch.tensor([[-2023406815]], dtype=torch.int32), 4).flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    column = np.arange(1, 9).reshape(8, 1)
    assert packers.stream(column, 4).item() == -2023406815
    stored = torch.full((1, 1), 2004318071, dtype=torch.int32)
    assert Gptq()._zeros(unpack(stored, 4), 4).flatten().tolist() == [8.0] * 8


def test_three_bits_run_over_word_borders() -> None:
    words = torch.tensor([[1 << 30, 1 | -(1 << 31), 2]], dtype=torch.int32)
    values = unpack(words, 3).flatten().tolist()
    assert values[10] == 0b101
    assert values[21] == 0b101
    assert sum(values) == 10


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("stored_zero", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_round_trip(bits: int, stored_zero: bool, given: bool) -> None:
    levels, zeros, scales = packers.layer(32, 64, 2, bits)
    group = np.arange(64) // 32
    scheme = Gptq(bits if given else None, 32 if given else None, stored_zero=stored_zero)
    tensors = packers.gptq(levels, zeros, scales, bits, stored_zero=stored_zero)
    assert torch.equal(scheme.dense(parts(tensors, 32, 64)), packers.weight(levels, zeros, scales, group))


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (8, 32), (4, 16), (2, 64)])
def test_rules_for_some_of_the_layers_are_read_from_their_shapes(bits: int, size: int) -> None:
    told = {"bits": 4, "group_size": 32, "dynamic": {"+:.*down_proj": {"bits": bits, "group_size": size}}}
    levels, zeros, scales = packers.layer(32, 64, 64 // size, bits)
    found = Gptq.from_config(told, "config.json").dense(parts(packers.gptq(levels, zeros, scales, bits), 32, 64))
    assert torch.equal(found, packers.weight(levels, zeros, scales, np.arange(64) // size))


def test_act_order_always_follows_g_idx() -> None:
    levels, zeros, scales = packers.layer(16, 64, 4)
    group = np.random.default_rng(3).permutation(64) // 16
    tensors = packers.gptq(levels, zeros, scales, 4) | {"g_idx": torch.from_numpy(group).int()}
    found = Gptq(4, 16).dense(parts(tensors, 16, 64))
    assert torch.equal(found, packers.weight(levels, zeros, scales, group))
    assert not torch.equal(found, packers.weight(levels, zeros, scales, np.arange(64) // 16))


def test_old_cuda_has_float32_scales_a_bias_and_maybe_one_group() -> None:
    levels, zeros, _ = packers.layer(256, 64, 1)
    scales = torch.rand(1, 256) / 100
    tensors = packers.gptq(levels, zeros, scales, 4) | {"bias": torch.zeros(256)}
    layer = Gptq(4, -1).packed(parts(tensors, 256, 64))
    assert layer.group.tolist() == [0] * 64
    assert torch.equal(layer.scales, scales)
    assert layer.bias is not None


def test_a_stored_zero_of_fifteen_means_sixteen_or_wraps() -> None:
    levels, zeros, scales = packers.layer(8, 32, 1)
    zeros[:] = 16
    tensors = packers.gptq(levels, zeros, scales, 4)
    assert Gptq().packed(parts(tensors, 8, 32)).zeros.unique().tolist() == [16.0]
    assert Gptq(wrap=True).packed(parts(tensors, 8, 32)).zeros.unique().tolist() == [0.0]
    plain = packers.gptq(levels, zeros - 1, scales, 4, stored_zero=True)
    assert Gptq(stored_zero=True, wrap=True).packed(parts(plain, 8, 32)).zeros.unique().tolist() == [15.0]


@pytest.mark.parametrize(
    ("part", "damage", "told"),
    [
        ("qweight", lambda t: t[:-1], r"q_proj.qweight' has"),
        ("qweight", lambda t: t.long(), "is int64, expected int32"),
        ("qweight", None, "q_proj.qweight' is missing"),
        ("qzeros", lambda t: t[:, :-1], r"q_proj.qzeros' has the shape \[2, 1\], expected \[2, 2\]"),
        ("scales", lambda t: t[:, :-1], "q_proj.scales' has the shape"),
        ("scales", lambda t: t.int(), "is int32, expected float32 or"),
        ("scales", None, "q_proj.scales' is missing"),
        ("g_idx", lambda t: t + 1, "has groups 1 to 2, expected 0 to 1"),
        ("g_idx", lambda t: t - 1, "has groups -1 to 0"),
        ("g_idx", lambda t: t[:-1], r"has the shape \[63\], expected \[64\]"),
        ("g_idx", lambda t: t.float(), "is float32, expected int32"),
    ],
)
@pytest.mark.parametrize("bits", [None, 4])
def test_damage_is_told_by_file_tensor_expected_and_found(part: str, damage: Any, told: str, bits: int | None) -> None:
    levels, zeros, scales = packers.layer(16, 64, 2)
    tensors = packers.gptq(levels, zeros, scales, 4) | {"g_idx": (torch.arange(64) // 32).int()}
    tensors = {name: tensor for name, tensor in tensors.items() if name != part or damage is not None}
    if damage is not None:
        tensors[part] = damage(tensors[part])
    with pytest.raises(CheckpointError, match=told) as error:
        Gptq(bits).dense(parts(tensors, 16, 64))
    assert str(error.value).startswith("shard.safetensors: ")


def test_groups_that_do_not_fit_the_given_size_are_refused() -> None:
    levels, zeros, scales = packers.layer(16, 64, 2)
    with pytest.raises(CheckpointError, match="has 2 groups, expected 4 of 16 columns"):
        Gptq(4, 16).dense(parts(packers.gptq(levels, zeros, scales, 4), 16, 64))


def test_the_oldest_form_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="before March 2023"):
        Gptq().packed(parts({"qweight": torch.zeros(8, 8, dtype=torch.int32), "zeros": torch.zeros(8, 1)}, 8, 64))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"bits": 5}, "bits is 5"),
        ({"bits": 4, "group_size": 0}, "group_size is 0"),
        ({"bits": 4, "is_marlin_format": True}, "'marlin'"),
        ({"bits": 4, "checkpoint_format": "gptq_v3"}, "'gptq_v3'"),
    ],
)
def test_descriptions_that_cannot_be_followed(config: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        Gptq.from_config(config, "config.json")


def test_description() -> None:
    assert Gptq.from_config({"bits": 3, "group_size": -1, "desc_act": True}, "x") == Gptq(3, -1)
    assert Gptq.from_config({"bits": 4, "zero_wraps": True}, "x") == Gptq(4, wrap=True)
    assert Gptq.from_config({"bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"}, "x") == Gptq(4, 128, True)
