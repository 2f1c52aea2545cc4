"""The linear layers: dense weights, and four-bit ones that stay packed for few rows and are unpacked for many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import Protocol

import torch
from torch.nn import functional

from trifocal import cuda
from trifocal.engines.int4 import Int4Linear
from trifocal.engines.native import wide
from trifocal.engines.native.packing import FourBit
from trifocal.weights.packed import PackedLinear

__all__ = ["Blocked", "Dense", "Linear", "Packed", "Stored", "dense"]

_FEW = (16, 64)  # rows up to which the packed product is the fastest, with the wide one and without
_MANY = 1536  # rows from which the dense product is, even after the weight was unpacked
_UNPACKED = 320 << 20  # bytes of a weight that are unpacked together: pieces that stay in the cache were slower
# rows -> warps, stages, tall (see kernels/product.cu), and blocks a processor: the fastest of those that were measured
_PLANS = {8: (8, 4, 1, 2), 16: (8, 2, 2, 1), 32: (8, 2, 2, 1)}


class Linear(Protocol):
    """``x [rows, inputs] -> [rows, outputs]``."""

    def __call__(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """The product, added onto rows ``[rows, outputs]`` in place where they are given."""
        ...

    def swiglu(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of a weight that holds both, ``[rows, outputs / 2]``."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        ...

    def variants(self, then: int) -> list[cuda.Source]:
        """What has to be compiled for every number of rows; ``then`` as ``kernels/product.cu`` says."""
        ...


class _Multiplied(ABC):
    """A `Linear` by a product that knows nothing of what comes behind it."""

    @abstractmethod
    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """``x [rows, inputs] -> [rows, outputs]``, with the bias."""

    def __call__(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        product = self.multiply(x)
        return product if onto is None else onto.add_(product)

    def swiglu(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.multiply(x).chunk(2, -1)
        return functional.silu(gate).mul_(up)

    def variants(self, then: int) -> list[cuda.Source]:
        return []


class Dense(_Multiplied):
    """A weight ``[outputs, inputs]`` in the model's own type, with a bias or none."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, inputs = self.weight.shape
        return outputs, inputs

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class Blocked(_Multiplied):
    """A bfloat16 weight laid out for oneDNN's products on a CPU, which are those of `Dense` and sooner for few rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight, None), bias
        self._bytes = weight.nbytes + (0 if bias is None else bias.nbytes)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._bytes

    @staticmethod
    @cache
    def works() -> bool:
        """Whether torch has these products here, and they are right: nobody promises them."""
        weight, x = torch.arange(-512.0, 512.0).view(32, 32).bfloat16() / 512, torch.eye(32).bfloat16()
        try:
            return torch.equal(Blocked(weight)(x), Dense(weight)(x))
        except (AttributeError, NotImplementedError, RuntimeError):
            return False


def dense(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Dense | Blocked:
    """A weight ``[outputs, inputs]`` in the layout that is the fastest where it lies."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and Blocked.works():
        return Blocked(weight, bias)
    if weight.device.type == "cpu" and weight.dtype == torch.float32:  # inputs one below the other, as products read it
        weight = weight.T.contiguous().T
    return Dense(weight, bias)


class Stored(_Multiplied):
    """A four-bit weight by torch's own product, which CPUs have too; see `trifocal.engines.int4`."""

    def __init__(self, layer: PackedLinear, device: torch.device, bias: torch.Tensor | None = None) -> None:
        self._product, self._bias = Int4Linear(layer, device), bias

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self._product(x)
        return product if self._bias is None else product + self._bias

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(buffer.nbytes for buffer in self._product.buffers()) + (
            0 if self._bias is None else self._bias.nbytes
        )


class Packed:
    """A four-bit weight on an NVIDIA card; gate and up lie by turns of eight rows in one that holds both."""

    def __init__(self, weight: FourBit, dtype: torch.dtype, bias: torch.Tensor | None = None) -> None:
        self.weight, self.dtype, self.bias = weight, dtype, bias
        self._device = weight.words.device
        self._wide = wide.supported(weight, self._device)
        self._processors = torch.cuda.get_device_properties(self._device).multi_processor_count

    def __call__(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        if self._dense_is_fastest(len(x)):
            product = self._dense(self._ordered(x))
            return product if onto is None else onto.add_(product)
        out = onto if onto is not None else x.new_empty(len(x), self.weight.outputs)
        self._multiply(x, out, 0 if onto is None else 1)
        return out if self.bias is None else out.add_(self.bias)

    def swiglu(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(len(x), self.weight.outputs // 2)
        if self._dense_is_fastest(len(x)):
            product = self._dense(self._ordered(x))
            kernel = cuda.compiled("small", self._macros(), "swiglu", 256, 0, self._device)
            inner = self.weight.outputs // 2
            kernel(((inner // 8 + 255) // 256, len(x), 1), product, out, inner, 1)
            return out
        self._multiply(x, out, 2)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.weight.words.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.weight.outputs, self.weight.inputs

    def unpacked(self) -> torch.Tensor:
        """The whole weight ``[outputs, inputs]``, in the model's type, for x as it is."""
        dense = torch.empty(self.weight.outputs, self.weight.inputs, dtype=self.dtype, device=self._device)
        self._unpack(dense, 0, self.weight.outputs)
        order = self.weight.order
        return dense if order is None else dense.index_select(1, order.argsort())

    def variants(self, then: int) -> list[cuda.Source]:
        """What `cuda.prepare` is told of a product for every number of rows."""
        few = [("product", self._product_macros(rows, then)) for rows in _PLANS if rows <= self._few]
        return [*few, *(wide.variants(self.weight, self.dtype, then) if self._wide else ())]

    @property
    def _few(self) -> int:
        return _FEW[0] if self._wide else _FEW[1]

    def _dense_is_fastest(self, rows: int) -> bool:
        return rows > (_MANY if self._wide else self._few)

    def _multiply(self, x: torch.Tensor, out: torch.Tensor, then: int) -> None:
        """The product without a dense weight; ``then`` as ``kernels/product.cu`` says."""
        if len(x) <= self._few:
            self._product(self._ordered(x), out, then)
        else:
            wide.product(self.weight, x, out, then)

    def _ordered(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.weight.order is None else x.index_select(1, self.weight.order)

    def _macros(self) -> tuple[tuple[str, int], ...]:
        return (("BF", int(self.dtype == torch.bfloat16)),)

    def _product_macros(self, rows: int, then: int) -> tuple[tuple[str, int], ...]:
        few = 8 if rows <= 8 else 16 if rows <= 16 else 32
        warps, stages, tall, _ = _PLANS[few]
        return (
            *self._macros(),
            ("WARPS", warps),
            ("STAGES", stages),
            ("TALL", 1 if self.weight.outputs % (32 * tall) else tall),
            ("ROWS", few),
            ("GROUP", self.weight.group),
            ("OFFSET", int(self.weight.offset)),
            ("THEN", then),
        )

    def _product(self, x: torch.Tensor, out: torch.Tensor, then: int) -> None:
        """The packed product of up to 32 rows at a time."""
        weight, width = self.weight, out.shape[1]
        for at in range(0, len(x), 32):
            rows = min(32, len(x) - at)
            macros = self._product_macros(rows, then)
            plan = dict(macros)
            warps, high = plan["WARPS"], 32 * plan["TALL"]
            stage = weight.words.shape[2] * 4 * plan["TALL"] + 16
            shared = warps * (plan["STAGES"] * stage + 2 * plan["ROWS"] * high * 4)
            kernel = cuda.compiled("product", macros, "product", warps * 32, shared, self._device)
            blocks = weight.outputs // high
            grid = min(blocks, _PLANS[plan["ROWS"]][3] * self._processors)
            few = slice(at, at + rows)
            kernel((grid, 1, 1), x[few], weight.words, out[few], weight.inputs, blocks, rows, width)

    def _dense(self, x: torch.Tensor) -> torch.Tensor:
        """The product of many rows: the weight is unpacked piece by piece, each multiplied while the cache has it."""
        weight = self.weight
        out = x.new_empty(len(x), weight.outputs)
        piece = max(32, _UNPACKED // (weight.inputs * 2) // 32 * 32)
        scratch = x.new_empty(min(piece, weight.outputs), weight.inputs)
        for at in range(0, weight.outputs, piece):
            rows = min(piece, weight.outputs - at)
            self._unpack(scratch, at, rows)
            torch.mm(x, scratch[:rows].T, out=out[:, at : at + rows])
        return out if self.bias is None else out.add_(self.bias)

    def _unpack(self, dense: torch.Tensor, at: int, rows: int) -> None:
        weight = self.weight
        words = weight.words[at // 32 : (at + rows) // 32]
        macros = (*self._macros(), ("GROUP", weight.group), ("OFFSET", int(weight.offset)))
        chunks = words.shape[0] * words.shape[1]
        cuda.compiled("product", macros, "unpack", 128, 0, self._device)(
            ((chunks + 3) // 4, 1, 1), words, dense, weight.inputs, chunks
        )
