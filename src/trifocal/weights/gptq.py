"""GPTQ layers of every age: old CUDA without ``g_idx``, act-order, v1 and v2 zeros, 2, 3, 4 and 8 bits.

Sources: oobabooga/GPTQ-for-LLaMa and qwopqwop200/GPTQ-for-LLaMa ``quant.py``, AutoGPTQ ``nn_modules/qlinear``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trifocal.errors import CheckpointError
from trifocal.weights.packed import PackedLinear
from trifocal.weights.parts import Parts, dequantise, unpack

__all__ = ["BITS", "Gptq"]

BITS = (2, 3, 4, 8)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Gptq:
    """How a checkpoint's GPTQ layers are packed.

    ``bits`` and ``group_size`` None are found from the shapes; a ``group_size`` of -1 is one group. A stored zero is
    one less than the zero meant, but for ``stored_zero`` (``gptq_v2``). A stored zero of all ones then means
    ``2**bits`` as the kernels of the time had it, or 0 with ``wrap``, as AutoGPTQ's old kernel and exllama have it.
    """

    bits: int | None = None
    group_size: int | None = None
    stored_zero: bool = False
    wrap: bool = False

    marker = "qweight"
    others = ("qzeros", "scales", "g_idx", "zeros")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Gptq:
        """Reads ``quantize_config.json`` or ``quantization_config``; ``zero_wraps`` is a key of our own there.

        Raises:
            CheckpointError: bits or a format that can't be unpacked here.
        """
        form = config.get("checkpoint_format", config.get("format")) or "gptq"
        if config.get("is_marlin_format"):
            form = "marlin"
        if form not in ("gptq", "gptq_v2"):
            raise CheckpointError(f"{where}: GPTQ in the form {form!r} can't be unpacked; 'gptq' and 'gptq_v2' can")
        bits, group = config.get("bits"), config.get("group_size")
        if bits is not None and bits not in BITS:
            raise CheckpointError(f"{where}: bits is {bits!r}, expected one of {', '.join(map(str, BITS))}")
        if group is not None and (not isinstance(group, int) or (group < 1 and group != -1)):
            raise CheckpointError(f"{where}: group_size is {group!r}, expected a whole number above 0, or -1")
        if config.get("dynamic"):  # GPTQModel's rules for some of the layers, which their shapes tell
            bits = group = None
        return cls(bits, group, stored_zero=form == "gptq_v2", wrap=bool(config.get("zero_wraps", False)))

    def packed(self, parts: Parts) -> PackedLinear:
        """Levels, scales and zeros of a layer.

        Raises:
            CheckpointError: a part is missing, or its type, shape or group numbers do not fit.
        """
        if "zeros" in parts.tensors:
            raise parts.wrong("zeros", "is of the form of before March 2023, which can't be unpacked: quantise anew")
        bits = self.bits or _bits(parts)
        words = parts.need("qweight", (torch.int32,), (parts.inputs * bits // 32, parts.outputs))
        scales = parts.take("scales", _FLOATS)
        if scales.ndim != 2 or scales.shape[1] != parts.outputs or not len(scales):
            raise parts.wrong("scales", f"has the shape {list(scales.shape)}, expected [groups, {parts.outputs}]")
        packed_zeros = parts.need("qzeros", (torch.int32,), (len(scales), parts.outputs * bits // 32))
        return PackedLinear(
            bits,
            unpack(words.T, bits),
            scales.float(),
            self._zeros(unpack(packed_zeros, bits), bits),
            self._groups(parts, len(scales)).to(words.device),
            parts.tensors.get("bias"),
        )

    def dense(self, parts: Parts) -> torch.Tensor:
        return dequantise(self.packed(parts))

    def _zeros(self, stored: torch.Tensor, bits: int) -> torch.Tensor:
        zeros = stored.float()
        if not self.stored_zero:
            zeros = zeros + 1
        return zeros % 2**bits if self.wrap and not self.stored_zero else zeros

    def _groups(self, parts: Parts, groups: int) -> torch.Tensor:
        """The group of each column: ``g_idx`` wherever there is one, runs of equal length otherwise."""
        if "g_idx" in parts.tensors:
            index = parts.need("g_idx", (torch.int32, torch.int64), (parts.inputs,)).long()
            if int(index.min()) < 0 or int(index.max()) >= groups:
                raise parts.wrong(
                    "g_idx", f"has groups {int(index.min())} to {int(index.max())}, expected 0 to {groups - 1}"
                )
            return index
        size = self.group_size or -(-parts.inputs // groups)
        size = parts.inputs if size == -1 else size
        if -(-parts.inputs // size) != groups:
            raise parts.wrong("scales", f"has {groups} groups, expected {-(-parts.inputs // size)} of {size} columns")
        return torch.arange(parts.inputs) // size


def _bits(parts: Parts) -> int:
    """Bits by the number of packed rows."""
    words = parts.take("qweight", (torch.int32,))
    bits, rest = divmod(32 * words.shape[0], parts.inputs)
    if rest or bits not in BITS:
        raise parts.wrong(
            "qweight", f"has {words.shape[0]} rows for {parts.inputs} inputs: no packing of 2, 3, 4 or 8 bits"
        )
    return bits
