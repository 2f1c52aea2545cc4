"""The block types of GGUF tensors: bytes to values, many blocks at a time.

A tensor is a row of equal blocks along its fastest dimension; each block holds so many values in so many bytes. The
layouts are those of ggml (``ggml-quants.c``, ``gguf-py/gguf/quants.py``); the order of the float32 operations is that
of gguf-py too, so the values are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["TYPES", "BlockType", "dequantise"]

Bytes = NDArray[np.uint8]  # [blocks, bytes of a block]
Values = NDArray[np.float32]  # [blocks, values of a block]
_ONE, _CRUMB, _NIBBLE = np.uint8(1), np.uint8(3), np.uint8(15)
# the sixteen levels of IQ4_NL and IQ4_XS, which are not at equal distances
_CURVE = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), dtype=np.float32)
_CHUNK = 1 << 14  # blocks decoded at a time: bounds the float32 intermediates to some tens of MB


@dataclass(frozen=True, slots=True)
class BlockType:
    """``values`` numbers in ``bytes`` bytes, and how to read them; None where llama.cpp alone does."""

    name: str
    values: int
    bytes: int
    decode: Callable[[Bytes], Values] | None


def dequantise(raw: Bytes, kind: BlockType, dtype: torch.dtype) -> torch.Tensor:
    """The values of whole blocks, ``[bytes] -> [values]``; intermediates are float32 and bounded."""
    assert kind.decode is not None
    blocks = raw.reshape(-1, kind.bytes)
    out = torch.empty(len(blocks) * kind.values, dtype=dtype)
    step = max(1, _CHUNK * 256 // kind.values)
    for start in range(0, len(blocks), step):
        values = kind.decode(blocks[start : start + step]).reshape(-1)
        out[start * kind.values : start * kind.values + len(values)] = torch.from_numpy(values)
    return out


def _f32(block: Bytes) -> Values:
    return block.copy().view("<f4")


def _f16(block: Bytes) -> Values:
    return block.copy().view("<f2").astype(np.float32)


def _bf16(block: Bytes) -> Values:
    return (block.copy().view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(block: Bytes) -> Values:
    return _half(block, 0) * (_halves(block[:, 2:]).astype(np.int8) - 8).astype(np.float32)


def _q4_1(block: Bytes) -> Values:
    return _half(block, 0) * _halves(block[:, 4:]).astype(np.float32) + _half(block, 2)


def _q5_0(block: Bytes) -> Values:
    levels = _halves(block[:, 6:]) | _word_bits(block[:, 2:6]) << 4
    return _half(block, 0) * (levels.astype(np.int8) - 16).astype(np.float32)


def _q5_1(block: Bytes) -> Values:
    levels = _halves(block[:, 8:]) | _word_bits(block[:, 4:8]) << 4
    return _half(block, 0) * levels.astype(np.float32) + _half(block, 2)


def _q8_0(block: Bytes) -> Values:
    return _half(block, 0) * block[:, 2:].view(np.int8).astype(np.float32)


def _q2_k(block: Bytes) -> Values:
    scales = block[:, :16]
    step = _half(block, 80) * (scales & 15).astype(np.float32)
    floor = _half(block, 82) * (scales >> 4).astype(np.float32)
    levels = _crumbs(block[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return _flat(step[:, :, None] * levels - floor[:, :, None])


def _q3_k(block: Bytes) -> Values:
    low, high = block[:, 96:104], block[:, 104:108]
    nibbles = np.concatenate([low & 15, low >> 4], axis=1)  # [blocks, 16]
    upper = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)  # [blocks, 16]
    step = _half(block, 108) * ((nibbles | upper << 4).astype(np.int8) - 32).astype(np.float32)
    missing = (_bits(block[:, :32]) ^ 1) << 2  # the high bit counts where it is *not* set: 4 less
    levels = _crumbs(block[:, 32:96]).reshape(-1, 8, 32).astype(np.int8) - missing.astype(np.int8)
    return _flat(step[:, :, None] * levels.reshape(-1, 16, 16).astype(np.float32))


def _q4_k(block: Bytes) -> Values:
    step, floor = _sub_scales(block)
    return _flat(step * _chunks(block[:, 16:144]).astype(np.float32) - floor)


def _q5_k(block: Bytes) -> Values:
    step, floor = _sub_scales(block)
    levels = _chunks(block[:, 48:176]) | _bits(block[:, 16:48]) << 4
    return _flat(step * levels.astype(np.float32) - floor)


def _q6_k(block: Bytes) -> Values:
    low = block[:, :128].reshape(-1, 2, 1, 64) >> _shifts(0, 4) & 15  # [blocks, halves, nibbles, 64]
    high = block[:, 128:192].reshape(-1, 2, 1, 32) >> _shifts(0, 2, 4, 6) & 3  # [blocks, halves, groups, 32]
    levels = (low.reshape(-1, 2, 4, 32) | high << 4).astype(np.int8) - 32
    step = _half(block, 208) * block[:, 192:208].view(np.int8).astype(np.float32)
    return _flat(step[:, :, None] * levels.reshape(-1, 16, 16).astype(np.float32))


def _iq4_nl(block: Bytes) -> Values:
    return _half(block, 0) * _CURVE[_halves(block[:, 2:])]


def _iq4_xs(block: Bytes) -> Values:
    high = block[:, 2:4].copy().view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3  # [blocks, 8]
    low = (block[:, 4:8, None] >> np.array([0, 4], dtype=np.uint8) & _NIBBLE).reshape(-1, 8)
    step = _half(block, 0) * ((low | high.astype(np.uint8) << 4).astype(np.int8) - 32).astype(np.float32)
    levels = (block[:, 8:].reshape(-1, 8, 1, 16) >> _shifts(0, 4) & _NIBBLE).reshape(-1, 8, 32)
    return _flat(step[:, :, None] * _CURVE[levels])


def _half(block: Bytes, at: int) -> Values:
    """The float16 at byte ``at``: ``[blocks, 1]``."""
    return block[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _halves(packed: Bytes) -> Bytes:
    """All low nibbles, then all high ones: ``[blocks, n] -> [blocks, 2n]``."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _word_bits(packed: Bytes) -> Bytes:
    """The bits of a little-endian word, lowest first: ``[blocks, 4] -> [blocks, 32]``."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _bits(packed: Bytes) -> Bytes:
    """Bit b of every byte is row b: ``[blocks, 32] -> [blocks, 8, 32]``."""
    return packed[:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None] & _ONE


def _crumbs(packed: Bytes) -> Bytes:
    """Two-bit values, four rows a 32-byte chunk: ``[blocks, 64] -> [blocks, 2, 4, 32]``."""
    return packed.reshape(-1, 2, 1, 32) >> _shifts(0, 2, 4, 6) & _CRUMB


def _chunks(packed: Bytes) -> Bytes:
    """Nibbles, two rows a 32-byte chunk: ``[blocks, 128] -> [blocks, 8, 32]``."""
    return (packed.reshape(-1, 4, 1, 32) >> _shifts(0, 4) & _NIBBLE).reshape(-1, 8, 32)


def _sub_scales(block: Bytes) -> tuple[Values, Values]:
    """Step and floor of the eight sub-blocks of Q4_K and Q5_K, each ``[blocks, 8, 1]``."""
    first, middle, last = block[:, 4:8], block[:, 8:12], block[:, 12:16]
    scales = np.concatenate([first & 63, last & 15 | first >> 6 << 4], axis=1)
    floors = np.concatenate([middle & 63, last >> 4 | middle >> 6 << 4], axis=1)
    step = _half(block, 0) * scales.astype(np.float32)
    floor = _half(block, 2) * floors.astype(np.float32)
    return step[:, :, None], floor[:, :, None]


def _shifts(*amounts: int) -> Bytes:
    return np.array(amounts, dtype=np.uint8).reshape(1, 1, -1, 1)


def _flat(values: NDArray[Any]) -> Values:
    return values.reshape(len(values), -1)


TYPES = {
    0: BlockType("F32", 1, 4, _f32),
    1: BlockType("F16", 1, 2, _f16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    6: BlockType("Q5_0", 32, 22, _q5_0),
    7: BlockType("Q5_1", 32, 24, _q5_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
    10: BlockType("Q2_K", 256, 84, _q2_k),
    11: BlockType("Q3_K", 256, 110, _q3_k),
    12: BlockType("Q4_K", 256, 144, _q4_k),
    13: BlockType("Q5_K", 256, 176, _q5_k),
    14: BlockType("Q6_K", 256, 210, _q6_k),
    16: BlockType("IQ2_XXS", 256, 66, None),
    17: BlockType("IQ2_XS", 256, 74, None),
    18: BlockType("IQ3_XXS", 256, 98, None),
    19: BlockType("IQ1_S", 256, 50, None),
    20: BlockType("IQ4_NL", 32, 18, _iq4_nl),
    21: BlockType("IQ3_S", 256, 110, None),
    22: BlockType("IQ2_S", 256, 82, None),
    23: BlockType("IQ4_XS", 256, 136, _iq4_xs),
    29: BlockType("IQ1_M", 256, 56, None),
    30: BlockType("BF16", 1, 2, _bf16),
    34: BlockType("TQ1_0", 256, 54, None),
    35: BlockType("TQ2_0", 256, 66, None),
    39: BlockType("MXFP4", 32, 17, None),
    40: BlockType("NVFP4", 64, 36, None),
}
