"""Steps of one prompt as CUDA graphs: launching their kernels one by one can take longer than running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trifocal import cuda
from trifocal.engines.native.kernels import Kernels, Places, Prompted
from trifocal.engines.native.memory import BLOCK, FEW, Step
from trifocal.engines.native.model import Model
from trifocal.engines.scheduler import Run

__all__ = ["BEFORE", "SIZES", "PromptGraphs", "fill"]

SIZES = tuple(range(2 * FEW, 1024 + 1, 64))  # rows
BEFORE = 64  # positions in front of them, at the most: what all prompts begin with is found again
_TAIL = 5  # numbers behind those of every row and of what is in front


class PromptGraphs:
    """A model's step of one prompt that is all there is to do, for each of `SIZES`; captured while nobody asks.

    Attention reads on the card how many rows there are and how many positions stand in front of them. Rows that fill up
    to the next size write nothing, and nobody sees them.
    """

    def __init__(self, model: Model, operations: Kernels, memory: Any) -> None:
        self._model, self._operations, self._memory = model, operations, memory
        most, device = SIZES[-1], model.device
        # two, by turns: the card may not have read one of them when the next step is written
        self._hosts = [torch.zeros(2 * most + BEFORE + _TAIL, dtype=torch.int32).pin_memory() for _ in range(2)]
        self._device = torch.zeros_like(self._hosts[0], device=device)
        self._x = torch.zeros(most, model.embedding.shape[1], dtype=model.dtype, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        none = torch.zeros(0, dtype=torch.long, device=device)
        self._step = Step(none, none, none, (), none)

    def takes(self, runs: Sequence[Run[Any]]) -> bool:
        """Whether there is a graph of their step."""
        run = runs[0]
        fits = len(runs) == 1 and run.count <= SIZES[-1] and run.start <= BEFORE and run.wanted <= 1
        return fits and _size(run.count) in self._graphs

    def logits(self, run: Run[Any], rows: torch.Tensor) -> torch.Tensor:
        """The logits ``[1, vocabulary]`` behind its last position, or none, from its input rows ``[rows, hidden]``."""
        size = _size(run.count)
        self._send(run, size)
        self._x[: run.count].copy_(rows)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: run.wanted]

    def prepare(self) -> bool:
        """Captures the next step; False where there is none left."""
        size = next((size for size in SIZES if size not in self._graphs), None)
        if size is None:
            return False
        self._send(None, size)
        self._graphs[size] = self._captured(size)
        return True

    def _send(self, run: Run[Any] | None, size: int) -> None:
        self._hosts.reverse()
        fill(self._hosts[0].numpy(), run, size)
        self._device.copy_(self._hosts[0], non_blocking=True)

    def _captured(self, size: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        most, told = SIZES[-1], self._device
        positions, slots, before, tail = told[:size], told[most:][:size], told[2 * most :][:BEFORE], told[-_TAIL:]
        prompt, last = Prompted(before, tail[:2], tail[2:4]), tail[4:]
        # what only single rows want is not looked at
        self._operations.use(Places(positions, slots, positions, positions, positions[:, None], prompt=prompt))

        def run() -> torch.Tensor:
            hidden = self._model.forward(self._x[:size].clone(), self._step, self._operations)
            return self._model.logits(hidden.index_select(0, last), self._operations)

        return cuda.captured(run, self._memory)


def fill(numbers: np.ndarray[Any, np.dtype[np.int32]], run: Run[Any] | None, size: int) -> None:
    """Writes where each row of a step of ``size`` stands: positions and slots, 1,024 each, then what is in front.

    That is the slots of the `BEFORE` positions in front of the rows, of which the last are there, then where the rows
    begin and end, where what they see does among those in front and the rows, and the last row.
    """
    most = SIZES[-1]
    positions, slots, before, tail = np.split(numbers, [most, 2 * most, 2 * most + BEFORE])
    start, count = (run.start, run.count) if run else (0, 0)
    stands = np.arange(start + count)
    blocks = np.array(run.blocks if run else (), dtype=np.int64)
    where = blocks[stands // BLOCK] * BLOCK + stands % BLOCK
    positions[:count], slots[:count], before[BEFORE - start :] = stands[start:], where[start:], where[:start]
    positions[count:size], slots[count:size], before[: BEFORE - start] = 0, -1, 0
    tail[:] = 0, count, BEFORE - start, BEFORE + count, max(0, count - 1)


def _size(count: int) -> int:
    return next(size for size in SIZES if size >= count)
