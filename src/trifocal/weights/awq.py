"""AWQ layers: GEMM, GEMV and GEMVFast packing, four bits.

Source: AutoAWQ ``awq/modules/linear/{gemm,gemv,gemv_fast}.py`` and ``awq/utils/packing_utils.py``. The scales that AWQ
folds between layers are in the stored norms and weights already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trifocal.errors import CheckpointError
from trifocal.weights.packed import PackedLinear
from trifocal.weights.parts import Parts, dequantise, unpack

__all__ = ["VERSIONS", "Awq"]

VERSIONS = ("gemm", "gemv", "gemv_fast")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_NIBBLE_OF_COLUMN = [0, 4, 1, 5, 2, 6, 3, 7]  # GEMM: column k of eight is this nibble, lowest first


@dataclass(frozen=True, slots=True)
class Awq:
    """How a checkpoint's AWQ layers are packed; ``version`` one of `VERSIONS`, or None: found from the shapes."""

    group_size: int | None = 128
    version: str | None = None

    marker = "qweight"
    others = ("qzeros", "scales")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Awq:
        """Reads ``quantization_config`` or ``quant_config.json`` (``w_bit``, ``q_group_size``).

        Raises:
            CheckpointError: other than 4 bits, or an unknown version.
        """
        bits = config.get("bits", config.get("w_bit", 4))
        group = config.get("group_size", config.get("q_group_size", 128))
        version = str(config.get("version") or "gemm").lower()
        if bits != 4 or not isinstance(group, int) or (group < 1 and group != -1):
            raise CheckpointError(
                f"{where}: AWQ with {bits!r} bits in groups of {group!r} can't be unpacked; 4 bits can"
            )
        if version not in VERSIONS:
            raise CheckpointError(f"{where}: AWQ version {version!r} can't be unpacked; known: {', '.join(VERSIONS)}")
        return cls(group, version)

    def packed(self, parts: Parts) -> PackedLinear:
        """Levels, scales and zeros of a layer.

        Raises:
            CheckpointError: a part is missing, or its type or shape does not fit.
        """
        read = {"gemm": self._gemm, "gemv": self._gemv, "gemv_fast": self._gemv_fast}
        return read[self.version or _version(parts)](parts)

    def dense(self, parts: Parts) -> torch.Tensor:
        return dequantise(self.packed(parts))

    def _gemm(self, parts: Parts) -> PackedLinear:
        size, groups = self._groups(parts)
        words = parts.need("qweight", (torch.int32,), (parts.inputs, parts.outputs // 8))
        zeros = parts.need("qzeros", (torch.int32,), (groups, parts.outputs // 8))
        scales = parts.need("scales", _FLOATS, (groups, parts.outputs))
        return _layer(parts, _gemm_columns(words).T.contiguous(), scales, _gemm_columns(zeros), size)

    def _gemv(self, parts: Parts) -> PackedLinear:
        size, groups = self._groups(parts)
        words = parts.need("qweight", (torch.int32,), (parts.outputs, parts.inputs // 8))
        zeros = parts.take("qzeros", (torch.int32,))
        if zeros.ndim != 2 or zeros.shape[0] != parts.outputs or zeros.shape[1] * 8 < groups:
            raise parts.wrong(
                "qzeros", f"has the shape {list(zeros.shape)}, expected [{parts.outputs}, {-(-groups // 8)} or more]"
            )
        scales = parts.need("scales", _FLOATS, (parts.outputs, 8 * zeros.shape[1]))
        return _layer(parts, unpack(words, 4), scales[:, :groups].T, unpack(zeros, 4)[:, :groups].T, size)

    def _gemv_fast(self, parts: Parts) -> PackedLinear:
        """Zeros are stored as ``-scale * zero``, rounded; a whole zero that rounds to just that is taken back."""
        size, groups = self._groups(parts)
        words = parts.need("qweight", (torch.int16,), (parts.outputs // 4, parts.inputs))
        scales = parts.take("scales", _FLOATS)
        if scales.ndim != 2 or scales.shape[0] < groups or scales.shape[1] != parts.outputs:
            raise parts.wrong(
                "scales", f"has the shape {list(scales.shape)}, expected [{groups} or more, {parts.outputs}]"
            )
        products = parts.need("qzeros", _FLOATS, tuple(scales.shape))[:groups]
        zeros = _zeros_of(products, scales[:groups])
        return _layer(parts, _fast_levels(words), scales[:groups], zeros, size)

    def _groups(self, parts: Parts) -> tuple[int, int]:
        """Columns a group, and groups."""
        if self.group_size is None:
            raise CheckpointError(
                f"{parts.where}: no configuration says the group size; put quant_config.json beside it"
            )
        size = parts.inputs if self.group_size == -1 else self.group_size
        if parts.inputs % size or parts.inputs % 64 or parts.outputs % 8:
            raise parts.wrong(
                "qweight", f"is of {parts.inputs} inputs and {parts.outputs} outputs: no groups of {size} in AWQ"
            )
        return size, parts.inputs // size


def _layer(parts: Parts, levels: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, size: int) -> PackedLinear:
    group = torch.arange(parts.inputs, device=levels.device) // size
    bias = parts.tensors.get("bias")
    return PackedLinear(4, levels, scales.float().contiguous(), zeros.float().contiguous(), group, bias)


def _gemm_columns(words: torch.Tensor) -> torch.Tensor:
    """``[rows, columns / 8] -> uint8 [rows, columns]``, out of the interleaved nibble order."""
    nibbles = unpack(words, 4).reshape(*words.shape, 8)
    return nibbles[..., _NIBBLE_OF_COLUMN].reshape(len(words), -1)


def _fast_levels(words: torch.Tensor) -> torch.Tensor:
    """``[out / 4, in]`` int16 to uint8 ``[out, in]``: four rows interleaved, 32 columns in steps of 8."""
    quarters, inputs = words.shape
    nibbles = torch.stack([words.int() >> 4 * nibble & 15 for nibble in range(4)], dim=-1)  # [out/4, in, 4]
    rows = nibbles.reshape(quarters, inputs // 64, 4, 16, 4).transpose(1, 2)  # [out/4, row of 4, block of 64, 16, 4]
    stored = rows.reshape(quarters * 4, inputs // 32, 8, 4)  # position p of 32 = 4 * a + b holds column 8 * b + a
    return stored.transpose(2, 3).reshape(quarters * 4, inputs).to(torch.uint8)


def _zeros_of(products: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Zeros from ``-scale * zero``: whole ones where they give the stored product back, the quotient elsewhere."""
    quotient = torch.where(scales == 0, 0.0, -products.float() / scales.float())
    whole = quotient.round()
    exact = (-(whole * scales.float())).to(products.dtype) == products
    return torch.where(exact, whole, quotient)


def _version(parts: Parts) -> str:
    """GEMM, GEMV or GEMVFast by type and shape; a square layer can't tell the first two apart."""
    words = parts.take("qweight", (torch.int32, torch.int16))
    if words.dtype == torch.int16:
        return "gemv_fast"
    scales = parts.take("scales", _FLOATS)
    if parts.inputs != parts.outputs:
        return "gemm" if words.shape[0] == parts.inputs else "gemv"
    zeros = parts.take("qzeros", (torch.int32,))
    return "gemm" if scales.shape[1] == parts.outputs and zeros.shape[1] == parts.outputs // 8 else "gemv"
