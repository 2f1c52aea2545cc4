"""What an engine remembers of earlier prompts: key-value caches, found again by the positions they hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
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

    No two requests share a state. One that goes on where a state ends takes it, and it is gone from here
    until it is put back. One that leaves it earlier gets ``branch(state, positions)``, a state of its own
    with that many positions: conversations that begin alike keep what is theirs.
    """

    def __init__(self, limit: int, branch: Callable[[State, int], State]) -> None:
        self._limit, self._branch, self._held = limit, branch, 0
        self._states: OrderedDict[int, tuple[list[Hashable], State, int]] = OrderedDict()
        self._next, self._lock = 0, threading.Lock()

    def take(self, keys: Sequence[Hashable], *, branch: bool = False) -> tuple[State | None, int]:
        """A state with the longest beginning of ``keys`` that is known, and how many positions it holds.

        ``(None, 0)`` where none shares anything. With ``branch`` it is always one of its own, and all stays here.
        """
        with self._lock:
            found, longest = None, 0
            for name, (held, _, _) in self._states.items():
                shared = _shared(held, keys)
                if shared > longest:
                    found, longest = name, shared
            if found is None:
                return None, 0
            held, state, _ = self._states[found]
            if len(held) == longest and not branch:
                self._drop(found)
                return state, longest
            self._states.move_to_end(found)
            return self._branch(state, longest), longest

    def put(self, keys: list[Hashable], state: State, size: int) -> None:
        """Remembers a state that holds these positions and takes ``size`` bytes.

        States that are no more than its beginning go for it, then the oldest.
        """
        with self._lock:
            if size > self._limit:
                return
            for name in [name for name, (held, _, _) in self._states.items() if _shared(held, keys) == len(held)]:
                self._drop(name)
            self._states[self._next] = (keys, state, size)
            self._next, self._held = self._next + 1, self._held + size
            while self._held > self._limit:
                self._drop(next(iter(self._states)))

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._states.clear()
            self._held = 0

    def _drop(self, name: int) -> None:
        _, _, size = self._states.pop(name)
        self._held -= size


def _shared(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How many keys from the start are equal."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)
