"""A step on several cores: which rows go where, which way is taken, and that a failure waits for the others."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from trifocal.engines.native.cores import Choice, Cores
from trifocal.engines.sampler import Drawing
from trifocal.engines.scheduler import Request, Run
from trifocal.messages import Sampling
from trifocal.prompt import Prompt, TokenSpan


def run(start: int, count: int = 1) -> Run[Any]:
    request = Request(Prompt([TokenSpan((1,))]), 9, frozenset(), lambda _: None, Drawing(Sampling()))
    return Run(request, start, count, logits=True)


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([run(300)], [1]),
        ([run(10)] * 4, [4]),  # too little to be handed over
        ([run(300)] * 8, [4, 4]),
        ([run(300)] * 7 + [run(20_000)], [7, 1]),
        ([run(0, 290), run(0, 222)], [1, 1]),
        ([run(0, 512)], [1]),
    ],
)
def test_groups_are_neighbours_of_about_equal_work(runs: list[Run[Any]], told: list[int]) -> None:
    groups = Cores(2).groups(runs)
    assert [len(group) for group in groups] == told
    assert [one for group in groups for one in group] == runs


def test_the_faster_way_is_taken_and_the_other_is_tried_again() -> None:
    choice, taken = Choice(), []
    for step in range(1200):
        way = choice.next()
        taken.append(way)
        choice.took(way, 2.0 if way == (step < 600) else 1.0)  # the machine is another one from then on
    assert taken[14:600].count(1) == 2 * 7
    assert taken[900:].count(0) <= 2 * 7


def test_who_fails_waits_until_the_others_have_ended() -> None:
    go, ended = threading.Event(), threading.Event()

    def compute(at: int) -> int:
        if not at:
            go.set()
            raise ValueError("ours")
        assert go.wait(60)
        ended.set()
        return at

    with pytest.raises(ValueError, match="ours"):
        Cores(2).each(compute, 2)
    assert ended.is_set()
