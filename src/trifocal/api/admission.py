"""Who runs, who waits, and who is asked to come back: slots and a bounded queue."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from trifocal.api.errors import Refusal, server_busy, shutting_down

__all__ = ["Admission", "Slot"]


class Slot:
    """The right to run one answer. It is given back exactly once, however often that is said."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self._admission, self._caller, self._held = admission, caller, True

    def release(self) -> None:
        """Gives it back; the longest waiting request gets it."""
        if self._held:
            self._held = False
            self._admission._give_back(self._caller)


class Admission:
    """``slots`` run, ``queue`` wait in order, each caller has at most ``per_caller`` of both.

    Belongs to one event loop; every method is called in it.
    """

    def __init__(self, slots: int, queue: int, per_caller: int | None = None) -> None:
        self.slots, self.queue, self.per_caller = slots, queue, per_caller
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._callers: Counter[str] = Counter()
        self._ended = False

    @property
    def waiting(self) -> int:
        """How many requests are in the queue."""
        return len(self._waiting)

    def check(self, caller: str) -> None:
        """Refuses where there is no room now.

        Raises:
            Refusal: 429 where this caller has its share already, 503 where nobody gets in.
        """
        if self._ended:
            raise shutting_down()
        if self.per_caller is not None and self._callers[caller] >= self.per_caller:
            raise Refusal(429, "queue_full", f"this key has {self.per_caller} requests under way", retry_after=1)
        if self.running >= self.slots and len(self._waiting) >= self.queue:
            raise server_busy(message=f"{self.slots} requests run and {self.queue} wait already")

    async def enter(self, caller: str, wait: float) -> Slot:
        """A slot, at once or after a wait of at most ``wait`` seconds.

        Raises:
            Refusal: there is no room, or none came free in time.
        """
        self.check(caller)
        self._callers[caller] += 1
        try:
            if self.running < self.slots and not self._waiting:
                self.running += 1
            else:
                await self._turn(wait)
        except BaseException:
            self._forget(caller)
            raise
        return Slot(self, caller)

    def end(self) -> None:
        """Lets nobody in any more: who waits is told now, who comes is told at once."""
        self._ended = True
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(shutting_down())

    async def _turn(self, wait: float) -> None:
        """Waits in line. When it returns, a running place is ours already."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(wait):
                await turn
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._next()  # our turn came in the very moment in which we left
            if isinstance(error, TimeoutError):
                raise server_busy(message=f"no slot came free within {wait:g} s") from error
            raise

    def _give_back(self, caller: str) -> None:
        self._forget(caller)
        self._next()

    def _next(self) -> None:
        """Hands a running place on, or frees it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _forget(self, caller: str) -> None:
        self._callers[caller] -= 1
        if self._callers[caller] <= 0:
            del self._callers[caller]
