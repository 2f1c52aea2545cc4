"""What an engine remembers of earlier prompts: key-value caches, found again by the positions they hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from trifocal.prompt import Prompt, TokenSpan

__all__ = ["Prefixes", "position_keys"]

State = TypeVar("State")


def position_keys(prompt: Prompt) -> list[Hashable]:
    """One key a position: equal keys from the start mean equal key-value rows."""
    keys: list[Hashable] = []
    for span in prompt.spans:
        keys += span.ids if isinstance(span, TokenSpan) else [(span.digest, row) for row in range(len(span))]
    return keys


class Prefixes(Generic[State]):
    """The states of the latest prompts, at most ``limit`` bytes of them.

    A state that is taken is gone from here until it is put back, so no two requests share one.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._states: OrderedDict[int, tuple[list[Hashable], State, int]] = OrderedDict()
        self._next, self._lock = 0, threading.Lock()

    def take(self, keys: Sequence[Hashable]) -> tuple[State | None, int, int]:
        """The state that shares the longest beginning: itself, how much is shared, how much it holds.

        ``(None, 0, 0)`` where none shares anything.
        """
        with self._lock:
            found, longest = None, 0
            for name, (held, _, _) in self._states.items():
                shared = _shared(held, keys)
                if shared > longest:
                    found, longest = name, shared
            if found is None:
                return None, 0, 0
            held, state, size = self._states.pop(found)
            self._held -= size
            return state, longest, len(held)

    def put(self, keys: list[Hashable], state: State, size: int) -> None:
        """Remembers a state that holds these positions and takes ``size`` bytes; the oldest go for it."""
        with self._lock:
            if size > self._limit:
                return
            self._states[self._next] = (keys, state, size)
            self._next, self._held = self._next + 1, self._held + size
            while self._held > self._limit:
                _, (_, _, gone) = self._states.popitem(last=False)
                self._held -= gone

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._states.clear()
            self._held = 0


def _shared(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How many keys from the start are equal."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)
