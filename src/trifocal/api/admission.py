"""Who runs, who waits, and who is asked to come back: slots, positions and a bounded queue."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trifocal.api.errors import Refusal, server_busy, shutting_down

__all__ = ["Admission", "Place"]

Result = TypeVar("Result")


class Place:
    """A request among those under way: it waits, then it runs. It is given back exactly once, however often said."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self._admission, self._caller, self._held = admission, caller, True
        self._positions: int | None = None  # while it runs
        self._work: Future[Any] | None = None

    @property
    def runs(self) -> bool:
        """Whether it runs, or waits."""
        return self._positions is not None

    async def run(self, positions: int, wait: float) -> None:
        """Runs from now on, with so many of the engine's positions, or after a wait of at most ``wait`` seconds.

        Raises:
            Refusal: none came free in time.
        """
        await self._admission._turn(positions, wait)
        self._positions = positions

    async def during(self, threads: Executor, work: Callable[..., Result], *values: Any) -> Result:
        """The result of ``work``, done in a thread: as long as that is at it, the place is not given back.

        A thread can't be stopped; whoever leaves meanwhile would let others in while it still works for him.
        """
        self._work = threads.submit(work, *values)
        told = asyncio.wrap_future(self._work)
        told.add_done_callback(_heard)
        return await asyncio.shield(told)

    def release(self) -> None:
        """Gives it back, when no thread works for it any more; the longest waiting request gets it."""
        if self._work is not None and not self._work.cancel() and not self._work.done():
            loop = asyncio.get_running_loop()
            self._work.add_done_callback(lambda _: _call_in(loop, self.release))
        elif self._held:
            self._held = False
            self._admission._give_back(self._caller, self._positions)


def _heard(told: asyncio.Future[Any]) -> None:
    """Takes notice of an error: where its request has left nobody else does, and asyncio would log that."""
    if not told.cancelled():
        told.exception()


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(function)


@dataclass(slots=True, eq=False)
class _Turn:
    """Somebody who waits for so many positions."""

    positions: int
    come: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """At most ``slots`` run, together with at most ``capacity`` positions; ``queue`` more are under way.

    Who runs holds the positions of its prompt and of the longest answer that it may get, of those that the engine
    has (None: it does not count). What alone is too much for them runs alone. Who waits does so in order, and each
    caller has at most ``per_caller`` under way. Belongs to one event loop; every method is called in it.
    """

    def __init__(self, slots: int, queue: int, per_caller: int | None = None, capacity: int | None = None) -> None:
        self.slots, self.queue, self.per_caller, self.capacity = slots, queue, per_caller, capacity
        self.running = self.positions = 0
        self._turns: deque[_Turn] = deque()
        self._callers: Counter[str] = Counter()
        self._ended = False

    @property
    def waiting(self) -> int:
        """How many requests are under way and do not run."""
        return self._callers.total() - self.running

    def check(self, caller: str) -> None:
        """Refuses where there is no room now.

        Raises:
            Refusal: 429 where this caller has its share already, 503 where nobody gets in.
        """
        if self._ended:
            raise shutting_down()
        if self.per_caller is not None and self._callers[caller] >= self.per_caller:
            raise Refusal(429, "queue_full", f"this key has {self.per_caller} requests under way", retry_after=1)
        if self._callers.total() >= self.slots + self.queue:
            raise server_busy(message=f"{self.running} requests run and {self.waiting} wait already")

    def enter(self, caller: str) -> Place:
        """A place among those under way, for a request that gets ready to run.

        Raises:
            Refusal: there is no room.
        """
        self.check(caller)
        self._callers[caller] += 1
        return Place(self, caller)

    def end(self) -> None:
        """Lets nobody in any more: who waits is told now, who comes is told at once."""
        self._ended = True
        turns, self._turns = self._turns, deque()
        for turn in turns:
            if not turn.come.done():
                turn.come.set_exception(shutting_down())

    async def _turn(self, positions: int, wait: float) -> None:
        """Waits in line. When it returns, slot and positions are the caller's already."""
        if self._ended:
            raise shutting_down()
        turn = _Turn(positions)
        self._turns.append(turn)
        self._next()
        try:
            async with asyncio.timeout(wait):
                await turn.come
        except BaseException as error:
            if turn in self._turns:
                self._turns.remove(turn)
                self._next()  # those behind may have waited for nothing but this one
            elif turn.come.done() and not turn.come.cancelled() and turn.come.exception() is None:
                self._free(positions)  # our turn came in the very moment in which we left
            if isinstance(error, TimeoutError):
                raise server_busy(message=f"no slot came free within {wait:g} s") from error
            raise

    def _next(self) -> None:
        """Lets those run whose turn it is, and for whom there is room."""
        while self._turns and (self._turns[0].come.done() or self._has_room(self._turns[0].positions)):
            turn = self._turns.popleft()
            if not turn.come.done():
                self.running += 1
                self.positions += turn.positions
                turn.come.set_result(None)

    def _has_room(self, positions: int) -> bool:
        fits = self.capacity is None or not self.running or self.positions + positions <= self.capacity
        return self.running < self.slots and fits

    def _free(self, positions: int) -> None:
        self.running -= 1
        self.positions -= positions
        self._next()

    def _give_back(self, caller: str, positions: int | None) -> None:
        self._callers[caller] -= 1
        if self._callers[caller] <= 0:
            del self._callers[caller]
        if positions is not None:
            self._free(positions)
