"""The processes of one engine and their roster: started, watched and ended together, asked one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from itertools import count

from trifocal.cancelling import woken_by
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.worker import Call, Given, Worker
from trifocal.engines.roster import Roster, Seat, Wanted
from trifocal.errors import EngineError, TrifocalError

__all__ = ["Crew"]

BEAT = 0.25  # seconds between two looks at whether a process hangs
LEAVING = 5.0  # seconds for a process to end its step when it is told to leave


class Crew:
    """Workers with one recipe each; whom of them a request goes to, their ``roster`` says."""

    def __init__(self, recipes: Sequence[tuple[Recipe, Mapping[str, str]]], limit: float) -> None:
        self._telling = threading.Lock()
        self._closed = threading.Event()
        self._number = count(1)
        self.workers = [
            Worker(f"process {number}", recipe, told, limit, self._changed)
            for number, (recipe, told) in enumerate(recipes, start=1)
        ]
        self.roster = Roster(self.workers, overload=0)  # nobody else asks them: nothing is guessed
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

    def ask(self, call: Call, wanted: Wanted) -> Generator[Given, None, None]:
        """What a worker says to a call, as soon as there is one that takes it; closing it leaves the call.

        Raises:
            EngineError: there will be none any more, or nobody waits for this.
            TrifocalError: what the engine raised.
        """
        seat, cost = self._placed(call, wanted)
        begun = False
        try:
            with woken_by(lambda: call.said.put(EngineError("nobody waits for this answer any more"))):
                while (given := call.said.get()) is not None:
                    if isinstance(given, TrifocalError):
                        raise given
                    if not begun:
                        begun = True
                        self.roster.began(seat, cost)
                    yield given
        finally:
            seat.place.leave(call)
            self.roster.leave(seat, cost, begun=begun)

    def abandon(self) -> None:
        """Ends all processes, waits for nobody and nothing: may be called by any thread at any time."""
        self._closed.set()
        self.roster.closed = True
        for worker in self.workers:
            worker.abandon()

    def stop(self) -> None:
        """Ends all calls with an error, and all processes."""
        self._closed.set()
        self.roster.close()
        for worker in self.workers:
            worker.close()
        deadline = time.monotonic() + LEAVING
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        if self._watch.is_alive():
            self._watch.join()

    def _placed(self, call: Call, wanted: Wanted) -> tuple[Seat[Worker], int]:
        while True:
            seat, cost = self.roster.enter(wanted, patience=None)
            if seat.place.ask(call):
                return seat, cost
            self.roster.leave(seat, cost, begun=False)
            self._changed(seat.place)  # it died just now

    def _changed(self, worker: Worker) -> None:
        """Tells the roster how a worker is; one at a time, so that the latest word is the truth."""
        with self._telling:
            state, free = worker.told()
            if state.phase == "ready":
                self.roster.there(worker.name, state, taking=free)
            else:
                self.roster.lost(worker.name, state)

    def _watching(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(BEAT):
            late = time.monotonic() - looked - BEAT
            looked += BEAT + late
            for worker in self.workers:
                worker.check(late)
