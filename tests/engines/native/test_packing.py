"""The layout of four-bit weights for the product on a card, taken apart again word by word as the kernel reads it."""

from __future__ import annotations

import pytest
import torch

from trifocal.engines.native.packing import FourBit, packed
from trifocal.weights.packed import PackedLinear

CPU = torch.device("cpu")


def layer(rows: int, columns: int, group: int, *, whole: bool = True, seed: int = 0) -> PackedLinear:
    random = torch.Generator().manual_seed(seed)
    zeros = torch.randint(0, 17, (columns // group, rows), generator=random).float()
    return PackedLinear(
        4,
        torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=random),
        torch.rand(columns // group, rows, generator=random).half().float(),
        zeros if whole else zeros + 0.25,
        torch.arange(columns) // group,
    )


def dense(one: PackedLinear) -> torch.Tensor:
    return one.scales[one.group].T * (one.levels.float() - one.zeros[one.group].T)


def read(weight: FourBit, magic: float) -> torch.Tensor:
    """The weight that the kernel's threads see: row, column and value of each nibble by lane and step."""
    out = torch.zeros(weight.outputs, weight.inputs)
    for block, chunks in enumerate(weight.words.tolist()):
        for chunk, words in enumerate(chunks):
            for at in range(512):
                step_tile, lane = (at // 128) * 4 + at % 4, at % 128 // 4
                step, tile, r, t = step_tile // 2, step_tile % 2, lane // 4, lane % 4
                for nibble in range(8):
                    high, p, e = nibble & 1, nibble >> 1 & 1, nibble >> 2
                    column = 32 * (step // 2) + 8 * t + 4 * (step % 2) + 2 * p + e
                    scale_word = words[512 + (column // weight.group * 8 + r) * 4 + 2 * tile + high]
                    bits = torch.tensor([scale_word], dtype=torch.int32).view(torch.int16)
                    scale = float(bits.view(torch.float16)[0])
                    level = words[at] >> 4 * nibble & 15
                    if weight.offset:
                        value = scale * level + float(bits.view(torch.float16)[1])
                    else:
                        value = scale * (level + magic + float(bits.view(torch.bfloat16)[1]))
                    out[32 * block + 16 * tile + 8 * high + r, 128 * chunk + column] = value
    return out


@pytest.mark.parametrize("group", [32, 64, 128])
def test_levels_scales_and_zeros_stand_where_the_kernel_reads_them(group: int) -> None:
    one = layer(64, 256, group)
    weight = packed([one], torch.bfloat16, CPU)
    assert weight is not None
    assert not weight.offset
    assert torch.equal(read(weight, 128.0), dense(one))


def test_a_zero_between_two_levels_becomes_an_offset() -> None:
    one = layer(32, 128, 32, whole=False)
    weight = packed([one], torch.bfloat16, CPU)
    assert weight is not None
    assert weight.offset
    torch.testing.assert_close(read(weight, 128.0), dense(one), atol=1e-2, rtol=0)


def test_gate_and_up_stand_by_turns_of_eight_rows() -> None:
    gate, up = layer(32, 128, 128, seed=1), layer(32, 128, 128, seed=2)
    weight = packed([gate, up], torch.bfloat16, CPU, by_turns=True)
    assert weight is not None
    found = read(weight, 128.0).reshape(4, 2, 8, 128)
    assert torch.equal(found[:, 0].reshape(32, 128), dense(gate))
    assert torch.equal(found[:, 1].reshape(32, 128), dense(up))


def test_an_act_order_layer_has_its_columns_sorted() -> None:
    one = layer(32, 256, 128)
    mixed = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    shuffled = PackedLinear(4, one.levels[:, mixed], one.scales, one.zeros, one.group[mixed])
    weight = packed([shuffled], torch.bfloat16, CPU)
    assert weight is not None
    assert weight.order is not None
    assert torch.equal(read(weight, 128.0), dense(shuffled)[:, weight.order])


@pytest.mark.parametrize(
    ("rows", "columns", "group", "bits"), [(48, 128, 128, 4), (32, 160, 32, 4), (32, 256, 16, 4), (32, 128, 128, 8)]
)
def test_what_the_kernel_has_no_product_for_is_left_alone(rows: int, columns: int, group: int, bits: int) -> None:
    one = layer(rows, columns, group)
    other = PackedLinear(bits, one.levels, one.scales, one.zeros, one.group)
    assert packed([other], torch.bfloat16, CPU) is None
    assert packed([layer(32, 128, 128)], torch.float32, CPU) is None
