"""A part of a vision as it is called: on NVIDIA cards by CUDA graphs, one launch where there would be hundreds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trifocal.vision.placing import on_part

__all__ = ["Graphed"]


class Graphed:
    """A part that takes one tensor and gives one, called with values from anywhere; by one caller at a time.

    A graph is captured for each shape when it is first met. They are few: towers see a handful of squares at once.
    """

    def __init__(self, part: nn.Module) -> None:
        self._part = part
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        self._memory: Any = None

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        device = next(self._part.parameters()).device
        if device.type != "cuda" or torch.version.cuda is None:
            out: torch.Tensor = self._part(on_part(values, self._part))
            return out
        with torch.cuda.device(device):
            graph, taken, given = self._graphs.get(values.shape) or self._captured(on_part(values, self._part))
            taken.copy_(values)  # from where they are, in the dtype they have
            graph.replay()
            return given.clone()

    def _captured(self, values: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        taken = values.clone()
        self._part(taken)  # what is made at first use is made now
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            given = self._part(taken)
        self._memory = self._memory or graph.pool()
        self._graphs[values.shape] = graph, taken, given
        return graph, taken, given
