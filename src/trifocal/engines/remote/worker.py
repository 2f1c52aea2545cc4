"""One place where an engine's process works: it is started there, watched, and started again when it dies."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trifocal.engines.base import State, Token
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.process import Process
from trifocal.engines.remote.wire import Frame, Kind, WireError, error_from, state_from, tensor_from, tokens_from
from trifocal.errors import EngineError, EngineLost, TrifocalError

__all__ = ["Call", "Given", "Worker"]

DEATHS = 3  # of processes that a request may meet before it is taken for their cause
GIVE_UP = 5  # lives in a row in which nothing was done
PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the next life after one in which nothing was done, doubled each time
SILENT = 30.0  # seconds without a heartbeat of a process that works
WELL = 60.0  # seconds of a life that count like an answer

Given = Token | torch.Tensor | list[int] | str | int | TrifocalError | None


@dataclass(slots=True, eq=False)
class Call:
    """Something that is asked of an engine's process: ``said`` gets what comes of it, None or an error at last.

    ``deaths`` counts the processes that died between getting it and beginning to answer.
    """

    number: int
    kind: Kind
    head: Mapping[str, Any]
    parts: Sequence[memoryview] = ()
    said: queue.SimpleQueue[Given] = field(default_factory=queue.SimpleQueue)
    begun: bool = False
    deaths: int = 0


class Worker:
    """A process and, when that is gone, the next one, until it is given up; one thread reads what it says.

    What it was asked and had begun to answer when it died ends with an error. The rest is asked again, each alone until
    it is begun: what kills a process kills nobody else's answer then. ``changed`` is called when `told` may be another.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        environment: Mapping[str, str],
        limit: float,
        changed: Callable[[Worker], None],
    ) -> None:
        self.name = name
        self._recipe, self._environment, self._limit = recipe, environment, limit
        self._changed = changed  # whoever calls it does not hold the lock
        self._lock = threading.RLock()  # the collector may close a forgotten answer in a thread that has it
        self.facts: Mapping[str, Any] = {}
        self.unfit: TrifocalError | None = None  # why the latest process could not load it
        self.loaded = threading.Event()  # or not, for the first time
        self.state = State("starting", reason="the language engine is loading")
        self.open: dict[int, Call] = {}  # what its process was asked
        self._again: deque[Call] = deque()
        self._process: Process | None = None
        self._ready = self._did = False
        self._since = self._moved = 0.0  # when it was ready, when it last went on
        self._failures = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-process", daemon=True)

    def told(self) -> tuple[State, bool]:
        """How it is, and whether it takes what others may take as well."""
        with self._lock:
            return self.state, self._free

    @property
    def pid(self) -> int | None:
        """The number of its process now, where there is one."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Starts its first process."""
        self._thread.start()

    def ask(self, call: Call) -> bool:
        """Asks its process; False where it takes nothing now."""
        with self._lock:
            if self._free:
                self._ask(call)
                return True
            return False

    def leave(self, call: Call) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            if call in self._again:
                self._again.remove(call)
            elif self.open.get(call.number) is call and self._process is not None:
                call.begun = True  # whatever becomes of it is not asked again
                self._process.say(Kind.LEFT, {"number": call.number})

    def check(self, late: float = 0.0) -> None:
        """Kills a process that hangs; that we ourselves slept ``late`` seconds too long is not its fault."""
        with self._lock:
            process, now = self._process, time.monotonic()
            if process is None:
                return
            process.heard, self._moved = process.heard + late, self._moved + late
            if process.gone:
                process.kill()
            elif not self._ready:
                if now - process.heard > max(self._limit, SILENT):
                    process.kill(f"said nothing for {self._limit:g} s while it loaded")
            elif self.open:
                silent = min(SILENT, self._limit)
                if now - max(process.heard, self._moved) > silent:
                    process.kill(f"said nothing for {silent:g} s")
                elif now - self._moved > self._limit:
                    process.kill(f"made no step for {self._limit:g} s")

    def close(self) -> None:
        """Has the process leave; `join` waits for it."""
        self._closing.set()
        with self._lock:
            if self._process is not None:
                self._process.leave()
                if not self._ready:  # it listens to nobody
                    self._process.kill()

    def abandon(self) -> None:
        """Has the process end, without the lock."""
        self._closing.set()
        process = self._process
        if process is not None:
            process.kill()

    def join(self, patience: float) -> None:
        """Waits until nothing is left of it."""
        if not self._thread.is_alive():
            return
        self._thread.join(patience)
        with self._lock:
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    @property
    def _free(self) -> bool:
        return self._ready and not self._again and not self._alone

    @property
    def _alone(self) -> bool:
        """Whether a request is under way that met a death, and has not begun."""
        return any(call.deaths and not call.begun for call in self.open.values())

    def _run(self) -> None:
        while not self._closing.is_set():
            how = self._live()
            pause = self._died(how)
            self.loaded.set()
            self._changed(self)
            if pause is None:
                return
            self._closing.wait(pause)

    def _live(self) -> str:
        """One life of a process; how it ended."""
        try:
            process = Process(self._recipe, self._environment)
        except (OSError, RuntimeError, ValueError) as error:  # no room for a process or a thread, no such command line
            return f"can't be started ({getattr(error, 'strerror', None) or error})"
        with self._lock:
            self._process, self._did, self.unfit = process, False, None
            if self._closing.is_set():
                process.kill()
        try:
            while (frame := process.next()) is not None:
                self._take(frame)
        except Exception as error:  # whatever it said: this thread is what everybody waits for
            process.kill(f"said what nobody understands ({type(error).__name__})")
        process.kill()
        return process.bury()

    def _take(self, frame: Frame) -> None:
        """What the process said."""
        match frame.kind:
            case Kind.TOKENS:
                self._tokens(frame.rest)
            case Kind.DONE:
                self._done(frame)
            case Kind.STATE:
                self._told(state_from(frame.head))
            case Kind.READY:
                self._is_ready(frame)
            case Kind.UNFIT:
                self.unfit = error_from(frame.head)
            case Kind.BROKEN if self._process is not None:
                self._process.kill(f"can't go on ({frame.head['reason']})")
            case _:
                raise WireError(f"{frame.kind.name} from the process")

    def _is_ready(self, frame: Frame) -> None:
        with self._lock:
            self.facts, self.state = frame.head, state_from(frame.head["state"])
            self._ready, self._since = True, time.monotonic()
            self._next_again()
        self._changed(self)
        self.loaded.set()

    def _tokens(self, body: memoryview) -> None:
        self._moved, self._did, begun = time.monotonic(), True, False
        for number, token in tokens_from(body):
            call = self.open.get(number)
            if call is not None:
                begun = begun or not call.begun
                call.begun = True
                call.said.put(token)
        if begun:
            self._room()

    def _done(self, frame: Frame) -> None:
        with self._lock:
            call = self.open.pop(frame.head["number"], None)
            self._moved, self._did = time.monotonic(), True
        if call is not None:
            call.said.put(_result(frame))
        self._room()

    def _room(self) -> None:
        with self._lock:
            self._next_again()
        self._changed(self)

    def _next_again(self) -> None:
        """Asks for the next of those that met a death; under the lock."""
        if self._again and self._ready and not self._alone:
            self._ask(self._again.popleft())

    def _ask(self, call: Call) -> None:
        """Asks its process; under the lock."""
        assert self._process is not None
        if not self.open:
            self._moved = time.monotonic()
        self.open[call.number] = call
        self._process.say(call.kind, {"number": call.number, **call.head}, call.parts)

    def _told(self, state: State) -> None:
        if state.steps != self.state.steps:
            self._moved = time.monotonic()
        self.state = state
        self._changed(self)

    def _died(self, how: str) -> float | None:
        """Ends what was begun, keeps what was not; how long to wait for the next life, None where there is none."""
        with self._lock:
            lived = self._did or (self._ready and time.monotonic() - self._since > WELL)
            self._failures = 0 if lived else self._failures + 1
            first = not self.facts
            self._process, self._ready = None, False
            calls, self.open = list(self.open.values()), {}
            up = first or self._failures >= GIVE_UP or self._closing.is_set()
            why = "it could not be loaded" if self.unfit else f"it {how}"
            self.state = State("failed" if up else "starting", reason=self._words(why, up=up))
            for call in calls:
                self._orphaned(call, how)
            # the most suspect first; of a list of its own, since the collector may have somebody leave meanwhile
            again = [*self._again]
            again.sort(key=lambda call: -call.deaths)
            self._again = deque(call for call in again if call in self._again)
            if up:
                for call in self._again:
                    call.said.put(EngineLost(self.state.reason))
                self._again.clear()
        pauses = self._failures - 1
        return None if up else 0.0 if pauses < 0 else min(PAUSE * 2**pauses, LONGEST_PAUSE)

    def _orphaned(self, call: Call, how: str) -> None:
        """What becomes of a call whose process died."""
        call.deaths += 1
        if self._closing.is_set():
            call.said.put(EngineError("the engine is closed"))
        elif call.begun:
            call.said.put(EngineLost(f"the language engine's process {how} while it answered"))
        elif call.deaths >= DEATHS:
            words = f"{DEATHS} processes of the language engine ended before they could begin to answer this"
            call.said.put(EngineError(words))
        else:
            self._again.append(call)

    def _words(self, why: str, *, up: bool) -> str:
        """What people are told of a death."""
        if self._closing.is_set():
            return "the engine is closed"
        why = f"the language engine's process: {why}" + (f" ({self.unfit})" if self.unfit else "")
        if not self.facts:
            return why
        return f"{why}, {GIVE_UP} times in a row: restart the server" if up else f"{why}; it starts again"


def _result(frame: Frame) -> Given:
    """What came of a call."""
    head = frame.head
    if "error" in head:
        return error_from(head["error"])
    if "tensor" in head:
        return tensor_from(head["tensor"], frame.rest)[0]
    result: list[int] | str | int | None = head.get("result")
    return result
