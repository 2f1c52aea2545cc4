"""Blocks in sequences, over a memory of cells that is a list: each request finds its own beginning, whole and alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifocal.engines.base import Token
from trifocal.engines.blocks import Blocks
from trifocal.engines.llamacpp.sequences import Sequences
from trifocal.engines.scheduler import Request, Run, Scheduler
from trifocal.prompt import Prompt, TokenSpan

SIZE = 4


class Cells:
    """A memory as llama.cpp's is: cells with a position, what was computed there, and the sequences that see it."""

    def __init__(self, count: int) -> None:
        self.cells: list[tuple[int, object, set[int]]] = []
        self.count = count

    def put(self, sequence: int, position: int, key: object) -> None:
        self.cells.append((position, key, {sequence}))
        assert len(self.cells) <= self.count, "no cell is free"

    def copy(self, source: int, target: int, begin: int, end: int) -> None:
        for position, _, sequences in self.cells:
            if begin <= position < end and source in sequences:
                sequences.add(target)

    def remove(self, sequence: int, begin: int, end: int) -> None:
        for position, _, sequences in self.cells:
            if begin <= position < end:
                sequences.discard(sequence)
        self.cells = [cell for cell in self.cells if cell[2]]

    def save(self, sequence: int) -> list[tuple[int, object]]:
        return [(position, key) for position, key, sequences in self.cells if sequence in sequences]

    def restore(self, sequence: int, saved: list[tuple[int, object]]) -> None:
        assert not self.save(sequence)
        for position, key in saved:
            self.put(sequence, position, key)

    def seen(self, sequence: int) -> list[object]:
        found = sorted((cell for cell in self.cells if sequence in cell[2]), key=lambda cell: cell[0])
        assert [position for position, _, _ in found] == list(range(len(found)))
        return [key for _, key, _ in found]


def step(scheduler: Scheduler[None], sequences: Sequences, cells: Cells) -> list[Run[None]]:
    """One step, in which every sequence must hold exactly what stands before its run."""
    runs = scheduler.next()
    numbers = sequences.of(runs)
    assert len(set(numbers)) == len(numbers)
    for run, number in zip(runs, numbers, strict=True):
        assert cells.seen(number) == run.request.keys[: run.start]
    for run, number in zip(runs, numbers, strict=True):
        keys = [*run.request.keys, *run.draft]
        for at in range(run.start, run.start + run.count):
            cells.put(number, at, keys[at])
    scheduler.took([told(run) for run in runs if run.logits])
    return runs


def told(run: Run[None]) -> list[Token]:
    """What comes: now and then an id that breaks the pattern, so that guesses come in part."""
    place = len(run.request.keys)
    ids = [3 if (place + at) % 5 == 0 else 7 for at in range(1 + len(run.draft))]
    right = next((at for at, guess in enumerate(run.draft) if guess != ids[at]), len(run.draft))
    return [Token(token) for token in ids[: right + 1]]


def made(blocks: int, rows: int) -> tuple[Scheduler[None], Sequences, Cells]:
    cells = Cells(blocks * SIZE)
    scheduler: Scheduler[None] = Scheduler(Blocks(blocks, SIZE), rows=rows, piece=6, ahead=6)
    return scheduler, Sequences(cells, 2 * rows + 1, SIZE), cells


def request(ids: list[int], limit: int, scope: str = "") -> Request[None]:
    return Request(Prompt([TokenSpan(tuple(ids))], scope), limit, frozenset(), lambda _: None, None)


ARRIVING = st.tuples(
    st.sampled_from(["", "", "another"]),  # scope
    st.sampled_from([[], [1] * 4, [1] * 9, [2] * 6]),  # how it begins
    st.lists(st.integers(0, 2), min_size=1, max_size=12),  # and goes on
    st.integers(1, 9),  # the answer's limit
    st.integers(0, 6),  # steps before the next one comes
    st.booleans(),  # whether somebody leaves then
)


@settings(deadline=None, max_examples=60)
@given(arriving=st.lists(ARRIVING, min_size=1, max_size=14), blocks=st.integers(8, 14), rows=st.integers(1, 4))
def test_every_run_finds_what_stands_before_it_and_nothing_else(arriving: list[tuple], blocks: int, rows: int) -> None:
    scheduler, sequences, cells = made(blocks, rows)
    for scope, beginning, ids, limit, steps, leaves in arriving:
        scheduler.add(request([*beginning, *ids], min(limit, blocks * SIZE - len(beginning) - len(ids)), scope))
        for _ in range(steps):
            step(scheduler, sequences, cells)
        if leaves and scheduler.running:
            scheduler.running[-1].left = True
    for _ in range(2000):
        if not scheduler.busy:
            break
        step(scheduler, sequences, cells)
    assert not scheduler.busy


def test_a_beginning_is_computed_once_and_shared() -> None:
    scheduler, sequences, cells = made(16, 4)
    scheduler.add(request([1] * 12, 3))
    while scheduler.busy:
        step(scheduler, sequences, cells)
    scheduler.add(request([1] * 12 + [2], 3))
    [run] = step(scheduler, sequences, cells)
    assert run.start == 12
    assert len(cells.cells) == 13


def test_the_memory_has_what_runs_and_nothing_else() -> None:
    scheduler, sequences, cells = made(16, 2)
    for number in range(40):
        scheduler.add(request([number] * 9, 4))
        while scheduler.busy:
            step(scheduler, sequences, cells)
            assert len(cells.cells) <= 9 + 4
    for number in (39, 38):  # what was computed before is found again, outside of it
        scheduler.add(request([number] * 9, 1))
        [run] = step(scheduler, sequences, cells)
        assert run.start == 8
        assert len(cells.cells) == 9


def test_the_next_turn_shares_with_the_one_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, sequences, cells = made(16, 2)
    first = request([1] * 12, 4)
    scheduler.add(first)
    while scheduler.busy:
        step(scheduler, sequences, cells)
    restored: list[object] = []
    monkeypatch.setattr(cells, "restore", lambda sequence, saved: restored.append(saved))
    scheduler.add(request([1] * 12 + first.ids + [2], 3))
    [run] = step(scheduler, sequences, cells)
    assert run.start == 15  # three blocks, and what was begun of the fourth: the last id of an answer is never computed
    assert not restored


def test_a_turn_that_comes_later_goes_on_in_the_block_that_was_begun() -> None:
    scheduler, sequences, cells = made(16, 2)
    first = request([1] * 12, 4)
    scheduler.add(first)
    while scheduler.busy:
        step(scheduler, sequences, cells)
    for _ in range(2):  # somebody else runs meanwhile, and again after it
        scheduler.add(request([3] * 5, 2))
        while scheduler.busy:
            step(scheduler, sequences, cells)
    scheduler.add(request([1] * 12 + first.ids + [2], 3))
    [run] = step(scheduler, sequences, cells)
    assert run.start == 15
    while scheduler.busy:
        step(scheduler, sequences, cells)
    scheduler.add(request([1] * 12 + first.ids + [4], 3))
    [run] = step(scheduler, sequences, cells)
    assert run.start == 16  # and it is full by now


def test_after_a_fault_everything_begins_anew() -> None:
    from trifocal.errors import EngineError

    scheduler, sequences, cells = made(8, 2)
    scheduler.add(request([1] * 9, 4))
    step(scheduler, sequences, cells)
    scheduler.fail(lambda: EngineError("a fault"))
    sequences.clear()
    cells.cells = []
    scheduler.add(request([1] * 9, 4))
    [run] = step(scheduler, sequences, cells)
    assert run.start == 0
