"""What an engine remembers of earlier prompts: key-value caches, found again by the positions they hold."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, eq=False)
class _Held(Generic[State]):
    """The state of one prompt: whose it is, what its positions hold, and its bytes."""

    scope: str
    keys: list[Hashable]
    state: State
    size: int

    def begins(self, other: _Held[State]) -> bool:
        """Whether it is no more than another one's beginning."""
        return self.scope == other.scope and _shared(self.keys, other.keys) == len(self.keys)


class Prefixes(Generic[State]):
    """The states of the latest prompts, at most ``limit`` bytes of them.

    What was put in one ``scope`` is not found in another.
    No two requests share a state. One that goes on where a state ends takes it, and it is gone from here
    until it is put back. One that leaves it earlier gets ``branch(state, positions)``, a state of its own
    with that many positions: conversations that begin alike keep what is theirs.
    """

    def __init__(self, limit: int, branch: Callable[[State, int], State]) -> None:
        self._limit, self._branch, self._held = limit, branch, 0
        self._states: OrderedDict[int, _Held[State]] = OrderedDict()
        self._next, self._lock = 0, threading.Lock()
        self._inside: int | None = None  # the thread that has the lock

    def take(self, keys: Sequence[Hashable], *, branch: bool = False, scope: str = "") -> tuple[State | None, int]:
        """A state with the longest beginning of ``keys`` that is known, and how many positions it holds.

        ``(None, 0)`` where none shares anything. With ``branch`` it is always one of its own, and all stays here.
        """
        with self._locked():
            found, longest = None, 0
            for name, held in self._states.items():
                shared = _shared(held.keys, keys)
                if held.scope == scope and shared > longest:
                    found, longest = name, shared
            if found is None:
                return None, 0
            held = self._states[found]
            if len(held.keys) == longest and not branch:
                self._drop(found)
                return held.state, longest
            self._states.move_to_end(found)
            return self._branch(held.state, longest), longest

    def put(self, keys: list[Hashable], state: State, size: int, *, scope: str = "") -> None:
        """Remembers a state that holds these positions and takes ``size`` bytes.

        States that are no more than its beginning go for it, then the oldest.
        """
        if self._inside == threading.get_ident():
            return  # the collector closes a forgotten answer while this very thread looks at what is here
        with self._locked():
            if size > self._limit:
                return
            new = _Held(scope, keys, state, size)
            for name in [name for name, held in self._states.items() if held.begins(new)]:
                self._drop(name)
            self._states[self._next] = new
            self._next, self._held = self._next + 1, self._held + size
            while self._held > self._limit:
                self._drop(next(iter(self._states)))

    def clear(self) -> None:
        """Forgets everything."""
        with self._locked():
            self._states.clear()
            self._held = 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            self._inside = threading.get_ident()
            try:
                yield
            finally:
                self._inside = None

    def _drop(self, name: int) -> None:
        self._held -= self._states.pop(name).size


def _shared(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How many keys from the start are equal."""
    limit = min(len(one), len(other))
    return next((at for at in range(limit) if one[at] != other[at]), limit)
