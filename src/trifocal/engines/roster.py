"""One language model in several places: who is asked, and how all of them are together."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Generic, Literal, Protocol, TypeVar

from trifocal.cancelling import is_unwanted, woken_by
from trifocal.engines.base import State
from trifocal.engines.blocks import names_of
from trifocal.engines.prefixes import position_keys
from trifocal.errors import EngineError, EngineLost
from trifocal.prompt import ImageSpan, Prompt

__all__ = ["OVERLOAD", "Named", "Roster", "Seat", "Wanted", "ranked"]

BLOCK = 16  # positions that are found again together
BEGINNING = 64  # positions of a text by which whoever never saw it guesses where it is known
STREAM = 64  # positions: what an answer under way weighs against prompts that wait
OVERLOAD = 4096  # positions that the place where a beginning may be known is credited with at most
REMEMBERED = 1 << 16  # blocks a place: a million positions
PATIENCE = 60.0  # seconds in which a place comes, where there is none

LOADING = State("starting", reason="the language engine is loading")

Phase = Literal["ready", "starting", "asleep", "failed"]


class Named(Protocol):
    """A place where one copy of the language model is; all places of a roster have the same one."""

    @property
    def name(self) -> str:
        """What it is called, for as long as it is one of these, through all its lives."""
        ...


P = TypeVar("P", bound=Named)


@dataclass(slots=True, eq=False)
class Seat(Generic[P]):
    """What a front knows of a place: whether it is there, what it was given, and what it computed before."""

    place: P
    phase: Phase = "starting"
    state: State = LOADING
    sleeps: float | None = None  # seconds without a request after which it may be asleep; None: it is always on
    used: float = 0.0
    taking: bool = True  # where it is there; or it is kept from others for now
    waiting: int = 0  # positions that it has to compute before answers begin
    unbegun: int = 0  # requests whose answers have not begun
    streams: int = 0  # those whose answers have
    asked: int = 0  # requests that were ever given to it
    known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    @property
    def weight(self) -> int:
        """How many positions it has before it."""
        return self.waiting + STREAM * self.streams

    def missing(self, length: int, names: Sequence[bytes]) -> int:
        """How many positions of a prompt it would have to compute, as far as this front knows."""
        return length - BLOCK * sum(1 for _ in takewhile(self.known.__contains__, names))

    def learn(self, names: Sequence[bytes]) -> None:
        """It has these from now on, as far as its memory goes."""
        for name in names:
            self.known[name] = None
            self.known.move_to_end(name)
        most = REMEMBERED if self.state.positions is None else min(REMEMBERED, self.state.positions // BLOCK)
        while len(self.known) > most:
            self.known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be placed: its length, the names of its blocks, the name of its beginning and that one's blocks."""

    length: int
    names: Sequence[bytes] = ()
    beginning: bytes = b""
    first: int = 0

    @classmethod
    def of(cls, prompt: Prompt) -> Wanted:
        """Of a prompt; one whose scope is None is never found again."""
        if prompt.scope is None:
            return cls(len(prompt))
        names = names_of(position_keys(prompt), BLOCK, scope=prompt.scope)
        beginning, length = _beginning(prompt)
        return cls(len(prompt), names, beginning, length // BLOCK)


class Roster(Generic[P]):
    """The places, and who of them is asked. All that it does may be called by any thread.

    A request goes where the fewest positions must be computed before it begins: those that wait there, and its own but
    for the beginning that this front had computed there before. Where no place is known to have all up to the end of
    the first picture (of a text: its first positions), one is drawn by the name of that and taken to have it, up to
    ``overload`` positions. All fronts draw the same (rendezvous hashing), so a conversation meets its beginning though
    another front began it, until that place has so many positions more before it than others that computing it again
    is faster. Where nobody else asks these places ``overload`` is 0: then a draw only parts what is equal.

    The first ``always`` of them (None: all) always run. Where all that are awake have more than ``overload`` positions
    before them, one that sleeps is woken: ``wakes`` gets its name and returns at once, `woke` is told when it is there.
    """

    def __init__(
        self,
        places: Sequence[P],
        always: int | None = None,
        sleeps: float = 0.0,
        overload: int = OVERLOAD,
        wakes: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._changed = threading.Condition()
        self._overload, self._wakes = overload, wakes
        self._queue = 0  # requests that wait for a place
        self.closed = False
        runs = len(places) if always is None else always
        self.seats = {place.name: Seat(place, sleeps=None if at < runs else sleeps) for at, place in enumerate(places)}
        for seat in self.seats.values():
            if seat.sleeps is not None:
                seat.phase = "asleep"

    def wanted(self, prompt: Prompt) -> Wanted:
        """What is to be placed; where there is one place nothing of it need be known again."""
        return Wanted.of(prompt) if len(self.seats) > 1 else Wanted(len(prompt))

    def enter(self, wanted: Wanted, patience: float | None = PATIENCE) -> tuple[Seat[P], int]:
        """The place that a request goes to, and how many positions it has to compute for it.

        Raises:
            EngineLost: none is there, and none came in time, or none will ever.
            EngineError: the engine is closed, or nobody waits for this any more.
        """
        until = None if patience is None else time.monotonic() + patience
        with woken_by(self._wake_all), self._changed:
            self._queue += 1
            try:
                while (seats := self._taking()) is None:
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        raise EngineLost(self._state().reason or "no replica of the language engine is there")
                    self._changed.wait(left)
                return self._given(seats, wanted)
            finally:
                self._queue -= 1

    def began(self, seat: Seat[P], cost: int) -> None:
        """Its answer has begun."""
        with self._changed:
            seat.waiting -= cost
            seat.unbegun -= 1
            seat.streams += 1

    def leave(self, seat: Seat[P], cost: int, *, begun: bool) -> None:
        """A request is done with, however."""
        with self._changed:
            if begun:
                seat.streams -= 1
            else:
                seat.waiting -= cost
                seat.unbegun -= 1
            seat.used = time.monotonic()

    def there(self, name: str, state: State, *, taking: bool = True) -> None:
        """A place told how it is. Where it is not ``taking``, it is kept from others for now."""
        with self._changed:
            seat = self.seats[name]
            seat.state, seat.used = state, seat.used or time.monotonic()
            seat.taking = taking
            if seat.phase != state.phase:
                seat.phase = "ready" if state.phase == "ready" else "starting"
            self._changed.notify_all()

    def gone(self, name: str, how: str) -> None:
        """A place is gone; it may come again."""
        self.lost(name, State("starting", reason=f"{name}: {how}; it starts again"))

    def lost(self, name: str, state: State) -> None:
        """A place is gone, what it knew with it: for ever where it failed, else it may come again."""
        with self._changed:
            seat = self.seats[name]
            seat.phase = "failed" if state.phase == "failed" else "starting" if seat.sleeps is None else "asleep"
            seat.state = state
            seat.known.clear()
            self._changed.notify_all()

    def woke(self, name: str, state: State) -> None:
        """A place that was woken is there."""
        with self._changed:
            self.seats[name].used = time.monotonic()
        self.there(name, state)

    def state(self) -> State:
        """How all of them are, together."""
        with self._changed:
            return self._state()

    def close(self) -> None:
        """Nobody gets a place any more."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _taking(self) -> list[Seat[P]] | None:
        """Who can be asked now; None where nobody can, but may be soon."""
        if self.closed:
            raise EngineError("the engine is closed")
        if is_unwanted():
            raise EngineError("nobody waits for this answer any more")
        if all(seat.phase == "failed" for seat in self.seats.values()):
            raise EngineLost(self._state().reason)
        self._doze()
        seats = [seat for seat in self.seats.values() if seat.phase == "ready" and seat.taking]
        if not seats or all(seat.weight > self._overload for seat in seats):
            self._wake_one()
        return seats or None

    def _given(self, seats: Sequence[Seat[P]], wanted: Wanted) -> tuple[Seat[P], int]:
        missing = {seat.place.name: seat.missing(wanted.length, wanted.names) for seat in seats}
        order = ranked(wanted.beginning, list(missing)) if wanted.beginning else sorted(missing, key=self._weight)
        guessed = dict(missing)
        if wanted.beginning and wanted.length - min(missing.values()) < wanted.first * BLOCK:
            guessed[order[0]] -= min(wanted.length, self._overload)
        rank = {name: at for at, name in enumerate(order)}
        name = min(missing, key=lambda each: (self._weight(each) + guessed[each], self._weight(each), rank[each]))
        seat, cost = self.seats[name], missing[name]
        seat.waiting += cost
        seat.unbegun += 1
        seat.asked += 1
        seat.used = time.monotonic()
        seat.learn(wanted.names)
        return seat, cost

    def _weight(self, name: str) -> int:
        return self.seats[name].weight

    def _wake_all(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _doze(self) -> None:
        """Who had nothing to do for long may be asleep: he is woken before he is asked again."""
        now = time.monotonic()
        for seat in self.seats.values():
            idle = seat.phase == "ready" and not seat.weight and seat.sleeps is not None
            if idle and seat.sleeps is not None and now - seat.used > seat.sleeps / 2:
                seat.phase = "asleep"
                seat.known.clear()

    def _wake_one(self) -> None:
        waking = any(seat.phase == "starting" and seat.sleeps is not None for seat in self.seats.values())
        seat = next((seat for seat in self.seats.values() if seat.phase == "asleep"), None)
        if seat is not None and not waking:
            seat.phase = "starting"
            self._wakes(seat.place.name)

    def _state(self) -> State:
        seats = list(self.seats.values())
        phases = [seat.phase for seat in seats]
        ready = [seat.state for seat in seats if seat.phase == "ready"]
        base = (ready or [seat.state for seat in seats if seat.phase != "failed"] or [seats[0].state])[0]
        away = [seat.state for seat in seats if seat.phase in ("starting", "failed")] or [base]
        counted = [seat.state.positions for seat in seats if seat.state.positions is not None]
        each = max(counted, default=0)  # those that are not there will have as many
        return replace(
            base,
            phase="ready" if ready else "failed" if set(phases) == {"failed"} else "starting",
            running=sum(seat.streams for seat in seats),
            waiting=sum(seat.unbegun for seat in seats) + self._queue,
            positions=sum(seat.state.positions or each for seat in seats) if counted else None,
            free=sum(state.free or 0 for state in ready) if counted else None,
            reason="; ".join(dict.fromkeys(state.reason for state in away if state.reason)),
            several=base.several or len(seats) > 1,
            drafted=sum(seat.state.drafted for seat in seats),
            accepted=sum(seat.state.accepted for seat in seats),
            steps=sum(seat.state.steps for seat in seats),
        )


def ranked(key: bytes, names: Sequence[str]) -> list[str]:
    """The names in the order that ``key`` draws: each key another one, for everybody the same.

    Whoever takes one name away changes the first place of those keys alone that had it there.
    """
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), key=key[:64], digest_size=16).digest())


def _beginning(prompt: Prompt) -> tuple[bytes, int]:
    """A name of what a conversation begins with, the same for all its turns, and how many positions that is.

    It is all up to the end of the first picture, or the first positions of a text. While a text is shorter than that
    it may be computed again, which is as short.
    """
    keys, length = list[Any]([prompt.scope]), 0
    for span in prompt.spans:
        if isinstance(span, ImageSpan):
            keys, length = [*keys, span.digest], length + len(span)
            break
        ids = span.ids if prompt.images else span.ids[:BEGINNING]
        keys, length = [*keys, *ids], length + len(ids)
    return hashlib.blake2b(repr(keys).encode(), digest_size=32).digest(), length
