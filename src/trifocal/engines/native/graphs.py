"""Steps of few rows as CUDA graphs: one launch where there would be several hundred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trifocal import cuda
from trifocal.engines.native.kernels import LEAST, Kernels, Places
from trifocal.engines.native.memory import BLOCK, Step
from trifocal.engines.native.model import Model
from trifocal.engines.sampler import put
from trifocal.engines.scheduler import Run

__all__ = ["SIZES", "Graphs", "fill"]

_SECTIONS = 6  # ids, and the numbers of `Places`
SIZES = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64)  # rows


class Graphs:
    """A model's step for each of `SIZES`, captured when it is first needed, or before, while nobody asks (`prepare`).

    Every row has its place, with the blocks of its sequence: single positions of many answers, the neighbouring ones
    of a short prompt, or both. Sizes in which neighbouring ones may attend together have two steps, with what that
    takes and without it. Rows that fill up to the next size write nothing.
    """

    def __init__(self, model: Model, operations: Kernels, columns: int, memory: Any) -> None:
        self._model, self._operations, self._columns, self._memory = model, operations, columns, memory
        device, most = model.device, SIZES[-1]
        # two, by turns: the card may not have read one of them when the next step is written
        self._hosts = [torch.zeros(_SECTIONS * most + most * columns, dtype=torch.int32).pin_memory() for _ in range(2)]
        self._device = torch.zeros_like(self._hosts[0], device=device)
        self._x = torch.zeros(most, model.embedding.shape[1], dtype=model.dtype, device=device)
        self._kinds = [(size, joined) for size in SIZES for joined in (False, True)[: 1 + bool(operations.runs(size))]]
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        none = torch.zeros(0, dtype=torch.long, device=device)
        self._step = Step(none, none, none, (), none)

    def logits(
        self, runs: Sequence[Run[Any]], rows: torch.Tensor | None, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The logits ``[positions that are wanted, vocabulary]``.

        ``rows`` are the inputs, None where all are ids; ``ids`` ``[runs]`` are those of runs of one position each that
        only the device knows.
        """
        count = sum(run.count for run in runs)
        size = next(size for size in SIZES if size >= count)
        kind = size, self._fill(runs, size, known=ids is None)
        self._send(size)
        if ids is not None:
            self._device[:count].copy_(ids)
        if rows is None:
            torch.index_select(self._model.embedding, 0, self._device[:size], out=self._x[:size])
        else:
            self._x[:count].copy_(rows)
        graph, logits = self._graphs.get(kind) or self._capture(*kind)
        graph.replay()
        last: list[int] = []
        at = -1
        for run in runs:
            at += run.count
            last += range(at + 1 - run.wanted, at + 1)
        first = last[0] if last else 0
        if last == list(range(first, first + len(last))):
            return logits[first : first + len(last)]
        # nothing here waits for the replay: what is done next with the logits is on its way before they are there
        return logits[put(last, logits.device)]

    def prepare(self) -> bool:
        """Captures the next step that was not needed so far; False where there is none."""
        kind = next((kind for kind in self._kinds if kind not in self._graphs), None)
        if kind is None:
            return False
        self._fill((), kind[0])
        self._send(kind[0])
        self._capture(*kind)
        return True

    def _send(self, size: int) -> None:
        """Brings what `_fill` wrote to the device."""
        used = _SECTIONS * SIZES[-1] + size * self._columns
        self._device[:used].copy_(self._hosts[0][:used], non_blocking=True)

    def _fill(self, runs: Sequence[Run[Any]], size: int, *, known: bool = True) -> bool:
        self._hosts.reverse()
        together = self._operations.runs(size)
        return fill(self._hosts[0].numpy(), self._columns, runs, size, together=together, known=known)

    def _capture(self, size: int, joined: bool) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        most = SIZES[-1]
        sections = self._device[: _SECTIONS * most].view(_SECTIONS, most)
        tables = self._device[_SECTIONS * most :].view(most, self._columns)[:size]
        _, positions, slots, lengths, known, _ = sections[:, :size]
        runs = sections[-1].view(-1, 4) if joined else None
        self._operations.use(Places(positions, slots, lengths, known, tables, runs))

        def run() -> torch.Tensor:
            hidden = self._model.forward(self._x[:size].clone(), self._step, self._operations)
            return self._model.logits(hidden, self._operations)

        # what it writes the replay writes again
        self._graphs[size, joined] = cuda.captured(run, self._memory)
        return self._graphs[size, joined]


def fill(
    numbers: np.ndarray[Any, np.dtype[np.int32]],
    columns: int,
    runs: Sequence[Run[Any]],
    size: int,
    *,
    together: int,
    known: bool = True,
) -> bool:
    """Writes where each row of a step of ``size`` stands, as `Places` has it, one section of 64 behind the other.

    They are ids, positions, slots, lengths, known and runs, and then the tables ``[64, columns]``. As many runs as
    ``together`` says attend so, if they are long enough: whether any does is told. Without ``known`` the ids are 0: the
    device has them.
    """
    most = SIZES[-1]
    sections = numbers[: _SECTIONS * most].reshape(_SECTIONS, most)
    tables, listed = numbers[_SECTIONS * most :].reshape(most, columns), sections[-1].reshape(-1, 4)
    sections[:-1, :size] = ((0,), (0,), (-1,), (0,), (0,))
    listed[:] = 0
    at = joined = 0
    for run in runs:
        blocks, ids = run.blocks[:columns], run.ids if known else None
        joins = run.count >= LEAST and joined < together
        if joins:
            listed[joined, :3] = at, run.count, run.start
            joined += 1
        for place in range(run.start, run.start + run.count):
            slot = blocks[place // BLOCK] * BLOCK + place % BLOCK
            sections[:-1, at] = ids[place - run.start] if ids else 0, place, slot, -1 if joins else place + 1, run.start
            tables[at, : len(blocks)] = blocks
            at += 1
    return joined > 0
