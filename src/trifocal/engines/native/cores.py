"""A step of many rows on several cores of a CPU: each computes rows of its own, and within a step nobody waits.

That suits models so narrow that threads within a product would only wait for each other: on busy cores torch's own
threads cost ten times a step, as every product ends when the last of them does.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import accumulate, groupby, pairwise
from typing import Any, TypeVar

import torch

from trifocal.engines.scheduler import Run

__all__ = ["Choice", "Cores", "spare_cores"]

_MOST = 4  # groups: the Python between two operations is one at a time
_WORTH = 7.0  # work of a group for which handing it over can pay: two rows that see 320 positions each
_SEEN = 128  # positions before a row that are as much work as a row more
_LATEST, _AGAIN = 7, 256  # steps that tell how fast a way is, and steps after which the slower one is tried again
_SOONER = 0.9  # of the time of rows together: apart they take a third more CPU time, which others may want
Result = TypeVar("Result")


def spare_cores() -> int:
    """How many cores can have rows of their own: 1 where torch's threads use them, or somebody else said how many."""
    if torch.get_num_threads() > 1 or "OMP_NUM_THREADS" in os.environ:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


class Choice:
    """Whether rows apart (1) are sooner done than together (0) now, by what the latest steps of either took."""

    def __init__(self) -> None:
        self._seconds: tuple[deque[float], deque[float]] = (deque(maxlen=_LATEST), deque(maxlen=_LATEST))
        self._steps = 0

    def next(self) -> int:
        """0 or 1: the faster way, or the other one where that is not known or was tried long ago."""
        few, other = (len(seconds) for seconds in self._seconds)
        if min(few, other) < _LATEST:
            return int(other < few)
        self._steps += 1
        together, apart = (statistics.median(seconds) for seconds in self._seconds)
        faster = int(apart < _SOONER * together)
        if self._steps % _AGAIN:
            return faster
        self._seconds[1 - faster].clear()
        return 1 - faster

    def took(self, way: int, seconds: float) -> None:
        """Notes a step that went this way."""
        self._seconds[way].append(seconds)


class Cores:
    """``count`` threads, the caller's own among them.

    What others do on this machine decides whether rows on two cores are the sooner way: answers go by what the latest
    steps of as many took, together and apart.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._others = ThreadPoolExecutor(max(1, count - 1), "rows")
        self._choices: defaultdict[int, Choice] = defaultdict(Choice)

    def step(self, runs: Sequence[Run[Any]], compute: Callable[[Sequence[Sequence[Run[Any]]]], Result]) -> Result:
        """``compute`` of the groups in which these runs are the sooner done."""
        groups = self.groups(runs)
        if len(groups) == 1 or any(run.count > 1 for run in runs):
            return compute(groups)
        choice = self._choices[len(runs)]
        way, began = choice.next(), time.perf_counter()
        told = compute(groups if way else [runs])
        choice.took(way, time.perf_counter() - began)
        return told

    def groups(self, runs: Sequence[Run[Any]]) -> list[Sequence[Run[Any]]]:
        """Neighbouring runs of about equal work, in order; one group where more of them can't pay."""
        done = list(accumulate(run.count + (run.start + run.count) / _SEEN for run in runs))
        wanted = min(self._count, len(runs), int(done[-1] / _WORTH))
        if wanted < 2:
            return [runs]
        share = done[-1] / wanted
        middles = [(before + end) / 2 for before, end in pairwise([0.0, *done])]
        parts = groupby(zip(middles, runs, strict=True), lambda told: int(told[0] / share))
        return [[run for _, run in part] for _, part in parts]

    def each(self, function: Callable[[int], Result], count: int) -> list[Result]:
        """What a function gives for 0 up to ``count``, computed side by side; returns or raises when all have ended."""

        def apart(at: int) -> Result:
            with torch.inference_mode():
                return function(at)

        futures = [self._others.submit(apart, at) for at in range(1, count)]
        try:
            first = function(0)
        finally:
            wait(futures)
        return [first, *(future.result() for future in futures)]
