"""Four-bit layers in the layout that the product on NVIDIA cards reads, and whether a layer can have it.

A chunk holds 32 rows by 128 columns: 512 words of levels, each word the eight that one thread needs for one step of
the matrix unit, and then for each row and group a word with the scale (float16, low half) and what a level is less by
(high half): minus the zero with the magic number of ``kernels/common.cu``, or a float16 offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trifocal.weights.packed import PackedLinear

__all__ = ["COLUMNS", "ROWS", "FourBit", "packed"]

ROWS, COLUMNS = 32, 128  # of a chunk
_GROUPS = (128, 64, 32)
_MAGIC = {torch.bfloat16: 128.0, torch.float16: 1024.0}


@dataclass(frozen=True, slots=True, eq=False)
class FourBit:
    """A weight ``[outputs, inputs]`` in chunks: int32 ``[outputs / 32, inputs / 128, words]`` on the device.

    ``group`` columns share a scale. With ``offset`` a weight is scale * level + offset, else scale * (level - zero).
    ``order`` int32 ``[inputs]`` are the columns of the input as the weight wants them, None where that changes nothing.
    """

    words: torch.Tensor
    outputs: int
    inputs: int
    group: int
    offset: bool
    order: torch.Tensor | None


def packed(
    layers: list[PackedLinear], dtype: torch.dtype, device: torch.device, *, by_turns: bool = False
) -> FourBit | None:
    """Layers with one input as one weight, their rows one below the other; None where they can't have this layout.

    ``by_turns`` lays two layers' rows by turns of eight (gate and up, so that their product needs one pass).
    """
    first = layers[0]
    outputs, inputs = sum(layer.levels.shape[0] for layer in layers), first.levels.shape[1]
    if dtype not in _MAGIC or any(layer.bits != 4 for layer in layers) or outputs % ROWS or inputs % COLUMNS:
        return None
    if any(not torch.equal(layer.group, first.group) for layer in layers[1:]):
        return None
    order = torch.argsort(first.group, stable=True)
    plain = bool((order == torch.arange(inputs, device=order.device)).all())
    group = _group_size(first.group[order])
    if group is None:
        return None
    levels, scales, zeros = (
        _rows([getattr(one, name).to(device) for one in layers], at, by_turns) for name, at in _PARTS
    )
    chosen = first.group[order][::group].to(device)
    if not plain:
        levels = levels[:, order.to(device)]
    scales, zeros = scales[chosen].T, zeros[chosen].T  # [outputs, groups]
    whole = bool((zeros == zeros.round()).all() and (zeros >= 0).all() and (zeros <= 64).all())
    minus = -(zeros + _MAGIC[dtype]) if whole else -zeros * scales
    words = _chunks(levels, _words(scales, torch.float16), _words(minus, dtype if whole else torch.float16))
    return FourBit(words, outputs, inputs, group, not whole, None if plain else order.to(device, torch.int32))


_PARTS = (("levels", 0), ("scales", 1), ("zeros", 1))


def _rows(parts: list[torch.Tensor], dim: int, by_turns: bool) -> torch.Tensor:
    """Parts one behind the other along the outputs, or by turns of eight."""
    if not by_turns:
        return torch.cat(parts, dim)
    shape = parts[0].shape
    split = [part.reshape(*shape[:dim], -1, 8, *shape[dim + 1 :]) for part in parts]
    return torch.stack(split, dim + 1).flatten(dim, dim + 2)


def _group_size(group: torch.Tensor) -> int | None:
    """The longest run of columns that never straddles two groups; ``group`` ``[inputs]`` is sorted."""
    for size in _GROUPS:
        if len(group) % size == 0 and bool((group.reshape(-1, size) == group[::size, None]).all()):
            return size
    return None


def _words(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bits of 16-bit values in the low half of int32."""
    return values.to(dtype).contiguous().view(torch.int16).to(torch.int32) & 0xFFFF


def _chunks(levels: torch.Tensor, scales: torch.Tensor, minus: torch.Tensor) -> torch.Tensor:
    """Levels ``[outputs, inputs]`` and 16-bit words ``[outputs, groups]`` as chunks."""
    blocks, chunks = levels.shape[0] // ROWS, levels.shape[1] // COLUMNS
    # row = 32 * block + 16 * tile + 8 * high + r; column = 128 * chunk + 32 * b + 8 * t + 4 * half + 2 * p + e
    parts = levels.reshape(blocks, 2, 2, 8, chunks, 4, 4, 2, 2, 2)
    word = torch.zeros(blocks, 2, 8, chunks, 4, 4, 2, dtype=torch.int32, device=levels.device)
    for high in range(2):
        for p in range(2):
            for e in range(2):
                word |= parts[:, :, high, :, :, :, :, :, p, e].to(torch.int32) << (4 * (high + 2 * p + 4 * e))
    own = word.permute(0, 3, 4, 2, 5, 6, 1).reshape(blocks, chunks, 512)  # b, r, t, half, tile
    both = (scales | minus << 16).reshape(blocks, 2, 2, 8, chunks, -1)  # block, tile, high, r, chunk, group
    return torch.cat([own, both.permute(0, 4, 5, 3, 1, 2).reshape(blocks, chunks, -1)], -1).contiguous()
