"""Layers in eight-bit floating point: the stored value times a scale a tensor, a row or a block.

Sources: compressed-tensors ``float-quantized`` and vLLM ``fp8`` (``weight_scale``), DeepSeek-V3 and transformers
``finegrained_fp8`` (``weight_scale_inv``, which in spite of its name is multiplied too).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trifocal.errors import CheckpointError
from trifocal.weights.parts import Parts

__all__ = ["Fp8"]

_SCALES = ("weight_scale", "weight_scale_inv")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Fp8:
    """Weights in ``float8_e4m3fn``; ``block`` is the height and width that one scale of a block covers."""

    block: tuple[int, int] | None = None

    marker = "weight"
    others = (*_SCALES, "input_scale", "activation_scale")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Fp8:
        """Reads ``quantization_config``.

        Raises:
            CheckpointError: compressed-tensors of a form that holds no eight-bit floats.
        """
        form = config.get("format", "float-quantized")
        if form not in ("float-quantized", "naive-quantized", "dense"):
            raise CheckpointError(
                f"{where}: compressed-tensors in the form {form!r} can't be read; 'float-quantized' (FP8) can, and so "
                "can GPTQ and AWQ releases and GGUF files of the same model"
            )
        block = config.get("weight_block_size")
        return cls(tuple(block) if block else None)

    def packed(self, parts: Parts) -> None:
        """Floats have no levels."""

    def dense(self, parts: Parts) -> torch.Tensor:
        """The weight ``[out, in]``, float32.

        Raises:
            CheckpointError: no scale, or one whose shape does not fit.
        """
        weight = parts.need("weight", (torch.float8_e4m3fn,), (parts.outputs, parts.inputs)).float()
        part = next((name for name in _SCALES if name in parts.tensors), "weight_scale")
        scale = parts.take(part, _FLOATS).float()
        if scale.numel() == 1:
            return weight * scale.reshape(())
        if self.block is not None:
            return weight * self._spread(parts, part, scale)
        if scale.numel() == parts.outputs:
            return weight * scale.reshape(-1, 1)
        raise parts.wrong(
            part, f"has the shape {list(scale.shape)}, expected one scale, or one for each of {parts.outputs} rows"
        )

    def _spread(self, parts: Parts, part: str, scale: torch.Tensor) -> torch.Tensor:
        assert self.block is not None
        high, wide = self.block
        expected = (-(-parts.outputs // high), -(-parts.inputs // wide))
        if tuple(scale.shape) != expected:
            raise parts.wrong(part, f"has the shape {list(scale.shape)}, expected {list(expected)}")
        rows = scale.repeat_interleave(high, 0)[: parts.outputs]
        return rows.repeat_interleave(wide, 1)[:, : parts.inputs]
