"""A quantised layer as its files hold it, and the checks that every packing needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from trifocal.errors import CheckpointError
from trifocal.weights.packed import PackedLinear

__all__ = ["Parts", "Scheme", "dequantise", "unpack"]

_ROWS = 256  # output rows dequantised at a time: bounds the float32 intermediates


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of one layer: ``tensors["qweight"]`` is the file's ``<layer>.qweight``.

    ``where`` names the file for messages; ``outputs`` and ``inputs`` are the layer's features by the configuration,
    never by the packed shapes.
    """

    layer: str
    where: str
    outputs: int
    inputs: int
    tensors: Mapping[str, torch.Tensor]

    def need(self, part: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> torch.Tensor:
        """A part with the type and shape that it must have.

        Raises:
            CheckpointError: missing, or of another type or shape; names file, tensor, expected and found.
        """
        tensor = self.take(part, dtypes)
        if tuple(tensor.shape) != shape:
            raise self.wrong(part, f"has the shape {list(tensor.shape)}, expected {list(shape)}")
        return tensor

    def take(self, part: str, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
        """A part of one of these types, whatever its shape, but a matrix."""
        if part not in self.tensors:
            raise CheckpointError(f"{self.where}: the tensor '{self.layer}.{part}' is missing")
        tensor = self.tensors[part]
        if tensor.dtype not in dtypes:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise self.wrong(part, f"is {str(tensor.dtype).removeprefix('torch.')}, expected {expected}")
        return tensor

    def to(self, device: torch.device) -> Parts:
        """The same parts on a device."""
        return replace(self, tensors={part: tensor.to(device) for part, tensor in self.tensors.items()})

    def wrong(self, part: str, what: str) -> CheckpointError:
        """An error that names file and tensor."""
        return CheckpointError(f"{self.where}: tensor '{self.layer}.{part}' {what}")


class Scheme(Protocol):
    """One way to quantise: which tensors a layer has, and how they become a weight."""

    @property
    def marker(self) -> str:
        """The part that every quantised layer has, such as ``qweight``."""
        ...

    @property
    def others(self) -> tuple[str, ...]:
        """The parts that may stand beside it, but for ``bias``."""
        ...

    def packed(self, parts: Parts) -> PackedLinear | None:
        """The layer's levels, or None where the scheme has none."""
        ...

    def dense(self, parts: Parts) -> torch.Tensor:
        """The layer's weight ``[out, in]``, float32."""
        ...


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned values of ``bits`` bits from int32 words, lowest bits first, along the last dimension.

    ``[rows, words] -> uint8 [rows, words * 32 / bits]``. Three-bit values run on over word borders: 32 of them fill 3
    words. The others lie within a byte, and a word's bytes are in order.
    """
    if bits == 3:
        return _unpack_three(words)
    packed = words.reshape(-1).view(torch.uint8).reshape(len(words), -1)  # [rows, bytes]
    if bits == 8:
        return packed
    values = torch.empty(*packed.shape, 8 // bits, dtype=torch.uint8, device=words.device)
    for index in range(8 // bits):
        torch.bitwise_and(packed >> index * bits, (1 << bits) - 1, out=values[..., index])
    return values.reshape(len(words), -1)


def _unpack_three(words: torch.Tensor) -> torch.Tensor:
    triples = words.reshape(len(words), -1, 3)
    values = torch.empty(len(words), triples.shape[1], 32, dtype=torch.uint8, device=words.device)
    for index in range(32):
        word, shift = divmod(index * 3, 32)
        value = triples[..., word] >> shift & ((1 << min(3, 32 - shift)) - 1)
        if shift + 3 > 32:
            value = value | triples[..., word + 1] << (32 - shift) & 7
        values[..., index] = value
    return values.reshape(len(words), -1)


def dequantise(layer: PackedLinear) -> torch.Tensor:
    """``scale * (level - zero)``, float32 ``[out, in]``."""
    weight = torch.empty(layer.levels.shape, dtype=torch.float32)
    scales, zeros = layer.scales.T.contiguous(), layer.zeros.T.contiguous()  # [out, groups]
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        torch.sub(layer.levels[rows], zeros[rows].index_select(1, layer.group), out=weight[rows])
        weight[rows] *= scales[rows].index_select(1, layer.group)
    return weight
