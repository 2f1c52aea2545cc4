"""Work that is not wanted any more: who waits for something slow says how to be woken, whoever leaves wakes him."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Scope", "is_unwanted", "woken_by"]

_scope: ContextVar[Scope | None] = ContextVar("trifocal_scope", default=None)


class Scope:
    """The work of one request in its thread, which another thread may `cancel`.

    A generator can only be closed between two of its items. One that waits for its first one, for another machine
    say, is woken by what it gave to `woken_by`.
    """

    def __init__(self) -> None:
        # the collector may close an answer that was forgotten, and with it `remove`, in a thread that is in here
        self._lock = threading.RLock()
        self._wakers: list[Callable[[], None]] = []
        self.cancelled = False

    def cancel(self) -> None:
        """Wakes whatever waits in this scope, now and later. Returns at once."""
        with self._lock:
            self.cancelled = True
            wakers = tuple(self._wakers)
        for wake in wakers:
            wake()

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is done in this scope, in the thread that does it."""
        token = _scope.set(self)
        try:
            yield
        finally:
            _scope.reset(token)

    def add(self, wake: Callable[[], None]) -> None:
        """``wake`` is called when the scope is cancelled; at once where it was."""
        with self._lock:
            self._wakers.append(wake)
            late = self.cancelled
        if late:
            wake()

    def remove(self, wake: Callable[[], None]) -> None:
        """It is not called any more."""
        with self._lock:
            self._wakers.remove(wake)


@contextmanager
def woken_by(wake: Callable[[], None]) -> Iterator[None]:
    """Waits of this block end by ``wake``, called from another thread, when the request is not wanted any more."""
    scope = _scope.get()
    if scope is None:
        yield
        return
    scope.add(wake)
    try:
        yield
    finally:
        scope.remove(wake)


def is_unwanted() -> bool:
    """Whether the request for which this thread works was cancelled."""
    scope = _scope.get()
    return scope is not None and scope.cancelled
