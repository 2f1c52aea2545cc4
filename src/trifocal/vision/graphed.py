"""A part of a vision as it is called: on NVIDIA cards by CUDA graphs, one launch where there would be hundreds."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from trifocal import cuda
from trifocal.vision.placing import on_part

__all__ = ["Graphed"]

_MOST = 8  # squares that a tower sees at once
_OFTEN = 3  # times that a number of them is met until it is worth a graph of its own
_NEAR = 6  # from which on it never is
_Graph = tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]


class Graphed:
    """A part that takes one tensor ``[squares, ...]`` and gives one, called with values from anywhere, one at a time.

    Graphs are captured when squares of a shape are first met: one for as many as there are then, and one for `_MOST`,
    which others take, small ones until they were met `_OFTEN` times; capturing takes as long as seeing a hundred.
    """

    def __init__(self, part: nn.Module) -> None:
        self._part = part
        self._graphs: dict[torch.Size, _Graph] = {}
        self._met: Counter[torch.Size] = Counter()
        self._memory: Any = None

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        device = next(self._part.parameters()).device
        if device.type != "cuda" or torch.version.cuda is None:
            out: torch.Tensor = self._part(on_part(values, self._part))
            return out
        with torch.cuda.device(device):
            graph, taken, given = self._graph(values.shape)
            taken[: len(values)].copy_(values)  # from where they are, in the dtype they have
            graph.replay()
            return given[: len(values)].clone()

    def _graph(self, shape: torch.Size) -> _Graph:
        """A graph for values of that shape, or for more of them."""
        self._met[shape] += 1
        if shape not in self._graphs:
            most = torch.Size((max(_MOST, shape[0]), *shape[1:]))
            if most in self._graphs and (self._met[shape] < _OFTEN or _NEAR <= shape[0] < _MOST):
                return self._graphs[most]
            self._graphs[shape] = self._captured(shape)
            if most not in self._graphs and self._met[shape] == 1:
                with suppress(RuntimeError):  # no room, which torch may say in words alone: each number has its own
                    self._graphs[most] = self._captured(most)
        return self._graphs[shape]

    def _captured(self, shape: torch.Size) -> _Graph:
        taken = on_part(torch.zeros(shape), self._part)
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph, given = cuda.captured(lambda: self._part(taken), self._memory)
        return graph, taken, given
