"""The engine's process: loads what its recipe names, and answers what its front sends until that is gone."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from trifocal.engines import load_engine
from trifocal.engines.base import Engine, Token
from trifocal.engines.batching import Batching
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.answering import BROKEN, Answer, Said, facts_of, ours
from trifocal.engines.remote.wire import (
    Frame,
    Kind,
    error_to,
    prompt_from,
    read_frame,
    sampling_from,
    state_to,
    tensor_to,
    tokens_to,
    write_frame,
)
from trifocal.errors import TrifocalError

__all__ = ["main"]

BEAT = 0.5  # seconds between two words of how it is, while there is work
ASIDE = 2  # threads for what may take long and is no stream: grammars, texts, where it looked
SWITCH = 0.0005  # seconds that a thread keeps the interpreter
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """The process's life. It ends when its front closes the pipe, or is gone in whatever way."""
    requests, answers = _pipes()
    _die_with(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever ends the whole group: the front drains first, then ends us
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH)
    frame = read_frame(requests)
    if frame is None:
        return
    outbox = _Outbox(answers)
    try:
        engine = load_engine(Recipe.from_json(json.dumps(frame.head)))
    except TrifocalError as error:
        outbox.last(Kind.UNFIT, error_to(error))
    status = 0
    try:
        _Desk(engine, outbox).serve(requests)
    except BaseException:  # a panic of Rust's too
        traceback.print_exc()
        status = BROKEN
    os._exit(status)  # nothing here outlives it, and a step that can't be interrupted may be under way


class _Outbox:
    """What is said to the front: by a thread of its own, or, what an engine's step gave, by the engine's at its end.

    The front reads whatever it does else, so nobody waits long for the pipe; once it does not, there is nobody to work
    for. One thread less a token is a third of the speed of eight streams on two busy cores.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._writing = pipe, threading.Lock()
        self._gathered: list[tuple[int, Said] | tuple[Kind, Mapping[str, Any], Sequence[memoryview]]] = []
        self._items: queue.SimpleQueue[tuple[int, Said] | tuple[Kind, Mapping[str, Any], Sequence[memoryview]]] = (
            queue.SimpleQueue()
        )
        self._told = 0.0  # when it was last said how the engine is
        self._stale = False  # whether that may have changed since
        self.engine: Engine | None = None
        self.busy: Callable[[], bool] = lambda: False
        threading.Thread(target=self._run, name="outbox", daemon=True).start()

    def say(self, kind: Kind, head: Mapping[str, Any], parts: Sequence[memoryview] = ()) -> None:
        """Says a frame after all that was said before."""
        self._items.put((kind, head, parts))

    def give(self, number: int, said: Said) -> None:
        """Says a token of a request, its end or the error that ended it."""
        self._items.put((number, said))

    def gather(self, number: int, said: Said) -> None:
        """`give`, in the engine's thread, that `flush` says."""
        self._gathered.append((number, said))

    def flush(self) -> None:
        """Says what was gathered; in the engine's thread."""
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._safely(gathered)

    def last(self, kind: Kind, head: Mapping[str, Any]) -> NoReturn:
        """Says a last frame, and ends the process."""
        self.say(kind, head)
        threading.Event().wait()
        raise AssertionError

    def _run(self) -> None:
        while True:
            self._safely(self._next())

    def _safely(self, items: list[Any]) -> None:
        try:
            with self._writing:
                self._write(items)
        except BaseException:  # nobody reads any more, or we can't say anything: there is nobody to work for
            os._exit(BROKEN)

    def _next(self) -> list[Any]:
        """What is to be said, all of it that is there; nothing where only a heartbeat is due."""
        found = []
        with suppress(queue.Empty):
            found.append(self._items.get(timeout=BEAT if self._stale or self.busy() else None))
            while True:
                found.append(self._items.get_nowait())
        return found

    def _write(self, items: list[Any]) -> None:
        tokens: list[tuple[int, Token]] = []
        for item in items:
            if isinstance(item[1], Token):
                tokens.append(item)
                continue
            self._tokens(tokens)
            tokens = []
            if isinstance(item[0], Kind):
                write_frame(self._pipe, *item)
                if item[0] in (Kind.BROKEN, Kind.UNFIT):
                    os._exit(BROKEN)
            else:
                number, error = item
                told = {} if error is None else {"error": error_to(error)}
                write_frame(self._pipe, Kind.DONE, {"number": number, **told})
        self._tokens(tokens)
        self._state()

    def _tokens(self, tokens: list[tuple[int, Token]]) -> None:
        if tokens:
            write_frame(self._pipe, Kind.TOKENS, None, [tokens_to(tokens)])

    def _state(self) -> None:
        """Says how the engine is, where that is new and was not said just now."""
        now = time.monotonic()
        self._stale = now - self._told < BEAT
        if self.engine is not None and not self._stale:
            self._told = now
            write_frame(self._pipe, Kind.STATE, state_to(self.engine.state()))


class _Desk:
    """Takes the front's frames in turn; nothing that takes long is done by it."""

    def __init__(self, engine: Engine, outbox: _Outbox) -> None:
        self._engine, self._outbox = engine, outbox
        self._aside = ThreadPoolExecutor(ASIDE, thread_name_prefix="aside")
        self._open: dict[int, Answer] = {}
        self._broken = False
        outbox.engine, outbox.busy = engine, lambda: bool(self._open)
        if isinstance(engine, Batching):
            engine.after_steps(outbox.flush)
        outbox.say(Kind.READY, facts_of(engine))

    def serve(self, requests: BinaryIO) -> None:
        """Takes frames until there are none any more."""
        takes = {Kind.STREAM: self._stream, Kind.ATTEND: self._attend, Kind.TEXT: self._text, Kind.LEFT: self._left}
        while (frame := read_frame(requests)) is not None:
            takes[frame.kind](frame)
        self._engine.close()

    def _stream(self, frame: Frame) -> None:
        number = frame.head["number"]
        prompt, _ = prompt_from(frame.head, frame.rest)
        sampling = sampling_from(frame.head["sampling"])
        answer = self._open[number] = Answer(lambda said: self._give(number, said))
        if not isinstance(self._engine, Batching):
            threading.Thread(target=answer.pull, args=(self._engine, prompt, sampling), daemon=True).start()
            return

        def gather(said: Said) -> None:
            self._give(number, said, self._outbox.gather)

        if sampling.schema is None:
            answer.ask(self._engine, prompt, sampling, gather)
        else:  # a grammar may take seconds to make
            self._aside.submit(answer.ask, self._engine, prompt, sampling, gather)

    def _attend(self, frame: Frame) -> None:
        prompt, _ = prompt_from(frame.head, frame.rest)

        def attention() -> tuple[dict[str, Any], list[memoryview]]:
            told, rows = tensor_to(self._engine.attention(prompt, frame.head["ids"]))
            return {"tensor": told}, [rows]

        self._beside(frame.head["number"], attention)

    def _text(self, frame: Frame) -> None:
        tokenizer, asked = self._engine.tokenizer, frame.head
        does: dict[str, Callable[..., Any]] = {
            "encode": tokenizer.encode,
            "decode": tokenizer.decode,
            "token": tokenizer.token,
        }
        result = does[asked["does"]]
        self._beside(asked["number"], lambda: ({"result": result(*asked["given"], **asked["options"])}, []))

    def _left(self, frame: Frame) -> None:
        answer = self._open.get(frame.head["number"])
        if answer is not None:
            answer.leave()

    def _beside(self, number: int, work: Callable[[], tuple[dict[str, Any], list[memoryview]]]) -> None:
        """Does work in a thread of its own, and says its result."""

        def working() -> None:
            try:
                head, parts = work()
            except BaseException as error:  # a panic of Rust's too: somebody waits
                self._give(number, ours(error))
            else:
                self._open.pop(number, None)
                self._outbox.say(Kind.DONE, {"number": number, **head}, parts)

        self._open[number] = Answer(lambda _: None)
        self._aside.submit(working)

    def _give(self, number: int, said: Said, give: Callable[[int, Said], None] | None = None) -> None:
        """Says what an engine gave; one that can do nothing more is said to be broken, and not what it gave of that."""
        if self._broken:
            return
        if isinstance(said, TrifocalError) and (state := self._engine.state()).phase == "failed":
            self._broken = True
            self._outbox.say(Kind.BROKEN, {"reason": state.reason})
            return
        if not isinstance(said, Token):
            self._open.pop(number, None)
        (give or self._outbox.give)(number, said)


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the front. What anybody here prints goes to standard error, and nobody reads the front's frames."""
    requests, answers = os.dup(0), os.dup(1)  # neither is handed on to processes of ours
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return open(requests, "rb"), open(answers, "wb", buffering=0)


def _die_with(parent: int) -> None:
    """Has Linux end this process with its parent; elsewhere the pipe's end does."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)  # it was gone before
