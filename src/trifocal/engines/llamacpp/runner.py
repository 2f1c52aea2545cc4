"""The runner over llama.cpp: the step's runs, span after span, as the library takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trifocal.engines.llamacpp.library import Context
from trifocal.engines.llamacpp.sequences import Sequences
from trifocal.engines.scheduler import Run
from trifocal.errors import EngineError
from trifocal.prompt import ImageSpan

__all__ = ["LlamaRunner"]


@dataclass(slots=True)
class _Call:
    """What goes into one call: ids or rows of pictures, never both."""

    ids: list[int] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # which answer each of the wanted rows is

    def add(self, span: Sequence[int] | torch.Tensor, start: int, sequence: int, answers: Sequence[int]) -> None:
        """Adds a span at a position of a sequence; ``answers`` are those of its last positions, if any are wanted."""
        if isinstance(span, torch.Tensor):
            self.rows.append(span)
        else:
            self.ids += span
        self.positions += range(start, start + len(span))
        self.sequences += [sequence] * len(span)
        self.wanted += range(len(self.positions) - len(answers), len(self.positions))
        self.answers += answers


class LlamaRunner:
    """A `Context` as a `trifocal.engines.batching.Runner`: text is computed from its ids, pictures from their rows.

    The rows of text are the library's own affair: a quantised table's are not those of the table that it was made of.
    """

    def __init__(self, context: Context, positions: int, block: int, sequences: int) -> None:
        self.context, self.positions = context, positions
        self._sequences = Sequences(context, sequences, block)

    def forward(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        """The logits of the positions that are wanted; see `trifocal.engines.batching.Runner.forward`."""
        try:
            calls = _calls(runs, self._sequences.of(runs), self.context.hidden)
            if len(calls) == 1:
                return self._computed(calls[0])
            logits = torch.empty(sum(run.wanted for run in runs), self.context.vocabulary)
            for call in calls:
                logits[call.answers] = self._computed(call)
            return logits
        except Exception:
            self.context.clear()  # who was under way ends, and nothing is found again
            self._sequences.clear()
            raise

    def _computed(self, call: _Call) -> torch.Tensor:
        given = torch.cat(call.rows) if call.rows else call.ids
        return self.context.decode(given, call.positions, call.sequences, call.wanted)


def _calls(runs: Sequence[Run[Any]], sequences: Sequence[int], hidden: int) -> list[_Call]:
    """All runs in as few calls as there can be: the next ids of every run together, then the next rows, and so on."""
    left = []
    answers = 0
    for run, sequence in zip(runs, sequences, strict=True):
        spans: list[Sequence[int] | torch.Tensor]
        spans = [run.ids] if run.ids is not None else [_given(span, hidden) for span in run.part.spans]
        left.append(_Left(spans, run.start, sequence, range(answers, answers + run.wanted)))
        answers += run.wanted
    calls: list[_Call] = []
    while any(one.spans for one in left):
        for kind in (False, True):
            call = _Call()
            for one in left:
                if one.spans and isinstance(one.spans[0], torch.Tensor) == kind:
                    one.into(call)
            if call.positions:
                calls.append(call)
    return calls


@dataclass(slots=True)
class _Left:
    """What is still to compute of a run."""

    spans: list[Sequence[int] | torch.Tensor]
    start: int
    sequence: int
    answers: Sequence[int]

    def into(self, call: _Call) -> None:
        """Moves the next span into a call."""
        span = self.spans.pop(0)
        call.add(span, self.start, self.sequence, () if self.spans else self.answers)
        self.start += len(span)


def _given(span: Any, hidden: int) -> Sequence[int] | torch.Tensor:
    if not isinstance(span, ImageSpan):
        ids: Sequence[int] = span.ids
        return ids
    if span.features.shape[-1] != hidden:
        raise EngineError(
            f"a picture has rows of {span.features.shape[-1]}, the language model of {hidden}: "
            "this projector belongs to another language model"
        )
    return span.features.float()
