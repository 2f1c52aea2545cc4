"""What weights can tell besides dense tensors: layers as they were quantised, and where a tensor lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

__all__ = ["Located", "PackedLinear", "PackedWeights"]


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A linear layer whose weight is whole levels on a grid: ``weight = scale * (level - zero)``.

    ``levels`` uint8 ``[out, in]`` below ``2**bits``, ``scales`` and ``zeros`` float32 ``[groups, out]``, ``group``
    int64 ``[in]`` says which group a column belongs to, ``bias`` is ``[out]`` or None.
    """

    bits: int
    levels: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group: torch.Tensor
    bias: torch.Tensor | None = None


@runtime_checkable
class PackedWeights(Protocol):
    """Weights that can also give a layer as it was quantised, for engines with a product of their own for it."""

    def packed(self, name: str, device: torch.device | None = None) -> PackedLinear | None:
        """The layer whose weight is called ``name``, or None where it is an ordinary tensor.

        Its levels are taken apart on ``device``: a card does so much faster than the CPU.
        """
        ...


@runtime_checkable
class Located(Protocol):
    """Weights that can also tell their files: of one tensor for messages, and all of them."""

    @property
    def files(self) -> set[Path]:
        """All files of which any of the tensors is made."""
        ...

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        ...
