"""Muon: momentum made orthogonal, for all matrices of one shape at once.

Keller Jordan and others, https://kellerjordan.github.io/posts/muon/ (2024); the polynomial's coefficients are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """``[count, rows, columns]`` with singular values pushed towards one, by five Newton-Schulz steps."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: torch.Tensor = x.mT if tall else x
    return result


class _Group(NamedTuple):
    parameters: list[nn.Parameter]
    weights: torch.Tensor  # [parameters, rows, columns], which the parameters are views of
    gradients: torch.Tensor
    momentum: torch.Tensor
    scale: float


class Muon:
    """The optimiser; parameters of one shape come to lie in one tensor."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.01, momentum: float = 0.95) -> None:
        self.decay, self.momentum = decay, momentum
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self.groups = [self._group(shape, each) for shape, each in sorted(by_shape.items())]

    def _group(self, shape: tuple[int, ...], parameters: list[nn.Parameter]) -> _Group:
        weights = torch.stack([parameter.data for parameter in parameters])
        gradients = torch.zeros_like(weights)
        for index, parameter in enumerate(parameters):
            parameter.data, parameter.grad = weights[index], gradients[index]
        return _Group(parameters, weights, gradients, torch.zeros_like(weights), max(1, shape[0] / shape[1]) ** 0.5)

    @torch.no_grad()
    def step(self, rate: float, moves: Callable[[nn.Parameter], bool] | None = None) -> None:
        """One step; where ``moves`` is given, only of the parameters that it is true of."""
        for group in self.groups:
            group.momentum.lerp_(group.gradients, 1 - self.momentum)
            change = orthogonal(group.gradients.lerp(group.momentum, self.momentum)).to(group.weights.dtype)
            if moves:
                chosen = [float(moves(parameter)) for parameter in group.parameters]
                change = change * torch.tensor(chosen, device=change.device)[:, None, None]
            group.weights.mul_(1 - rate * self.decay).add_(change, alpha=-rate * group.scale)

    def zero(self) -> None:
        """Forgets the gradients."""
        for group in self.groups:
            group.gradients.zero_()
