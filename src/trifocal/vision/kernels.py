"""A tower's steps by our own kernels, where a card has them."""

from __future__ import annotations

import torch
from torch import nn

from trifocal import cuda
from trifocal.checkpoints import Tower
from trifocal.vision.fused import Fused, Plain, Rows
from trifocal.vision.towers import VisionTransformer

__all__ = ["Kernels", "at_its_best"]

_ACTS = {"quick_gelu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}  # as `activate` has them
_WIDEST = 8 * 1024  # values of a row: a block has a thread for 8


def at_its_best(tower: VisionTransformer) -> nn.Module:
    """The tower as it is seen with: by kernels on an NVIDIA card in 16 bits, or as it is."""
    one = next(tower.parameters())
    if one.dtype not in (torch.float16, torch.bfloat16) or not cuda.supported(one.device):
        return tower
    return Fused(tower, Kernels(tower.config, one.dtype, one.device)) if _fits(tower.config) else tower


def _fits(config: Tower) -> bool:
    widths = (config.hidden, config.mlp, config.hidden // config.heads)
    return config.act in _ACTS and not any(width % 8 for width in widths) and config.hidden <= _WIDEST


class Kernels(Plain):
    """`Plain` with a kernel for all that stands between two products."""

    def __init__(self, config: Tower, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(config)
        macros = (("BF", int(dtype == torch.bfloat16)), ("ACT", _ACTS[config.act]), ("PATCH", config.patch_size))
        whole = -(-config.hidden // 256) * 32  # threads of a row: whole warps, 8 values each
        with torch.cuda.device(device):  # where a kernel is loaded
            self._patches, self._begin, self._add, self._activate = (
                cuda.compiled("tower", macros, name, threads, 0, device)
                for name, threads in (("patches", 256), ("begin", whole), ("add_norm", whole), ("activate", 256))
            )

    def patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        images, side, patch = len(pixel_values), self.config.side, self.config.patch_size
        columns = -(-3 * patch * patch // 8) * 8
        rows = pixel_values.new_empty(images * side * side, columns)
        self._patches((side * side, images, 1), pixel_values.contiguous(), rows, side, pixel_values.shape[-1], columns)
        return rows

    def begin(
        self, patches: torch.Tensor, first: torch.Tensor | None, places: torch.Tensor, norm: nn.LayerNorm | None
    ) -> Rows:
        rows, hidden = places.shape
        images = len(patches) // (rows - (first is not None))
        x = patches.new_empty(images * rows, hidden)
        y = x if norm is None else torch.empty_like(x)
        self._begin((len(x), 1, 1), patches, first, places, *_norm(norm, x, y), rows, hidden, _eps(norm))
        return Rows(x, y)

    def onto(self, x: torch.Tensor, taken: torch.Tensor, linear: nn.Linear, norm: nn.LayerNorm | None) -> Rows:
        parts = self.parts(len(taken), linear)
        if parts == 1:
            return self._added(x, linear(taken), None, 0, norm)
        rows = taken.view(len(taken), parts, -1).transpose(0, 1)
        weights = linear.weight.view(len(linear.weight), parts, -1).permute(1, 2, 0)
        return self._added(x, torch.bmm(rows, weights, out_dtype=torch.float32), linear.bias, parts, norm)

    def parts(self, rows: int, linear: nn.Linear) -> int:
        """Into how many products along its inputs one is divided, whose sum is made where it is added."""
        return 1

    def norm(self, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        return self._added(x, None, None, 0, norm).normed

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.numel() // 8
        self._activate((-(-groups // 512), 1, 1), x, groups)
        return x

    def _added(
        self,
        x: torch.Tensor,
        added: torch.Tensor | None,
        bias: torch.Tensor | None,
        parts: int,
        norm: nn.LayerNorm | None,
    ) -> Rows:
        hidden = x if added is None else torch.empty_like(x)
        normed = hidden if norm is None else torch.empty_like(x)
        self._add(
            (len(x), 1, 1),
            *(x, added, bias, *_norm(norm, hidden, normed), parts, x.shape[1], _eps(norm)),
        )
        return Rows(hidden, normed)


def _norm(norm: nn.LayerNorm | None, hidden: torch.Tensor, normed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """What the kernels take of a norm: its weight and bias, and where to put the rows and their norm."""
    return (None, None, hidden, None) if norm is None else (norm.weight, norm.bias, hidden, normed)


def _eps(norm: nn.LayerNorm | None) -> float:
    return 0.0 if norm is None else norm.eps
