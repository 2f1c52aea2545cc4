"""Which graph a number of squares takes, of a part captured in name only; `test_tower_kernels.py` has real ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trifocal.vision.graphed import Graphed


class Named(Graphed):
    """Captures nothing: tells for which numbers it was asked."""

    def __init__(self, room: int = 8, error: Exception | None = None) -> None:
        super().__init__(nn.Linear(1, 1))
        self.captured: list[int] = []
        self._room, self._error = room, error or torch.OutOfMemoryError("no room")

    def _captured(self, shape: torch.Size) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        if shape[0] > self._room:
            raise self._error
        self.captured.append(shape[0])
        taken = torch.zeros(shape)
        return None, taken, taken  # type: ignore[return-value]

    def takes(self, squares: int) -> int:
        return len(self._graph(torch.Size((squares, 3, 2, 2)))[1])


def test_few_numbers_are_captured_at_once_and_others_when_they_come_often() -> None:
    part = Named()
    assert part.takes(1) == 1
    assert part.captured == [1, 8]
    assert [part.takes(5) for _ in range(4)] == [8, 8, 5, 5]
    assert [part.takes(n) for n in (8, 7, 1, 5, 7, 7, 7)] == [8, 8, 1, 5, 8, 8, 8]  # one square more costs too little
    assert part.captured == [1, 8, 5]


def test_more_squares_than_a_tower_sees_at_once_have_their_own() -> None:
    part = Named(room=99)
    assert [part.takes(n) for n in (32, 32, 1)] == [32, 32, 1]
    assert part.captured == [32, 1, 8]


@pytest.mark.parametrize("first", [1, 5])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("CUDA error: out of memory")])
def test_where_there_is_no_room_for_more_each_number_has_its_own(first: int, error: Exception) -> None:
    part = Named(6, error)
    assert [part.takes(n) for n in (first, 3, 3, 6)] == [first, 3, 3, 6]
    assert part.captured == [first, 3, 6]
