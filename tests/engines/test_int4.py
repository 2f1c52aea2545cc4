"""Packed four-bit layers against their own dense form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import nn

from trifocal.engines import int4
from trifocal.engines.int4 import Int4Linear, bind
from trifocal.weights.packed import PackedLinear

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]
OUT, IN = 128, 256


def layer(group: torch.Tensor, *, bits: int = 4, bias: bool = False) -> PackedLinear:
    random = torch.Generator().manual_seed(0)
    groups = int(group.max()) + 1
    return PackedLinear(
        bits,
        torch.randint(0, 16, (OUT, IN), generator=random, dtype=torch.uint8),
        torch.rand(groups, OUT, generator=random) / 50 + 0.005,
        torch.randint(1, 17, (groups, OUT), generator=random).float(),
        group,
        torch.randn(OUT, generator=random) if bias else None,
    )


def dense(packed: PackedLinear) -> torch.Tensor:
    return packed.scales[packed.group].T * (packed.levels.float() - packed.zeros[packed.group].T)


GROUPS = {
    "128": torch.arange(IN) // 128,
    "32": torch.arange(IN) // 32,
    "one": torch.zeros(IN, dtype=torch.long),
    "act-order": (torch.arange(IN) // 64)[torch.randperm(IN, generator=torch.Generator().manual_seed(1))],
}


@pytest.mark.parametrize("outputs", [16, 80, 512, 528, 1616])
def test_some_outputs_after_the_other_are_tiled_as_all_at_once(outputs: int) -> None:
    levels = torch.randint(0, 16, (outputs, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    whole = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
    assert torch.equal(int4._pack(levels), whole)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (2, 5), (int4.MANY + 3,)])
def test_equal_to_the_dense_layer_within_bfloat16(
    device: torch.device, group: str, bias: bool, rows: tuple[int, ...]
) -> None:
    packed = layer(GROUPS[group], bias=bias)
    assert Int4Linear.fits(packed, device)
    x = torch.randn(*rows, IN, generator=torch.Generator().manual_seed(2))
    found = Int4Linear(packed, device)(x.to(device)).cpu()
    expected = nn.functional.linear(x, dense(packed), packed.bias)
    assert found.dtype == torch.float32
    assert found.shape == (*rows, OUT)
    assert (found - expected).norm() / expected.norm() < 0.015


@pytest.mark.parametrize(
    "packed",
    [
        layer(GROUPS["128"], bits=3),
        layer(torch.arange(IN) // 16),
        layer((torch.arange(IN) > 100).long()),
    ],
    ids=["three bits", "groups of 16", "ragged groups"],
)
def test_what_the_product_cannot_do_is_not_tried(packed: PackedLinear) -> None:
    assert not Int4Linear.fits(packed, CPU)
    assert not Int4Linear.fits(layer(GROUPS["128"]), torch.device("meta"))


@pytest.mark.parametrize("group", ["32", "act-order"])
def test_many_rows_meet_the_weight_unpacked_exactly(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = int4._lanes()
    if not wide:
        pytest.skip("on this CPU torch packs otherwise, and many rows are multiplied as few")
    packed = layer(GROUPS[group])
    made = Int4Linear(packed, CPU)
    columns = torch.argsort(packed.group, stable=True)
    pairs = made.scales_and_offsets.float()[torch.arange(IN) // made.group_size]  # [in, out, 2]
    own = (pairs[..., 0] * (packed.levels[:, columns].T.float() - 8) + pairs[..., 1]).bfloat16()
    assert torch.equal(made._dense(0, OUT, wide, torch.bfloat16), own)
    assert torch.equal(made._dense(0, OUT, wide, torch.float32).bfloat16(), own)
    assert int4._sooner() in (torch.bfloat16, torch.float32)
    x = torch.randn(int4.MANY, IN, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = made(x)
    monkeypatch.setattr(int4, "_PIECE", 1)  # one block after the other
    assert (made(x).float() - whole.float()).abs().max() <= whole.abs().max() / 128
    monkeypatch.setattr(int4, "_lanes", lambda: 0)
    assert (made(x) - whole).norm() / whole.norm() < 0.01


class _Weights(Mapping[str, torch.Tensor]):
    """One packed layer and nothing else."""

    def packed(self, name: str) -> PackedLinear | None:
        return layer(GROUPS["128"]) if name == "inner.up.weight" else None

    def __getitem__(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read densely")

    def __iter__(self) -> Iterator[str]:
        return iter(["inner.up.weight"])

    def __len__(self) -> int:
        return 1


def test_bind_replaces_the_packed_layers_alone() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"inner": nn.ModuleDict({"up": nn.Linear(IN, OUT), "down": nn.Linear(OUT, IN)})})
    assert bind(model, _Weights(), CPU) == {"inner.up.weight", "inner.up.bias"}
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert (kinds["inner.up"], kinds["inner.down"]) == (Int4Linear, nn.Linear)
    assert set(model.state_dict()) == {"inner.down.weight", "inner.down.bias"}


def test_bind_leaves_ordinary_weights_alone() -> None:
    assert bind(nn.Linear(IN, OUT), {"weight": torch.zeros(OUT, IN)}, CPU) == frozenset()
