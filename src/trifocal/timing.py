"""Where the time went: seconds per named step of one request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Timings", "step"]


class Timings(dict[str, float]):
    """Seconds per step. A step that is timed twice adds up."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times its body, whether or not it succeeds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Takes the times of every `step` within its body, of this thread."""
        token = _collecting.set(self)
        try:
            yield
        finally:
            _collecting.reset(token)

    def add(self, name: str, seconds: float) -> None:
        """Adds ``seconds`` to a step."""
        self[name] = self.get(name, 0.0) + seconds


_collecting: ContextVar[Timings | None] = ContextVar("collecting", default=None)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Times its body for whoever collects; for parts that nobody hands a `Timings`."""
    timings = _collecting.get()
    if timings is None:
        yield
        return
    with timings.step(name):
        yield
