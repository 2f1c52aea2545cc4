"""What every server of ours is to its guards and its listener: pools of threads, what is under way, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from trifocal.api.admission import Admission
from trifocal.api.metrics import Metrics
from trifocal.api.needs import Pool
from trifocal.api.settings import ServerSettings
from trifocal.api.strict_json import SMALL, loads

__all__ = ["Host", "WorkerPool"]

READING = 2  # threads that read large bodies


@dataclass(frozen=True, slots=True, eq=False)
class WorkerPool:
    """Worker threads, and who may come to them."""

    admission: Admission
    threads: ThreadPoolExecutor


class Host:
    """A server's pools, its counters, and how it ends. ``admission`` is that of its answers."""

    def __init__(self, settings: ServerSettings, pools: Mapping[Pool, WorkerPool]) -> None:
        self.settings, self.pools = settings, pools
        self.admission = pools["answers"].admission
        self.metrics = Metrics(self.admission)
        self.draining = False
        self.cut = False
        self.reading: set[asyncio.Timeout] = set()  # of bodies that are on their way
        self.held = 0  # bytes of bodies and frames
        self._readers = ThreadPoolExecutor(READING, thread_name_prefix="answer-read")

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return any(pool.admission.running or pool.admission.waiting for pool in self.pools.values())

    def scope(self, caller: str) -> str:
        """Where what is kept of a caller's pictures and prompts is found again: for its key alone, or for everybody."""
        return "" if self.settings.share_caches or not self.settings.keys else caller

    async def read(self, data: bytes) -> Any:
        """The value of a body or a frame of JSON; a large one is read in a thread, so that others are served meanwhile.

        Raises:
            Refusal: it is not plain bounded JSON.
        """
        read = partial(loads, data, depth=self.settings.json_depth, values=self.settings.json_values)
        return await asyncio.get_running_loop().run_in_executor(self._readers, read) if len(data) > SMALL else read()

    def waits(self) -> Iterable[asyncio.Timeout]:
        """The deadlines of whatever waits for anything."""
        return tuple(self.reading)

    async def drain(self) -> None:
        """Takes nothing new, waits for what runs, and ends what is left after ``drain`` seconds."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain):
                while self.busy:
                    await asyncio.sleep(0.02)
        self._cut_off()
        for _ in range(50):
            if not self.busy:
                return
            await asyncio.sleep(0.02)

    @property
    def all_pools(self) -> Iterable[WorkerPool]:
        """All that end with it."""
        return self.pools.values()

    def close(self) -> None:
        """Frees the worker threads."""
        for pool in self.all_pools:
            pool.threads.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _cut_off(self) -> None:
        """Ends whatever waits for anything, so that everybody can be told."""
        self.cut = True
        for pool in self.all_pools:
            pool.admission.end()
        now = asyncio.get_running_loop().time()
        for wait in self.waits():
            with suppress(RuntimeError):  # it ended by itself in this very moment
                wait.reschedule(now)
