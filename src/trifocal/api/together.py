"""Several answers of one request made at once: a thread for each, read as one."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["together"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class _Over:
    """A generator's last word, and what it raised."""

    error: BaseException | None


def together(generators: Sequence[Generator[Item, None, None]]) -> Generator[Item, None, None]:
    """The items of all generators as they come; one alone is run in the thread of whoever reads.

    Closing it, or an error of one, closes each after the item that it is at; no thread is left over.
    """
    if len(generators) == 1:
        with closing(generators[0]) as alone:
            yield from alone
        return
    items: queue.SimpleQueue[Item | _Over] = queue.SimpleQueue()
    stop = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for generator in generators:
            threads.append(_started(generator, items, stop))  # the system may refuse one
        left = len(threads)
        while left:
            item = items.get()
            if not isinstance(item, _Over):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                left -= 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for generator in generators[len(threads) :]:
            generator.close()


def _started(
    generator: Generator[Item, None, None], items: queue.SimpleQueue[Item | _Over], stop: threading.Event
) -> threading.Thread:
    """A thread that runs a generator in the context of whoever starts it: what cancels the one cancels the other."""

    def run() -> None:
        error = None
        try:
            with closing(generator):
                for item in generator:
                    if stop.is_set():
                        return
                    items.put(item)
        except BaseException as raised:  # also what no thread may end with: it is raised where the items are read
            error = raised
        finally:
            items.put(_Over(error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="answer-together", daemon=True)
    thread.start()
    return thread
