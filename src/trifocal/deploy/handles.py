"""Replicas spoken to through handles of Ray Serve; here Ray's errors become ours, and nobody else knows Ray's calls."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trifocal.engines.base import Token
from trifocal.engines.remote.wire import error_from, state_from, tokens_from
from trifocal.engines.roster import Roster
from trifocal.engines.spread import Gone, Place, Said
from trifocal.errors import EngineError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["ReplicaPlace", "Watch", "exchange_over"]

log = logging.getLogger("trifocal")
PING = 1.0  # seconds between two questions how a replica is
SILENT = 10.0  # seconds without an answer to that, after which it is taken for gone
SEEING_SECONDS = 120.0  # for pictures to be seen
LOOKING_SECONDS = 600.0  # for an answer to be looked at again; a replica's steps are watched, this is none
AGAIN = 3  # replicas that see which may die over the same pictures


class ReplicaPlace:
    """A `trifocal.engines.spread.Place`: a deployment with one replica."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self.name = name
        self.handle = handle

    def answer(self, head: Mapping[str, Any], body: bytes) -> Said:
        """Has a prompt continued."""
        return _Streamed(self.handle.options(stream=True).answer.remote(head, body))

    def attention(self, head: Mapping[str, Any], body: bytes) -> tuple[Sequence[Any], bytes]:
        """Where it looked."""
        try:
            found = self.handle.attention.remote(head, body).result(timeout_s=LOOKING_SECONDS)
        except TimeoutError as error:
            raise EngineError(f"{self.name} did not tell where it looked within {LOOKING_SECONDS:.0f} s") from error
        except _failures() as error:
            raise _translated(error) from error
        if isinstance(found, dict):
            raise error_from(found)
        told, rows = found
        return told, rows


class _Streamed:
    """What a replica says of one request."""

    def __init__(self, items: Any) -> None:
        self._items, self._left = items, False

    def __iter__(self) -> Iterator[list[Token]]:
        try:
            for item in self._items:
                if isinstance(item, dict):
                    raise error_from(item)
                yield [token for _, token in tokens_from(memoryview(item))]
        except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
            if not self._left:
                raise Gone("was told to end") from error
        except _failures() as error:
            if not self._left:
                raise _translated(error) from error

    def close(self) -> None:
        """Ends it."""
        self._left = True
        self._items.cancel()


class Watch:
    """Asks each replica that always runs how it is, once a second, and wakes those that sleep."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        self._handles = handles
        self._roster: Roster[Place] | None = None
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="replicas-watch", daemon=True)

    def start(self, roster: Roster[Place]) -> None:
        """Tells this roster from now on."""
        self._roster = roster
        self._thread.start()
        for name, seat in roster.seats.items():
            if seat.sleeps is None:
                self._do(self._watch(name))

    def wake(self, name: str) -> None:
        """Has a replica started, and says when it is there."""
        self._do(self._woken(name))

    def stop(self) -> None:
        """Asks nobody any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work: Any) -> None:
        def begin() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    async def _watch(self, name: str) -> None:
        while True:
            await self._look(name)
            await asyncio.sleep(PING)

    async def _woken(self, name: str) -> None:
        with suppress(Exception):  # then it is asleep again, and woken by the next one
            await self._look(name, patience=None)

    async def _look(self, name: str, patience: float | None = SILENT) -> None:
        """How a replica is. What does not answer in time goes on being waited for: it may be starting."""
        assert self._roster is not None
        asked = asyncio.ensure_future(self._state(name))
        try:
            state = await asyncio.wait_for(asyncio.shield(asked), patience)
        except TimeoutError:
            self._roster.gone(name, f"does not answer for {SILENT:.0f} s")
            with suppress(Exception):
                self._roster.woke(name, state_from(await asked))
        except Exception as error:
            self._roster.gone(name, str(_translated(error)))
        else:
            self._roster.woke(name, state_from(state))

    async def _state(self, name: str) -> Any:
        return await self._handles[name].state.remote()


def exchange_over(handle: DeploymentHandle) -> Callable[[str, bytes | None, str, int], tuple[int, bytes]]:
    """An `Exchange` of `trifocal.vision.elsewhere` with whichever replica has the least to do.

    One that dies is passed over: what it was asked can be asked again.
    """

    def exchange(path: str, body: bytes | None, kind: str, most: int) -> tuple[int, bytes]:
        for left in reversed(range(AGAIN)):
            try:
                status, answer = handle.exchange.remote(path, body, kind).result(timeout_s=SEEING_SECONDS)
            except TimeoutError as error:
                raise OSError(f"no answer within {SEEING_SECONDS:.0f} s") from error
            except _failures() as error:
                translated = _translated(error)
                if not left or not isinstance(translated, Gone):
                    raise OSError(str(translated)) from error
                log.warning("a replica that sees %s; another one is asked", translated)
            else:
                if len(answer) > most:
                    raise OSError(f"an answer of more than {most} bytes")
                return status, answer
        raise AssertionError

    return exchange


def _failures() -> tuple[type[Exception], ...]:
    """What a call may fail with."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return RayError, RayServeException


def _translated(error: BaseException) -> Gone | EngineError:
    """What a failed call means: the replica is gone, or our own code there failed."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
        return EngineError(f"the replica raised {type(error.cause).__name__}")
    return Gone("ended" if isinstance(error, RayActorError) else f"can't be reached ({type(error).__name__})")
