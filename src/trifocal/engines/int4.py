"""Four-bit linear layers that stay packed, over torch's own int4 product.

A GPTQ or AWQ layer maps onto it exactly but for the rounding of scales and offsets to bfloat16:
``scale * (level - zero) = scale * (level - 8) + scale * (8 - zero)``. An act-order layer has its columns sorted by
group, and its input likewise. Inputs and outputs of the product are bfloat16. On a CPU that product costs by the row:
long prompts unpack the weight piece by piece, once for all their rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cache

import torch
from torch import nn

from trifocal.weights.packed import PackedLinear, PackedWeights

__all__ = ["Int4Linear", "bind"]

_GROUPS = (256, 128, 64, 32)  # columns a scale, as the product can have them
_TILES = 8  # CUDA's innerKTiles
MANY = 128  # rows from which on a CPU multiplies by an unpacked weight sooner than by a packed one
_PACKED = 512  # outputs that are tiled at once, whole blocks of any CPU's: torch wants them as 32-bit numbers
_PIECE = 1 << 19  # numbers of a weight that are unpacked at once: more leave the cache, and are memory asked for anew


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
        rows = rows.to(torch.bfloat16)
        if len(rows) >= MANY and self.packed.device.type == "cpu" and (wide := _wide(self.outputs)):
            product = self._by_pieces(rows.to(_sooner()), wide)
        else:
            product = _product(rows, self.packed, self.group_size, self.scales_and_offsets)
        if self.bias is not None:
            product = product + self.bias
        return product.to(x.dtype).reshape(*x.shape[:-1], self.outputs)

    def _by_pieces(self, rows: torch.Tensor, wide: int) -> torch.Tensor:
        """The product of rows ``[rows, in]`` with the weight unpacked, some of its outputs after the other."""
        inputs, product = rows.shape[1], rows.new_empty(len(rows), self.outputs)
        step = max(1, _PIECE // (inputs * wide)) * wide
        for first in range(0, self.outputs, step):
            last = min(first + step, self.outputs)
            product[:, first:last] = rows @ self._dense(first, last, wide, rows.dtype)
        return product

    def _dense(self, first: int, last: int, wide: int, dtype: torch.dtype) -> torch.Tensor:
        """The weights of some outputs, ``[in, outputs]``.

        Of ``wide`` outputs and one input a CPU has bytes whose low halves are the first outputs. A level with its
        highest bit turned over, as the upper half of a byte, is the signed number ``16 * (level - 8)``.
        """
        own = self.packed.view(self.outputs // wide, -1, wide // 2)[first // wide : last // wide]
        both = own.transpose(0, 1).bitwise_xor(0x88)  # [in, blocks, wide / 2]
        halves = both.new_empty(*both.shape[:2], 2, wide // 2)
        torch.mul(both, 16, out=halves[:, :, 0])  # what is beyond eight bits is lost
        torch.bitwise_and(both, 0xF0, out=halves[:, :, 1])
        groups, inputs = len(self.scales_and_offsets), len(both)
        levels = halves.view(torch.int8).view(groups, -1, last - first).to(dtype)
        scales, offsets = self.scales_and_offsets[:, first:last].movedim(-1, 0).to(dtype).contiguous()[:, :, None]
        return torch.addcmul(offsets, levels, scales, value=1 / 16).view(inputs, last - first)

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
        tiled: torch.Tensor = torch.cat(
            [torch.ops.aten._convert_weight_to_int4pack_for_cpu(some.int(), 1) for some in torch.split(levels, _PACKED)]
        )
    else:
        pairs = levels[:, 0::2] << 4 | levels[:, 1::2]
        tiled = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), _TILES)
    return tiled


@cache
def _lanes() -> int:
    """How many outputs torch lays side by side on this CPU, half of them in the low halves of bytes; 0 if otherwise."""
    levels = torch.randint(0, 16, (128, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiled = _pack(levels).flatten()
    for wide in (64, 32):
        low, high = levels.view(-1, 2, wide // 2, 32).unbind(1)
        if torch.equal(tiled, (low | high << 4).transpose(1, 2).flatten()):
            return wide
    return 0


@cache
def _sooner() -> torch.dtype:
    """The type in which this CPU multiplies many rows sooner, as measured: bfloat16 is the slower one on some."""
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.bfloat16, torch.float32):
        rows, weight = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        for _ in range(4):
            began = time.perf_counter()
            rows @ weight
            seconds[dtype] = min(seconds.get(dtype, math.inf), time.perf_counter() - began)
    return min(seconds, key=lambda dtype: seconds[dtype])


def _wide(outputs: int) -> int:
    """`_lanes` where so many outputs are whole blocks of it, else 0: then a weight is not unpacked."""
    wide = _lanes()
    return wide if wide and outputs % wide == 0 else 0


def _product(rows: torch.Tensor, packed: torch.Tensor, group: int, scales_and_offsets: torch.Tensor) -> torch.Tensor:
    aten = torch.ops.aten
    product = aten._weight_int4pack_mm_for_cpu if rows.device.type == "cpu" else aten._weight_int4pack_mm
    out: torch.Tensor = product(rows.contiguous(), packed, group, scales_and_offsets)
    return out
