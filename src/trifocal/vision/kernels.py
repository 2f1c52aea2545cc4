"""A tower's steps by our own kernels and its attention by cuDNN's, where a card has them."""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.nn import functional

from trifocal import cuda
from trifocal.checkpoints import Tower
from trifocal.vision.fused import Attention, Fused, Plain, Rows
from trifocal.vision.towers import VisionTransformer

__all__ = ["ByCudnn", "Kernels", "at_its_best", "attention_on"]

log = logging.getLogger("trifocal")
_ACTS = {"quick_gelu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}  # as `activate` has them
_CUDNN_ON = {(9, 0), (10, 0), (10, 3)}
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
        super().__init__(config, attention_on(device))
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
        return self._added(x, linear(taken), norm)

    def norm(self, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        return self._added(x, None, norm).normed

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.numel() // 8
        self._activate((-(-groups // 512), 1, 1), x, groups)
        return x

    def _added(self, x: torch.Tensor, added: torch.Tensor | None, norm: nn.LayerNorm | None) -> Rows:
        hidden = x if added is None else torch.empty_like(x)
        normed = hidden if norm is None else torch.empty_like(x)
        self._add((len(x), 1, 1), x, added, *_norm(norm, hidden, normed), x.shape[1], _eps(norm))
        return Rows(hidden, normed)


class ByCudnn:
    """Attention by cuDNN's kernel, in half the time of flash attention's; by torch's choice once cuDNN has none.

    cuDNN plans for each shape and thread, for as long as a second: for what is captured as a graph that is once. So its
    operation is called by name. `torch.nn.attention.sdpa_kernel` asks for it in all threads, in those of the language
    model, too, which meet a new length with every prompt.
    """

    def __init__(self) -> None:
        self.found = True

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if self.found:
            try:
                seen: torch.Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
                    queries, keys, values, None, False
                )[0]
                return seen
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                log.info("cuDNN has no attention for heads of %d: %s", queries.shape[-1], error)
                self.found = False
        return functional.scaled_dot_product_attention(queries, keys, values)


def attention_on(device: torch.device) -> Attention:
    """cuDNN's on the cards for which torch itself would choose it, where it is safe in graphs.

    A graph may need the plan of its kernels for as long as it is replayed, and torch did not always keep it behind the
    thread's end. cuDNN up to 9.15.0 is at fault for rows that are no multiple of 128, in graphs above all
    (pytorch/pytorch#169849).
    """
    lasting = torch.__version__ >= "2.11"  # compared as a version
    right = (torch.backends.cudnn.version() or 0) > 91500  # type: ignore[no-untyped-call]
    if lasting and right and torch.cuda.get_device_capability(device) in _CUDNN_ON:
        return ByCudnn()
    return functional.scaled_dot_product_attention


def _norm(norm: nn.LayerNorm | None, hidden: torch.Tensor, normed: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """What the kernels take of a norm: its weight and bias, and where to put the rows and their norm."""
    return (None, None, hidden, None) if norm is None else (norm.weight, norm.bias, hidden, normed)


def _eps(norm: nn.LayerNorm | None) -> float:
    return 0.0 if norm is None else norm.eps
