"""Blocks of the scheduler kept in llama.cpp's sequences: who holds which, and what is shared. No torch, no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trifocal.engines.scheduler import Request, Run

__all__ = ["Memory", "Sequences"]


class Memory(Protocol):
    """A memory of positions, each of which belongs to any number of sequences."""

    def copy(self, source: int, target: int, begin: int, end: int) -> None:
        """Lets a sequence share the positions from ``begin`` up to ``end`` of another."""
        ...

    def remove(self, sequence: int, begin: int, end: int) -> None:
        """Takes positions out of a sequence."""
        ...


@dataclass(slots=True)
class _Held:
    """A running request's sequence: the ``blocks`` that it has so far, of which it copied the first ``shared``."""

    number: int
    shared: int
    blocks: list[int]
    computed: int


@dataclass(slots=True)
class Sequences:
    """``count`` sequences over blocks of ``size`` positions.

    A block has its home in the sequence that computed it. Who begins with a block that is known shares the positions of
    its home. A sequence whose request has ended stays as long as a block has its home there; a block that is taken for
    something else leaves its old home. So no more positions are in use than the pool has, and there are sequences
    enough where there are as many as running requests and blocks together.

    Belongs to one thread.
    """

    memory: Memory
    count: int
    size: int
    _free: list[int] = field(init=False)
    _home: dict[int, tuple[int, int]] = field(default_factory=dict)  # block -> sequence, and which block it is there
    _kept: dict[int, set[int]] = field(default_factory=dict)  # sequence -> blocks at home there
    _running: dict[Request[Any], _Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = list(range(self.count - 1, -1, -1))

    def of(self, runs: Sequence[Run[Any]]) -> list[int]:
        """The sequence of each run, with all positions before the run's in it and none behind."""
        told = {run.request: run for run in runs}
        for request, held in list(self._running.items()):
            start = told[request].start if request in told else held.computed
            if (
                request.blocks[: len(held.blocks)] != held.blocks
                or not held.shared * self.size <= start <= held.computed
            ):
                self._leave(request, held)
            elif start < held.computed:
                self._cut(held, start)
        for run in runs:
            if run.request not in self._running:
                self._enter(run)
        return [self._write(run, self._running[run.request]) for run in runs]

    def clear(self) -> None:
        """Forgets everything; the memory is empty."""
        self._free = list(range(self.count - 1, -1, -1))
        self._home.clear()
        self._kept.clear()
        self._running.clear()

    def _enter(self, run: Run[Any]) -> None:
        """A sequence for a request, with the blocks that it found."""
        number = self._free.pop()
        shared = run.start // self.size
        self._kept[number] = set()
        at = 0
        while at < shared:  # as few copies as there are homes, one behind the other
            home, end = self._home[run.blocks[at]][0], at + 1
            while end < shared and self._home[run.blocks[end]][0] == home:
                end += 1
            self.memory.copy(home, number, at * self.size, end * self.size)
            at = end
        self._running[run.request] = _Held(number, shared, list(run.blocks[:shared]), run.start)

    def _write(self, run: Run[Any], held: _Held) -> int:
        """Notes what a run computes; its new blocks have their home here from now on."""
        end = run.start + run.count
        for at in range(len(held.blocks), -(-end // self.size)):
            block = run.blocks[at]
            self._take_away(block)
            self._home[block] = held.number, at
            self._kept[held.number].add(block)
            held.blocks.append(block)
        held.computed = end
        return held.number

    def _cut(self, held: _Held, positions: int) -> None:
        """Takes away what is behind the first positions: guesses that did not come."""
        self.memory.remove(held.number, positions, held.computed)
        held.computed = positions
        while len(held.blocks) * self.size >= positions + self.size:
            block = held.blocks.pop()
            del self._home[block]
            self._kept[held.number].discard(block)

    def _take_away(self, block: int) -> None:
        """Frees what a block held before."""
        if block not in self._home:
            return
        number, at = self._home.pop(block)
        self.memory.remove(number, at * self.size, (at + 1) * self.size)
        self._kept[number].discard(block)
        if not self._kept[number]:  # and its request has ended: blocks of a running one are never taken
            self._let_go(number)

    def _leave(self, request: Request[Any], held: _Held) -> None:
        """A request has ended, or gave way: what can't be found again goes at once."""
        del self._running[request]
        self.memory.remove(held.number, 0, held.shared * self.size)
        full = held.computed // self.size
        for block in held.blocks[max(full, held.shared) :]:
            if self._home.get(block, (-1, 0))[0] == held.number:
                del self._home[block]
                self._kept[held.number].discard(block)
        self.memory.remove(held.number, full * self.size, held.computed)
        if not self._kept[held.number]:
            self._let_go(held.number)

    def _let_go(self, number: int) -> None:
        del self._kept[number]
        self._free.append(number)
