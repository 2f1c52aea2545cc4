"""Prompts in eight bits: the layers once more with weights in e4m3, which Hopper multiplies at twice the rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from trifocal import cuda
from trifocal.engines.native.linear import Dense, Linear, Packed
from trifocal.engines.native.memory import Step
from trifocal.engines.native.model import Layer, Plain
from trifocal.errors import UsageError

__all__ = ["Eight", "Prompts"]

_LARGEST = 448.0  # of e4m3
_ROWS = 4096  # outputs that are rounded at a time
_MULTIPLE = 16  # of inputs and outputs


class Eight:
    """The weight of a linear layer in e4m3, for rows in e4m3.

    With a ``bound``, than which no value of a row is larger, one number divides all rows and one all of the weight;
    without, each row of both is divided by what makes its own largest value the largest of e4m3.
    """

    def __init__(self, exact: Dense | Packed, bound: float | None = None) -> None:
        dense = exact.unpacked() if isinstance(exact, Packed) else exact.weight
        most = dense.abs().amax() if bound else dense.abs().amax(1, keepdim=True)
        steps = most.float().clamp_min(1e-12) / _LARGEST
        # row by row, however the exact one lies
        weight = torch.empty(dense.shape, dtype=torch.float8_e4m3fn, device=dense.device)
        for at in range(0, len(dense), _ROWS):
            rows = slice(at, at + _ROWS)
            weight[rows] = (dense[rows].float() / (steps if bound else steps[rows])).to(torch.float8_e4m3fn)
        self._weight, self._bias, self._dtype = weight.T, exact.bias, dense.dtype
        self._steps = steps if bound else steps.T.contiguous()  # [] or [1, outputs]
        self.step = None if not bound else torch.tensor(bound / _LARGEST, device=dense.device)
        self.nbytes = weight.nbytes

    def __call__(self, rows: torch.Tensor, steps: torch.Tensor | None = None) -> torch.Tensor:
        """The product ``[rows, outputs]`` of e4m3 ``[rows, inputs]`` that were divided by ``steps`` ``[rows, 1]``."""
        by = self.step if steps is None else steps
        assert by is not None, "rows of a layer without a bound come with their steps"
        product: torch.Tensor = torch._scaled_mm(
            rows, self._weight, scale_a=by, scale_b=self._steps, out_dtype=self._dtype, use_fast_accum=True
        )
        return product if self._bias is None else product.add_(self._bias)


class _Block(NamedTuple):
    """One block's weights; what stands behind a norm has a bound."""

    qkv: Eight
    output: Eight
    gate_up: Eight
    down: Eight


class Prompts:
    """The blocks of a model for prompts: norms, gates and sums leave rows in e4m3 as the next product wants them.

    Raises:
        UsageError: a layer that can't be had in eight bits.
    """

    def __init__(self, layers: list[Layer], epsilon: float) -> None:
        self._layers, self._epsilon = layers, epsilon
        self._blocks = [_block(layer) for layer in layers]
        self._by_turns = isinstance(layers[0].gate_up, Packed)
        norm = layers[0].before_mlp
        self._macros, self._device = (("BF", int(norm.dtype == torch.bfloat16)),), norm.device
        self.nbytes = sum(one.nbytes for block in self._blocks for one in block)

    def forward(self, x: torch.Tensor, step: Step, operations: Plain) -> torch.Tensor:
        """Hidden states ``[rows, hidden]`` of input rows ``[rows, hidden]``, which are overwritten."""
        more: torch.Tensor | None = None
        rounded, steps = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(len(x), 1, dtype=torch.float32)
        for index, (layer, block) in enumerate(zip(self._layers, self._blocks, strict=True)):
            self._norm(x, more, layer.before_attention, rounded, block.qkv)
            seen = operations.attend(block.qkv(rounded), layer, index, step)
            more = block.output(self._rounded(seen, steps), steps)
            self._norm(x, more, layer.before_mlp, rounded, block.gate_up)
            more = block.down(self._gated(block.gate_up(rounded), steps), steps)
        return x if more is None else x.add_(more)

    def _norm(
        self, x: torch.Tensor, more: torch.Tensor | None, weight: torch.Tensor, rounded: torch.Tensor, to: Eight
    ) -> None:
        """Adds ``more`` to x and writes its norm."""
        self._kernel("norm_eight")((len(x), 1, 1), x, more, weight, rounded, to.step, x.shape[1], self._epsilon)

    def _rounded(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
        self._kernel("row_eight")((len(x), 1, 1), x, out, steps, x.shape[1])
        return out

    def _gated(self, gate_up: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up."""
        inner = gate_up.shape[1] // 2
        out = gate_up.new_empty(len(gate_up), inner, dtype=torch.float8_e4m3fn)
        kernel = self._kernel("gate_eight", 2 * inner)
        kernel((len(gate_up), 1, 1), gate_up, out, steps, inner, int(self._by_turns))
        return out

    def _kernel(self, name: str, shared: int = 0) -> cuda.Kernel:
        return cuda.compiled("eight", self._macros, name, 256, shared, self._device)


def _block(layer: Layer) -> _Block:
    attention, mlp = _bound(layer.before_attention), _bound(layer.before_mlp)
    wanted = ((layer.qkv, attention), (layer.output, None), (layer.gate_up, mlp), (layer.down, None))
    return _Block(*(_eight(linear, bound) for linear, bound in wanted))


def _eight(linear: Linear, bound: float | None) -> Eight:
    if not isinstance(linear, Dense | Packed) or any(size % _MULTIPLE for size in linear.shape):
        raise UsageError("prompts=fp8: a layer of this model can't be multiplied so; leave it out")
    return Eight(linear, bound)


def _bound(norm: torch.Tensor) -> float:
    """Than which nothing behind a norm with that weight is larger: the root of how many there are, but for rounding."""
    return 1.01 * math.sqrt(len(norm)) * float(norm.abs().max())
