"""Activations by the names that configurations give them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from trifocal.errors import CheckpointError

__all__ = ["Activation", "activation"]


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation of that name, as transformers spells them.

    Raises:
        CheckpointError: no LLaVA has one of that name.
    """
    known: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "quick_gelu": lambda x: (1.702 * x).sigmoid_().mul_(x),  # in one new tensor, not three
        "gelu": functional.gelu,
        "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "linear": lambda x: x,
    }
    if name not in known:
        raise CheckpointError(f"activation {name!r} is not known; known: {', '.join(sorted(known))}")
    return known[name]


class Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._act = activation(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._act(x)
