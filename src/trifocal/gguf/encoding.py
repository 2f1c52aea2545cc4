"""Values to the blocks of GGUF tensors: plain floats, four and eight bits, and levels on a grid as they are.

The rounding is ggml's own (``quantize_row_q4_0_ref``, ``quantize_row_q8_0_ref`` in ``ggml-quants.c``).
"""

from __future__ import annotations

import torch

__all__ = ["BLOCK", "KINDS", "encode", "on_grid"]

BLOCK = 32  # columns that share a scale
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def encode(values: torch.Tensor, kind: str) -> torch.Tensor:
    """The bytes (uint8) of values ``[..., columns]`` as one of `KINDS`; quantised ones need whole blocks of columns."""
    if kind in _PLAIN:
        return values.to(_PLAIN[kind]).contiguous().reshape(-1).view(torch.uint8)
    blocks = values.float().reshape(-1, BLOCK)
    if kind == "Q8_0":
        scales = blocks.abs().amax(1, keepdim=True) / 127
        turned = blocks * _inverse(scales)
        return _joined(scales, (turned.sign() * (turned.abs() + 0.5).floor()).to(torch.int8).view(torch.uint8))
    assert kind == "Q4_0", kind
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))  # with its sign
    scales = largest / -8
    levels = (blocks * _inverse(scales) + 8.5).trunc().clamp(0, 15)
    return _joined(scales, _nibbles(levels.to(torch.uint8)))


def on_grid(levels: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> tuple[str, torch.Tensor] | None:
    """Kind and bytes of a weight ``scale * (level - zero)``, where a kind has that grid; None where none has.

    ``levels`` uint8 ``[rows, columns]``, ``scales`` and ``zeros`` float32 ``[rows, columns / 32]``. Q4_0 and Q8_0 hold
    it exactly but for float16's rounding of the scale, Q4_1 but for that of ``scale * zero`` too.
    """
    offset = scales * zeros
    if not bool((scales.half().isfinite() & offset.half().isfinite()).all()):
        return None
    blocks = levels.reshape(-1, BLOCK)
    if bool((zeros == zeros.round()).all() and (zeros.abs() < 1 << 10).all()):
        whole = blocks.to(torch.int16) - zeros.to(torch.int16).reshape(-1, 1)
        low, high = int(whole.min()), int(whole.max())
        if low >= -8 and high <= 7:
            return "Q4_0", _joined(scales, _nibbles((whole + 8).to(torch.uint8)))
        if int(levels.max()) > 15 and low >= -128 and high <= 127:
            return "Q8_0", _joined(scales, whole.to(torch.int8).view(torch.uint8))
    return ("Q4_1", _joined(scales, _nibbles(blocks), -offset)) if int(levels.max()) < 16 else None


def _inverse(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, 0, 1 / scales)


def _nibbles(levels: torch.Tensor) -> torch.Tensor:
    """Levels ``[blocks, 32]`` in 16 bytes a block: the first half low, the second high."""
    return levels[:, : BLOCK // 2] | levels[:, BLOCK // 2 :] << 4


def _joined(scales: torch.Tensor, levels: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
    """Blocks of a float16 scale, an offset where there is one, and the bytes of the levels."""
    parts = [part.half().reshape(-1, 1).view(torch.uint8) for part in (scales, offsets) if part is not None]
    return torch.cat([*parts, levels], 1).reshape(-1)
