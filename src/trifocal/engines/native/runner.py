"""The runner of the native engine: which rows run, and by which of its ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trifocal.engines.native.graphs import SIZES, Graphs
from trifocal.engines.native.kernels import Kernels, Places
from trifocal.engines.native.memory import BLOCK, Pool, Step, alone, step_of
from trifocal.engines.native.model import Model, Plain
from trifocal.engines.native.prompt_graphs import PromptGraphs
from trifocal.engines.scheduler import Run
from trifocal.placement import Part

__all__ = ["NativeRunner"]


class NativeRunner:
    """A `Model` as a `trifocal.engines.batching.Runner`: on a card graphs for few rows, and for one prompt."""

    def __init__(
        self, model: Model, operations: Plain, *, context: int, kind: str = "llama", graphs: bool = True
    ) -> None:
        self.model, self._operations, self._kind = model, operations, kind
        self._columns = -(-context // BLOCK)
        self._kernels = operations if isinstance(operations, Kernels) else None
        self._graphs: Graphs | None = None
        self._prompts: PromptGraphs | None = None
        if graphs and self._kernels:
            memory = torch.cuda.graph_pool_handle()  # of all graphs: no two of them run at once
            self._graphs = Graphs(model, self._kernels, self._columns, memory)
            self._prompts = PromptGraphs(model, self._kernels, memory) if self._kernels.prompted else None

    @property
    def positions(self) -> int:
        """How many positions the pool holds."""
        return self._operations.pool.blocks * BLOCK

    @property
    def part(self) -> Part:
        """What it is and where it lies."""
        shape = self._operations.shape
        what = f"{self._kind}, width {shape.hidden}, {shape.layers} blocks"
        dtype = str(self.model.dtype).removeprefix("torch.")
        return Part("language", what, str(self.model.device), dtype, self.model.nbytes)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of ids ``[n]``, on the model's device."""
        return self.model.embed(ids)

    @torch.inference_mode()
    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """The logits of every position of a prompt, ``[rows, vocabulary]``, from its input rows ``[rows, hidden]``.

        Computed in a memory of its own, operation by operation.
        """
        own = self._operations
        pool = Pool(own.shape, -(-len(rows) // BLOCK), rows.dtype, rows.device)
        operations = Plain(own.shape, pool, own.table)
        hidden = self.model.forward(rows.clone(), alone(0, len(rows), rows.device), operations)
        return self.model.logits(hidden, operations)

    def forward(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        """The logits of the positions that are wanted; see `trifocal.engines.batching.Runner.forward`."""
        count = sum(run.count for run in runs)
        rows = self._spliced(runs)
        if self._graphs is not None and count <= SIZES[-1]:
            return self._graphs.logits(runs, rows)
        if rows is None:
            rows = self.embed(torch.tensor([i for run in runs for i in run.ids or ()]))
        if self._prompts is not None and self._prompts.takes(runs):
            return self._prompts.logits(runs[0], rows)
        return self._logits(runs, rows)

    def follow(self, runs: Sequence[Run[Any]], ids: torch.Tensor) -> torch.Tensor:
        """The same for runs of one position each, whose ids ``[runs]`` only the device knows."""
        if self._graphs is not None and len(runs) <= SIZES[-1]:
            return self._graphs.logits(runs, None, ids)
        return self._logits(runs, self.embed(ids))

    def _logits(self, runs: Sequence[Run[Any]], rows: torch.Tensor) -> torch.Tensor:
        """Operation by operation, from the input rows ``[rows, hidden]`` of all runs."""
        step = step_of(runs, self._operations.shape.window, rows.device, kernels=self._kernels is not None)
        if self._kernels is not None:
            self._kernels.use(self._places(runs, step))
        hidden = self.model.forward(rows, step, self._operations)
        return self.model.logits(hidden[step.last], self._operations)

    def prepare(self) -> bool:
        """Does a bit of what will be needed; False where nothing is left to do."""
        return any(graphs is not None and graphs.prepare() for graphs in (self._graphs, self._prompts))

    def _spliced(self, runs: Sequence[Run[Any]]) -> torch.Tensor | None:
        """Input rows ``[rows, hidden]``; None where all are ids that the device looks up itself."""
        if self.model.embedding.device == self.model.device and all(run.ids is not None for run in runs):
            return None
        return torch.cat([run.part.splice(self.embed) for run in runs])

    def _places(self, runs: Sequence[Run[Any]], step: Step) -> Places:
        """For the kernels: every row's position and slot, and where single rows find those before them."""
        single = [run for run in runs if run.count == 1]
        tables = torch.zeros(len(single), self._columns, dtype=torch.int32)
        for at, run in enumerate(single):
            blocks = run.blocks[: self._columns]
            tables[at, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        known = torch.tensor([run.start for run in single], dtype=torch.int32).to(step.slots.device)
        return Places(step.positions.int(), step.slots.int(), known + 1, known, tables.to(known.device))
