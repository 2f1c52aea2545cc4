"""Blocks of the scheduler in llama.cpp's sequences: who holds which, and what waits outside. No torch, no library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trifocal.engines.scheduler import Request, Run

__all__ = ["Memory", "Sequences"]

SPARE = 0  # the sequence that saves and restores


class Memory(Protocol):
    """A memory of positions, each of which belongs to any number of sequences."""

    def copy(self, source: int, target: int, begin: int, end: int) -> None:
        """Lets a sequence share the positions from ``begin`` up to ``end`` of another."""
        ...

    def remove(self, sequence: int, begin: int, end: int) -> None:
        """Takes positions out of a sequence."""
        ...

    def save(self, sequence: int) -> Any:
        """All that a sequence has, as it lies outside of the memory."""
        ...

    def restore(self, sequence: int, saved: Any) -> None:
        """Gives an empty sequence what was saved."""
        ...


@dataclass(slots=True, eq=False)
class _Held:
    """A running request's sequence: the ``blocks`` that it has so far; its first ``shared`` positions were found."""

    number: int
    shared: int
    blocks: list[int]
    computed: int


@dataclass(slots=True)
class Sequences:
    """``count`` sequences over blocks of ``size`` positions: two for each that may run, as one leaves when one comes.

    One more saves and restores. The memory has what running requests hold and nothing else, since each step passes over
    all that it has. What an ended one computed and may be found again is saved outside, block by block, and goes when
    its block is taken for something else. Who begins with a block shares it with whoever runs with it, or has it
    restored; one that was begun and not filled is gone on with by one request alone. So no more positions are in use
    than the pool has, in the memory and outside of it.

    Belongs to one thread.
    """

    memory: Memory
    count: int
    size: int
    _free: list[int] = field(init=False)
    _running: dict[Request[Any], _Held] = field(default_factory=dict)
    _live: dict[int, list[_Held]] = field(default_factory=dict)  # block -> who runs with it
    _saved: dict[int, Any] = field(default_factory=dict)  # block -> what it holds, outside of the memory

    def __post_init__(self) -> None:
        self._free = list(range(self.count - 1, SPARE, -1))

    def of(self, runs: Sequence[Run[Any]]) -> list[int]:
        """The sequence of each run, with all positions before the run's in it and none behind."""
        leaving = self._leaving({run.request: run.start for run in runs})
        # those who leave are there still: the next turn of a chat has nothing to restore
        entering = [self._enter(run) for run in runs if run.request not in self._running]
        for request, held in leaving:
            self._leave(request, held)
        for held in entering:
            for at in range(len(held.blocks)):
                if not self._share(held, at):
                    self._restore(held, at)
            if begun := held.shared % self.size:  # what may stand behind it was guessed and did not come
                self.memory.remove(held.number, held.shared, held.shared - begun + self.size)
                self._saved.pop(held.blocks[-1], None)
        return [self._write(run, self._running[run.request]) for run in runs]

    def clear(self) -> None:
        """Forgets everything; the memory is empty."""
        self._free = list(range(self.count - 1, SPARE, -1))
        self._running.clear()
        self._live.clear()
        self._saved.clear()

    def _leaving(self, starts: Mapping[Request[Any], int]) -> list[tuple[Request[Any], _Held]]:
        """Who has ended, or gave way; takes guesses that did not come from the others."""
        left = []
        for request, held in list(self._running.items()):
            start = starts.get(request, held.computed)
            if request.blocks[: len(held.blocks)] != held.blocks or not held.shared <= start <= held.computed:
                left.append((request, self._running.pop(request)))
            elif start < held.computed:
                self._cut(held, start)
        return left

    def _enter(self, run: Run[Any]) -> _Held:
        """A sequence for a request, with those of the blocks it found that somebody runs with."""
        found = list(run.blocks[: self._count(run.start)])
        held = self._running[run.request] = _Held(self._free.pop(), run.start, found, run.start)
        for at in range(len(found)):
            self._share(held, at)
        return held

    def _share(self, held: _Held, at: int) -> bool:
        """Has a sequence share a block with whoever runs with it; False where nobody does."""
        live = self._live.get(held.blocks[at])
        if live and held not in live:
            self.memory.copy(live[0].number, held.number, *self._span(at))
            live.append(held)
        return bool(live)

    def _restore(self, held: _Held, at: int) -> None:
        """Gives a sequence a block with which nobody runs."""
        self.memory.restore(SPARE, self._saved[held.blocks[at]])
        self.memory.copy(SPARE, held.number, *self._span(at))
        self.memory.remove(SPARE, *self._span(at))
        self._live[held.blocks[at]] = [held]

    def _save(self, held: _Held, at: int) -> None:
        """Keeps a block of a sequence outside of the memory."""
        self.memory.copy(held.number, SPARE, *self._span(at))
        self._saved[held.blocks[at]] = self.memory.save(SPARE)
        self.memory.remove(SPARE, *self._span(at))

    def _write(self, run: Run[Any], held: _Held) -> int:
        """Notes what a run computes in its new blocks; what they held before is gone."""
        end = run.start + run.count
        for at in range(len(held.blocks), self._count(end)):
            block = run.blocks[at]
            self._saved.pop(block, None)
            self._live[block] = [held]
            held.blocks.append(block)
        held.computed = end
        return held.number

    def _cut(self, held: _Held, positions: int) -> None:
        """Takes away what is behind the first positions: guesses that did not come."""
        self.memory.remove(held.number, positions, held.computed)
        held.computed = positions
        while len(held.blocks) * self.size >= positions + self.size:
            self._part(held, [held.blocks.pop()])

    def _leave(self, request: Request[Any], held: _Held) -> None:
        """What of a request may be found again is saved where nobody else runs with it, and all of it goes."""
        self._part(held, held.blocks)
        kept = max(held.computed // self.size, self._count(request.computed))
        for at, block in enumerate(held.blocks[:kept]):
            if request.prompt.scope is not None and block not in self._live and block not in self._saved:
                self._save(held, at)
        self.memory.remove(held.number, 0, held.computed)
        self._free.append(held.number)

    def _part(self, held: _Held, blocks: Iterable[int]) -> None:
        """A sequence does not run with these blocks any more."""
        for block in blocks:
            self._live[block].remove(held)
            if not self._live[block]:
                del self._live[block]

    def _count(self, positions: int) -> int:
        """How many blocks so many positions fill or begin."""
        return -(-positions // self.size)

    def _span(self, at: int) -> tuple[int, int]:
        """The positions of a prompt's block."""
        return at * self.size, (at + 1) * self.size
