"""One language model in many places, asked as one engine: who is asked, what becomes of a death, who is woken."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal, Protocol

import torch

from trifocal.cancelling import woken_by
from trifocal.engines.base import State, Token, Tokenizer
from trifocal.engines.blocks import names_of
from trifocal.engines.echo import Bytes
from trifocal.engines.language import open_language, tokenizer_of
from trifocal.engines.prefixes import position_keys
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.answering import able_of, check_prompt, check_sampling
from trifocal.engines.remote.wire import prompt_to, tensor_from
from trifocal.errors import EngineError, EngineLost, UsageError
from trifocal.messages import Sampling
from trifocal.placement import Part
from trifocal.prompt import ImageSpan, Prompt

__all__ = ["Gone", "Place", "Roster", "Said", "Seat", "Spread", "ranked"]

BLOCK = 16  # positions that are found again together
BEGINNING = 64  # positions of a text by which whoever never saw it guesses where it is known
STREAM = 64  # positions: what an answer under way weighs against prompts that wait
OVERLOAD = 4096  # positions that the place where a beginning may be known is credited with at most
REMEMBERED = 1 << 16  # blocks a place: a million positions
DEATHS = 3  # of places that a request may meet before it is taken for their cause
PATIENCE = 60.0  # seconds in which a place comes, where there is none

LOADING = State("starting", reason="the language engine is loading")

Phase = Literal["ready", "starting", "asleep"]


class Gone(Exception):
    """The place is gone, or can't be reached; says how."""


class Said(Protocol):
    """What a place says of one request: tokens as they come. `close` ends it, from any thread."""

    def __iter__(self) -> Iterator[list[Token]]:
        """Tokens, some at a time.

        Raises:
            Gone: the place is gone.
            TrifocalError: the engine's own error.
        """
        ...

    def close(self) -> None:
        """Nobody waits for it any more. Returns at once."""
        ...


class Place(Protocol):
    """Where one copy of the language model is; all of them have the same one."""

    @property
    def name(self) -> str:
        """What it is called, for as long as it is one of these, through all its lives."""
        ...

    def answer(self, head: Mapping[str, Any], body: bytes) -> Said:
        """Has a prompt continued."""
        ...

    def attention(self, head: Mapping[str, Any], body: bytes) -> tuple[Sequence[Any], bytes]:
        """Where it looked: what `trifocal.engines.remote.wire.tensor_to` gives.

        Raises:
            Gone: the place is gone.
            TrifocalError: the engine's own error.
        """
        ...

    def wake(self) -> None:
        """Has it started where it sleeps; returns at once. `Roster.woke` is told when it is there."""
        ...


@dataclass(slots=True, eq=False)
class Seat:
    """What a front knows of a place: whether it is there, what it was given, and what it computed before."""

    place: Place
    phase: Phase = "starting"
    state: State = LOADING
    sleeps: float | None = None  # seconds without a request after which it may be asleep; None: it is always on
    used: float = 0.0
    waiting: int = 0  # positions that it has to compute before answers begin
    streams: int = 0
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
        """It has these from now on."""
        for name in names:
            self.known[name] = None
            self.known.move_to_end(name)
        while len(self.known) > REMEMBERED:
            self.known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be placed: its length, the names of its blocks, the name of its beginning and that one's blocks."""

    length: int
    names: Sequence[bytes]
    beginning: bytes
    first: int

    @classmethod
    def of(cls, prompt: Prompt) -> Wanted:
        """Of a prompt; one whose scope is None is never found again."""
        if prompt.scope is None:
            return cls(len(prompt), (), b"", 0)
        names = names_of(position_keys(prompt), BLOCK, scope=prompt.scope)
        beginning, length = _beginning(prompt)
        return cls(len(prompt), names, beginning, length // BLOCK)


class Roster:
    """The places, and who of them is asked. All that it does may be called by any thread.

    A request goes where the fewest positions must be computed before it begins: those that wait there, and its own but
    for the beginning that this front had computed there before. Where no place is known to have all up to the end of
    the first picture (of a text: its first positions), one is drawn by the name of that and taken to have it, up to
    ``overload`` positions. All fronts draw the same (rendezvous hashing), so a conversation meets its beginning though
    another front began it, until that place has so many positions more before it than others that computing it again
    is faster.

    Where all that are awake have more than ``overload`` positions before them, one that sleeps is woken.
    """

    def __init__(self, places: Sequence[Place], always: int, sleeps: float = 0.0, overload: int = OVERLOAD) -> None:
        self._changed = threading.Condition()
        self._overload = overload
        self.closed = False
        self.seats = {
            place.name: Seat(place, sleeps=None if index < always else sleeps) for index, place in enumerate(places)
        }
        for seat in self.seats.values():
            if seat.sleeps is not None:
                seat.phase = "asleep"

    def enter(self, wanted: Wanted, patience: float = PATIENCE) -> tuple[Seat, int]:
        """The place that a request goes to, and how many positions it has to compute for it.

        Raises:
            EngineLost: none is there, and none came in time.
            EngineError: the engine is closed.
        """
        until = time.monotonic() + patience
        with self._changed:
            while True:
                if self.closed:
                    raise EngineError("the engine is closed")
                self._doze()
                seats = [seat for seat in self.seats.values() if seat.phase == "ready"]
                if not seats or all(seat.weight > self._overload for seat in seats):
                    self._wake_one()
                if seats:
                    return self._given(seats, wanted)
                left = until - time.monotonic()
                if left <= 0:
                    raise EngineLost(self._state().reason or "no replica of the language engine is there")
                self._changed.wait(left)

    def began(self, seat: Seat, cost: int) -> None:
        """Its answer has begun."""
        with self._changed:
            seat.waiting -= cost
            seat.streams += 1

    def leave(self, seat: Seat, cost: int, *, begun: bool) -> None:
        """A request is done with, however."""
        with self._changed:
            if begun:
                seat.streams -= 1
            else:
                seat.waiting -= cost
            seat.used = time.monotonic()

    def there(self, name: str, state: State) -> None:
        """A place told how it is."""
        with self._changed:
            seat = self.seats[name]
            seat.state, seat.used = state, seat.used or time.monotonic()
            if seat.phase != state.phase:
                seat.phase = "ready" if state.phase == "ready" else "starting"
            self._changed.notify_all()

    def gone(self, name: str, how: str) -> None:
        """A place is gone: what it knew is forgotten. It may come again."""
        with self._changed:
            seat = self.seats[name]
            seat.phase = "starting" if seat.sleeps is None else "asleep"
            seat.state = State("starting", reason=f"{name}: {how}; it starts again")
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

    def _given(self, seats: Sequence[Seat], wanted: Wanted) -> tuple[Seat, int]:
        missing = {seat.place.name: seat.missing(wanted.length, wanted.names) for seat in seats}
        order = ranked(wanted.beginning, list(missing)) if wanted.beginning else sorted(missing, key=self._weight)
        guessed = dict(missing)
        if wanted.beginning and wanted.length - min(missing.values()) < wanted.first * BLOCK:
            guessed[order[0]] -= min(wanted.length, self._overload)
        rank = {name: at for at, name in enumerate(order)}
        name = min(missing, key=lambda each: (self._weight(each) + guessed[each], rank[each]))
        seat, cost = self.seats[name], missing[name]
        seat.waiting += cost
        seat.asked += 1
        seat.used = time.monotonic()
        seat.learn(wanted.names)
        return seat, cost

    def _weight(self, name: str) -> int:
        return self.seats[name].weight

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
            seat.place.wake()

    def _state(self) -> State:
        seats = list(self.seats.values())
        ready = [seat for seat in seats if seat.phase == "ready"]
        others = [seat for seat in seats if seat.phase == "starting"]
        counted = [seat.state for seat in seats if seat.state.positions is not None]
        each = max((state.positions or 0 for state in counted), default=0)  # those that sleep will have as many
        base = (ready or seats)[0].state
        return replace(
            base,
            phase="ready" if ready else "starting",
            running=sum(seat.streams for seat in seats),
            waiting=sum(seat.state.waiting for seat in ready),
            positions=each * len(seats) if counted else None,
            free=sum(seat.state.free or 0 for seat in ready) if counted else None,
            reason="; ".join(dict.fromkeys(seat.state.reason for seat in others if seat.state.reason)),
            several=True,
            steps=sum(seat.state.steps for seat in ready),
        )


class Spread:
    """An `Engine` in many places. ``facts`` are what one of them told, which all have in common.

    What dies with a place: answers that had begun end with `EngineLost`, the others are asked elsewhere.
    """

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any], roster: Roster) -> None:
        self.roster = roster
        self.name: str = facts["name"]
        self.hidden: int = facts["hidden"]
        self.context: int = facts["context"]
        self.able = able_of(facts)
        self.tokenizer = _tokenizer(recipe, facts["tokenizer"], self.name)
        several = len(roster.seats)
        self.parts = tuple(
            replace(part, nbytes=part.nbytes * several) for part in (Part(**told) for told in facts["parts"])
        )

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        self._check(prompt, 1)
        check_sampling(sampling, self.able, self.name)
        return self._answer(prompt, {"sampling": asdict(sampling)})

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """Where it looked; see `trifocal.engines.base.Engine.attention`."""
        if not self.able.explains:
            raise UsageError(f"the engine {self.name} can't tell where it looks")
        self._check(prompt, len(ids))
        head, body = _written(prompt, {"ids": list(ids)})
        wanted = Wanted.of(prompt)
        for _ in range(DEATHS):
            seat, cost = self.roster.enter(wanted)
            try:
                told, rows = seat.place.attention(head, body)
                return tensor_from(told, memoryview(bytearray(rows)))[0]
            except Gone as gone:
                self.roster.gone(seat.place.name, str(gone))
            finally:
                self.roster.leave(seat, cost, begun=False)
        raise EngineError(_SUSPECT)

    def state(self) -> State:
        """How it is now, all places together."""
        return State("failed", reason="the engine is closed") if self.roster.closed else self.roster.state()

    def close(self) -> None:
        """Nobody is asked any more; the places are not ours to end."""
        self.roster.close()

    def _check(self, prompt: Prompt, wanted: int) -> None:
        if self.roster.closed:
            raise EngineError("the engine is closed")
        check_prompt(prompt, wanted, self.context)

    def _answer(self, prompt: Prompt, asked: Mapping[str, Any]) -> Generator[Token, None, None]:
        head, body = _written(prompt, asked)
        wanted = Wanted.of(prompt)
        for _ in range(DEATHS):
            seat, cost = self.roster.enter(wanted)
            begun = False
            try:
                said = seat.place.answer(head, body)
                with closing(said), woken_by(said.close):
                    for tokens in said:
                        if not begun:
                            begun = True
                            self.roster.began(seat, cost)
                        yield from tokens
                return
            except Gone as gone:
                self.roster.gone(seat.place.name, str(gone))
                if begun:
                    words = f"the language engine's replica {seat.place.name} {gone} while it answered"
                    raise EngineLost(words) from gone
            finally:
                self.roster.leave(seat, cost, begun=begun)
        raise EngineError(_SUSPECT)


_SUSPECT = f"{DEATHS} replicas of the language engine ended before they could begin to answer this"


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


def _written(prompt: Prompt, asked: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    told, parts = prompt_to(prompt)
    return {**told, **asked}, b"".join(parts)


def _tokenizer(recipe: Recipe, told: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer that the places have, made here of the same files."""
    if told["kind"] == "files":
        return tokenizer_of(open_language(recipe), told["rows"])
    if told["kind"] == "bytes":
        return Bytes()
    raise UsageError(f"the engine {name} has a tokenizer of its own, and can't be spread over many places")
