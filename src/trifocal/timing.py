"""Where the time went: seconds per named step of one request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Timings"]


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

    def add(self, name: str, seconds: float) -> None:
        """Adds ``seconds`` to a step."""
        self[name] = self.get(name, 0.0) + seconds
