"""What a captured step is told of its rows, and how blocks fit. The steps themselves need a card: `test_kernels.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from trifocal.engines.native.graphs import SIZES, fill
from trifocal.engines.native.kernels import LEAST, Kernels, plan
from trifocal.engines.native.memory import Pool
from trifocal.engines.native.prompt_graphs import BEFORE
from trifocal.engines.native.prompt_graphs import SIZES as PROMPTS
from trifocal.engines.native.prompt_graphs import fill as fill_prompt
from trifocal.engines.shape import Shape

COLUMNS, MOST = 8, SIZES[-1]


@dataclass
class Rows:
    """As much of a run as is looked at."""

    start: int
    count: int
    blocks: list[int]

    @property
    def ids(self) -> list[int]:
        return [1000 + place for place in range(self.start, self.start + self.count)]


def told(*runs: Any, size: int, together: int, known: bool = True) -> tuple[Any, Any, Any]:
    """The sections, the runs and the tables, written over what a step before left."""
    numbers = np.full(6 * MOST + MOST * COLUMNS, 77, dtype=np.int32)
    joined = fill(numbers, COLUMNS, runs, size, together=together, known=known)
    sections = numbers[: 6 * MOST].reshape(6, MOST)
    assert joined is bool(sections[-1].any())
    return sections[:-1, :size].tolist(), sections[-1].reshape(-1, 4), numbers[6 * MOST :].reshape(MOST, COLUMNS)


def test_every_row_has_its_place() -> None:
    rows, runs, tables = told(Rows(17, 1, [5, 3]), Rows(14, 3, [9, 2]), size=8, together=0)
    ids, positions, slots, lengths, known = rows
    assert ids == [1017, 1014, 1015, 1016, 0, 0, 0, 0]
    assert positions == [17, 14, 15, 16, 0, 0, 0, 0]
    assert slots == [3 * 16 + 1, 9 * 16 + 14, 9 * 16 + 15, 2 * 16, -1, -1, -1, -1]
    assert lengths == [18, 15, 16, 17, 0, 0, 0, 0]
    assert known == [17, 14, 14, 14, 0, 0, 0, 0]
    assert not runs.any()
    assert tables[:4, :2].tolist() == [[5, 3], [9, 2], [9, 2], [9, 2]]


def test_neighbouring_rows_of_one_sequence_attend_together() -> None:
    long, short = Rows(20, LEAST + 3, [1, 4, 6]), Rows(3, LEAST - 1, [7])
    rows, runs, tables = told(Rows(2, 1, [8]), long, short, Rows(0, LEAST, [9]), size=32, together=4)
    assert runs[:2].tolist() == [[1, LEAST + 3, 20, 0], [2 * LEAST + 3, LEAST, 0, 0]]
    assert not runs[2:].any()
    lengths = rows[3]
    assert lengths == [3, *[-1] * (LEAST + 3), *range(4, LEAST + 3), *[-1] * LEAST, *[0] * (32 - 3 * LEAST - 3)]
    assert tables[1, :3].tolist() == [1, 4, 6]


def test_no_more_runs_attend_together_than_may() -> None:
    rows, runs, _ = told(*(Rows(5, LEAST, [at]) for at in range(3)), size=24, together=2)
    assert runs[:3, 1].tolist() == [LEAST, LEAST, 0]
    assert rows[3][2 * LEAST :] == list(range(6, 6 + LEAST))


@pytest.mark.parametrize("dim", [64, 80, 96, 112, 128])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_blocks_for_runs_fit_every_card(dim: int, in_bytes: bool) -> None:
    for memory in (100 << 10, 164 << 10, 228 << 10):  # a processor's of sm_86, sm_89 and sm_120; of sm_80; of sm_90
        warps, stages, shared, fit = plan(dim, memory, in_bytes=in_bytes)
        assert 1 <= fit <= 2
        assert fit * (shared + 1024) <= memory
        assert shared >= stages * 2 * 16 * warps * (2 * dim + 16)  # keys and values of a stage
        assert shared >= 16 * warps * (dim + 4) * 4  # then the warps' results
        assert warps == (4 if memory == 100 << 10 and dim > 80 and not in_bytes else 8)


def test_what_stands_in_front_may_be_longer_than_a_grid_is_high() -> None:
    shape = Shape(1, 8, 1, 1, 8, 8, 1e-5, 0, 80_000, False, {})
    operations, grids = object.__new__(Kernels), []
    operations.pool = Pool(shape, 1, torch.bfloat16, torch.device("cpu"), in_bytes=True)
    operations._line_up_kernel = lambda grid, *_: grids.append(grid)  # type: ignore[assignment]
    keys, _ = operations._together(torch.zeros(3, 1, 8), torch.zeros(70_000, dtype=torch.int32), 0)
    assert keys.shape == (70_003, 1, 8)
    assert grids == [(70_003, 1, 1)]  # y and z end at 65,535


def test_ids_that_only_the_device_knows_are_left_out() -> None:
    assert told(Rows(2, 1, [8]), size=2, together=0, known=False)[0][0] == [0, 0]


@pytest.mark.parametrize(("start", "count", "size"), [(0, 100, 128), (33, 128, 128), (BEFORE, 65, 192)])
def test_a_prompt_alone_has_its_places_and_what_is_in_front(start: int, count: int, size: int) -> None:
    most, blocks = PROMPTS[-1], [7, 2, 9, 4, 11, 13, 1, 0, 5, 6, 3]
    numbers = np.full(2 * most + BEFORE + 5, 77, dtype=np.int32)
    fill_prompt(numbers, Rows(start, count, blocks), size)  # type: ignore[arg-type]
    where = [blocks[at // 16] * 16 + at % 16 for at in range(start + count)]
    assert numbers[:size].tolist() == [*range(start, start + count), *[0] * (size - count)]
    assert numbers[most:][:size].tolist() == [*where[start:], *[-1] * (size - count)]
    assert numbers[2 * most :][:BEFORE].tolist() == [*[0] * (BEFORE - start), *where[:start]]
    assert numbers[-5:].tolist() == [0, count, BEFORE - start, BEFORE + count, count - 1]


def test_a_prompt_of_no_rows_writes_nothing() -> None:
    numbers = np.full(2 * PROMPTS[-1] + BEFORE + 5, 77, dtype=np.int32)
    fill_prompt(numbers, None, 128)
    assert numbers[PROMPTS[-1] :][:128].tolist() == [-1] * 128
    assert numbers[-5:].tolist() == [0, 0, BEFORE, BEFORE, 0]
