"""Several workers behind one front: who is asked, who waits for room, and the watch over all of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile

from trifocal.engines.base import State
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.worker import Call, Worker
from trifocal.errors import EngineError, EngineLost

__all__ = ["BLOCK", "Crew"]

BLOCK = 16  # positions that are found again together
BEAT = 0.25  # seconds between two looks at whether a process hangs
LEAVING = 5.0  # seconds for a process to end its step when it is told to leave


class Crew:
    """Workers with one recipe each. A request goes where the fewest positions must be computed before it begins.

    Those of its beginning that a worker has computed before are not: so a conversation goes where its beginning is,
    unless others are so much freer that computing it again is faster.
    """

    def __init__(self, recipes: Sequence[tuple[Recipe, Mapping[str, str]]], limit: float) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._closed = threading.Event()
        self._number = count(1)
        self.workers = [Worker(recipe, told, limit, self._lock, self.changed) for recipe, told in recipes]
        self._watch = threading.Thread(target=self._watching, name="engine-watch", daemon=True)

    def load(self) -> None:
        """Starts the workers, and waits until all of them have loaded.

        Raises:
            TrifocalError: one of them can't; then none is left.
        """
        for worker in self.workers:
            worker.start()
        self._watch.start()
        try:
            for worker in self.workers:
                worker.loaded.wait()
        except BaseException:
            self.stop()
            raise
        unfit = next((worker for worker in self.workers if worker.state.phase != "ready"), None)
        if unfit is not None:
            error = unfit.unfit or EngineError(unfit.state.reason)
            self.stop()
            raise error

    def number(self) -> int:
        """A number for a call."""
        return next(self._number)

    def ask(self, call: Call) -> None:
        """Asks a worker, or as soon as there is one.

        Raises:
            EngineError: there will be none any more.
        """
        with self._lock:
            if self._closed.is_set():
                raise EngineError("the engine is closed")
            state = self._state()
            if state.phase == "failed":
                raise EngineLost(state.reason)
            self._waiting.append(call)
            self._dispatch()

    def leave(self, call: Call) -> None:
        """Nobody waits for a call any more."""
        with self._lock:
            if call.worker is not None:
                call.worker.leave(call)
            elif call in self._waiting:
                self._waiting.remove(call)

    def changed(self) -> None:
        """There may be room, or none ever."""
        with self._lock:
            self._dispatch()
            state = self._state()
            if state.phase == "failed":
                while self._waiting:
                    self._waiting.popleft().said.put(EngineLost(state.reason))

    def state(self) -> State:
        """How the workers are, together."""
        with self._lock:
            return self._state()

    @property
    def closed(self) -> bool:
        """Whether it was ended."""
        return self._closed.is_set()

    def abandon(self) -> None:
        """Ends all processes, waits for nobody and nothing: may be called by any thread at any time."""
        self._closed.set()
        for worker in self.workers:
            worker.abandon()

    def stop(self) -> None:
        """Ends all calls with an error, and all processes."""
        self._closed.set()
        for worker in self.workers:
            worker.close()
        deadline = time.monotonic() + LEAVING
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            while self._waiting:
                self._waiting.popleft().said.put(EngineError("the engine is closed"))
        if self._watch.is_alive():
            self._watch.join()

    def _state(self) -> State:
        told = [worker.state for worker in self.workers]
        ready = [state for state in told if state.phase == "ready"]
        others = [state for state in told if state.phase != "ready"]
        chosen = next((state for phase in ("ready", "starting") for state in told if state.phase == phase), told[0])
        counted = [state for state in ready if state.positions is not None and state.free is not None]
        calls = [call for worker in self.workers for call in list(worker.open.values())]
        running = sum(call.begun for call in calls)
        return replace(
            chosen,
            running=running,
            waiting=len(calls) - running + len(self._waiting),
            positions=sum(state.positions or 0 for state in counted) if counted else None,
            free=sum(state.free or 0 for state in counted) if counted else None,
            reason="; ".join(dict.fromkeys(state.reason for state in (others or [chosen]) if state.reason)),
            drafted=sum(state.drafted for state in told),
            accepted=sum(state.accepted for state in told),
            steps=sum(state.steps for state in told),
        )

    def _dispatch(self) -> None:
        """Gives those that wait to workers, in order; under the lock."""
        while self._waiting and (free := [worker for worker in self.workers if worker.free]):
            call = self._waiting.popleft()
            whole = call.cost
            found = {worker: self._missing(call, worker) for worker in free}
            worker = min(free, key=lambda each: (each.weight + found[each], each.weight))
            call.cost = found[worker] if whole else 0
            worker.ask(call)

    def _missing(self, call: Call, worker: Worker) -> int:
        """How many positions of a call a worker would have to compute."""
        if len(self.workers) == 1 or not call.names:
            return call.cost
        known = sum(1 for _ in takewhile(lambda name: name in worker.known, call.names))
        return call.cost - known * BLOCK

    def _watching(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(BEAT):
            late = time.monotonic() - looked - BEAT
            looked += BEAT + late
            for worker in self.workers:
                worker.check(late)
