"""Layers that bitsandbytes saved: LLM.int8 rows, and NF4 or FP4 blocks with their scales quantised once more or not.

Source: bitsandbytes ``functional.py`` (``QuantState.from_dict``, ``dequantize_blockwise``) and ``nn/modules.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trifocal.errors import CheckpointError
from trifocal.weights.parts import Parts

__all__ = ["BitsAndBytes"]

_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")


@dataclass(frozen=True, slots=True)
class BitsAndBytes:
    """The layers say by themselves how they are packed; there is nothing to set."""

    marker = "weight"
    others = (
        *_STATES,
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "SCB",
        "weight_format",
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> BitsAndBytes:
        return cls()

    def packed(self, parts: Parts) -> None:
        """Its levels lie on no even grid."""

    def dense(self, parts: Parts) -> torch.Tensor:
        """The weight ``[out, in]``, float32.

        Raises:
            CheckpointError: a part is missing, or its type, shape or description does not fit.
        """
        return self._eight(parts) if "SCB" in parts.tensors else self._four(parts)

    def _eight(self, parts: Parts) -> torch.Tensor:
        rows = parts.need("weight", (torch.int8,), (parts.outputs, parts.inputs))
        highest = parts.need("SCB", (torch.float32,), (parts.outputs,))
        return rows.float() * (highest / 127)[:, None]

    def _four(self, parts: Parts) -> torch.Tensor:
        state = _state(parts)
        size = state["blocksize"]
        count = parts.outputs * parts.inputs
        if count % 2:
            raise parts.wrong("weight", f"has {count} values, expected an even number")
        packed = parts.take("weight", (torch.uint8,)).reshape(-1)
        if len(packed) * 2 != count or list(state.get("shape", [])) != [parts.outputs, parts.inputs]:
            raise parts.wrong(
                "weight",
                f"is said to be {state.get('shape')} in {len(packed)} bytes, expected {[parts.outputs, parts.inputs]}",
            )
        levels = parts.need("weight.quant_map", (torch.float32,), (16,))
        values = levels[torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1).int()]
        scales = _scales(parts, state, -(-count // size))
        return (values * scales.repeat_interleave(size)[:count]).reshape(parts.outputs, parts.inputs)


def _state(parts: Parts) -> dict[str, Any]:
    """The description that bitsandbytes packs into a tensor: JSON as bytes."""
    name = next((name for name in _STATES if name in parts.tensors), _STATES[0])
    try:
        state = json.loads(bytes(parts.take(name, (torch.uint8,)).tolist()))
        if not isinstance(state, dict) or not isinstance(state.get("blocksize"), int) or state["blocksize"] < 1:
            raise ValueError("no whole blocksize")
        return state
    except (ValueError, TypeError) as error:
        raise parts.wrong(name, f"is no description of a quantised layer: {error}") from error


def _scales(parts: Parts, state: Mapping[str, Any], blocks: int) -> torch.Tensor:
    """The highest magnitude of each block, unpacked where it is quantised itself."""
    if "weight.nested_absmax" not in parts.tensors:
        return parts.need("weight.absmax", (torch.float32,), (blocks,))
    size, offset = state.get("nested_blocksize"), state.get("nested_offset", 0.0)
    if not isinstance(size, int) or size < 1 or not isinstance(offset, int | float):
        raise CheckpointError(f"{parts.where}: layer '{parts.layer}' says no nested_blocksize or nested_offset")
    index = parts.need("weight.absmax", (torch.uint8,), (blocks,)).int()
    levels = parts.need("weight.nested_quant_map", (torch.float32,), (256,))
    outer = parts.need("weight.nested_absmax", (torch.float32,), (-(-blocks // size),))
    return levels[index] * outer.repeat_interleave(size)[:blocks] + offset
