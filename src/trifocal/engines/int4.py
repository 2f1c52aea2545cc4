"""Four-bit linear layers that stay packed, over torch's own int4 product.

A GPTQ or AWQ layer maps onto it exactly but for the rounding of scales and offsets to bfloat16:
``scale * (level - zero) = scale * (level - 8) + scale * (8 - zero)``. An act-order layer has its columns sorted by
group, and its input likewise. Inputs and outputs of the product are bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from trifocal.weights.packed import PackedLinear, PackedWeights

__all__ = ["Int4Linear", "bind"]

_GROUPS = (256, 128, 64, 32)  # columns a scale, as the product can have them
_TILES = 8  # CUDA's innerKTiles


class Int4Linear(nn.Module):
    """``x [..., in] -> [..., out]`` by a packed weight; see `fits` for the layers that can be one."""

    packed: torch.Tensor
    scales_and_offsets: torch.Tensor  # bfloat16 [in / group, out, 2]
    order: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, layer: PackedLinear, device: torch.device) -> None:
        super().__init__()
        sorted_columns = torch.argsort(layer.group, stable=True)
        group = layer.group[sorted_columns]
        self.group_size = _group_size(group) or 0
        assert self.group_size, "ask `fits` first"
        first = group[:: self.group_size]
        scales, zeros = layer.scales[first], layer.zeros[first]  # [in / group, out]
        plain = bool((sorted_columns == torch.arange(len(group))).all())
        levels = layer.levels if plain else layer.levels[:, sorted_columns]
        offsets = scales * (8 - zeros)
        self.register_buffer("packed", _pack(levels.to(device)), persistent=False)
        pairs = torch.stack([scales, offsets], dim=-1).to(device, torch.bfloat16)
        self.register_buffer("scales_and_offsets", pairs.contiguous(), persistent=False)
        self.register_buffer("order", None if plain else sorted_columns.to(device), persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.to(device), persistent=False)
        self.outputs = layer.levels.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.order is not None:
            rows = rows[:, self.order]
        product = _product(rows.to(torch.bfloat16), self.packed, self.group_size, self.scales_and_offsets)
        if self.bias is not None:
            product = product + self.bias
        return product.to(x.dtype).reshape(*x.shape[:-1], self.outputs)

    @staticmethod
    def fits(layer: PackedLinear, device: torch.device) -> bool:
        """Whether torch has a product for this layer on this device."""
        outputs, inputs = layer.levels.shape
        if layer.bits != 4 or not _group_size(layer.group.sort().values):
            return False
        if device.type == "cuda":
            major, _ = torch.cuda.get_device_capability(device)
            return major >= 8 and outputs % 8 == 0 and inputs % (16 * _TILES) == 0
        return device.type == "cpu" and outputs % 16 == 0


def bind(model: nn.Module, weights: Mapping[str, torch.Tensor], device: torch.device) -> frozenset[str]:
    """Puts an `Int4Linear` in place of every linear layer whose weight is packed, and can stay so.

    Returns the names of the tensors that need not be loaded any more.
    """
    if not isinstance(weights, PackedWeights):
        return frozenset()
    done: set[str] = set()
    for name, module in list(model.named_modules()):
        layer = weights.packed(f"{name}.weight") if isinstance(module, nn.Linear) else None
        if (
            layer is not None
            and tuple(layer.levels.shape) == tuple(module.weight.shape)
            and Int4Linear.fits(layer, device)
        ):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Int4Linear(layer, device))
            done |= {f"{name}.weight", f"{name}.bias"}
    return frozenset(done)


def _group_size(group: torch.Tensor) -> int | None:
    """The longest run of columns the product can take that never straddles two groups; ``group`` is sorted."""
    columns = len(group)
    for size in _GROUPS:
        if columns % size == 0 and bool((group.reshape(-1, size) == group[::size, None]).all()):
            return size
    return None


def _pack(levels: torch.Tensor) -> torch.Tensor:
    """uint8 levels ``[out, in]`` in the device's own tiling."""
    if levels.device.type == "cpu":
        tiled: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
    else:
        pairs = levels[:, 0::2] << 4 | levels[:, 1::2]
        tiled = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), _TILES)
    return tiled


def _product(rows: torch.Tensor, packed: torch.Tensor, group: int, scales_and_offsets: torch.Tensor) -> torch.Tensor:
    aten = torch.ops.aten
    product = aten._weight_int4pack_mm_for_cpu if rows.device.type == "cpu" else aten._weight_int4pack_mm
    out: torch.Tensor = product(rows.contiguous(), packed, group, scales_and_offsets)
    return out
