"""A generator of the model's, run in a worker thread and read in the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import closing
from typing import Generic, TypeVar

from trifocal.cancelling import Scope
from trifocal.errors import EngineError

__all__ = ["Pump"]

Item = TypeVar("Item")
BUFFER = 256


class Pump(Generic[Item]):
    """Runs ``start()`` and what it returns in a thread; `next` gives its items to the event loop.

    ``stop`` makes the thread close the generator after the step that it is in, and wakes a step that waits for another
    machine. ``ended`` is called
    in the event loop when the thread is done with it, and only then is the slot free. A reader that
    is ``patience`` seconds behind by `BUFFER` items counts as gone.
    """

    def __init__(
        self,
        start: Callable[[], Generator[Item, None, None]],
        executor: Executor,
        ended: Callable[[], None],
        patience: float = 30.0,
    ) -> None:
        self._start, self._ended, self._patience = start, ended, patience
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(BUFFER)
        self._stop = threading.Event()
        self._scope = Scope()
        try:
            executor.submit(self._work)
        except BaseException:  # no thread was to be had; the work may be queued all the same, and is nobody's
            self._stop.set()
            self._ended = lambda: None
            raise

    def stop(self) -> None:
        """Says that nobody reads on. Returns at once."""
        self._stop.set()
        self._room.release()
        self._scope.cancel()

    async def next(self) -> Item | None:
        """The next item, or None after the last one. What the generator raised is raised here."""
        item = await self._items.get()
        self._room.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def _work(self) -> None:
        last: BaseException | None = None
        try:
            if not self._stop.is_set():
                with self._scope.work(), closing(self._start()) as items:
                    for item in items:
                        if self._stop.is_set() or not self._give(item):
                            break
        except Exception as error:
            last = error
        except BaseException as error:  # a panic of Rust's, an exit: nothing that may reach the event loop
            last = EngineError(f"the engine raised {type(error).__name__}")
        self._tell(self._finish, last)

    def _give(self, item: Item) -> bool:
        if not self._room.acquire(timeout=self._patience) or self._stop.is_set():
            return False
        self._tell(self._items.put_nowait, item)
        return True

    def _finish(self, last: BaseException | None) -> None:
        self._items.put_nowait(last)
        self._ended()

    def _tell(self, function: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *values)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            self._stop.set()
