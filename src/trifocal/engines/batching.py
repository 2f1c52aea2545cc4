"""The engine over a runner: one thread in which every request goes on by one token a step."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from trifocal.cancelling import woken_by
from trifocal.engines.base import STEP_LIMIT, Abilities, State, Token, Tokenizer
from trifocal.engines.blocks import Blocks, names_of
from trifocal.engines.grammar import Constraint
from trifocal.engines.prefixes import position_keys
from trifocal.engines.sampler import Drawing, Drawn, Picked, pick_along
from trifocal.engines.scheduler import Request, Run, Said, Scheduler
from trifocal.errors import BadSampling, EngineError, OutOfMemory, PromptTooLong, TrifocalError, UsageError
from trifocal.messages import Sampling
from trifocal.prompt import Prompt, TokenSpan

__all__ = ["Batching", "Model", "Runner"]

Result = TypeVar("Result")


class Runner(Protocol):
    """What computes: tensors alone. It knows neither answers nor who waits for them, and is called in one thread."""

    @property
    def positions(self) -> int:
        """How many positions' keys and values it has room for."""
        ...

    def forward(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        """Computes the positions of all runs, keeps their keys and values in the runs' blocks.

        The logits of the last `Run.wanted` positions of each run, in order: ``[all of those, vocabulary]``. Whatever
        it raises ends all requests under way.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A runner, and what the engine around it must know of its language model.

    ``context`` is how many positions prompt and answer may take together, ``block`` how many a block has, ``rows`` how
    many requests run in one step, ``piece`` how many positions of prompts beside streams and ``whole`` how many where
    nothing streams; ``share`` says whether common beginnings are computed once, and ``ahead`` how many ids of an answer
    may be guessed and computed with the next one (`trifocal.engines.speculation`). The others are there where there are
    such: ``follow`` is `Runner.forward` for runs of one position each whose ids ``[runs]`` only the device knows, so
    that it works on while the last ones are read. ``prepare`` is called while nobody asks for anything, and says
    whether there is more of it to do.
    ``constraint`` makes what holds an answer to a schema; ``attention`` tells where it looked
    (`trifocal.engines.base.Engine.attention`), given the blocks that hold a beginning of the prompt already.
    """

    runner: Runner
    tokenizer: Tokenizer
    hidden: int
    context: int
    end_ids: frozenset[int]
    able: Abilities
    block: int = 16
    rows: int = 64
    piece: int = 512
    whole: int | None = None
    share: bool = True
    ahead: int = 0
    follow: Callable[[Sequence[Run[Any]], torch.Tensor], torch.Tensor] | None = None
    prepare: Callable[[], bool] | None = None
    constraint: Callable[[str, str | None], Constraint] | None = None
    attention: Callable[[Prompt, Sequence[int], list[int]], torch.Tensor] | None = None


class Batching:
    """An engine that answers all its requests together, each as it would be answered alone.

    ``load`` makes the model in the thread that will run it (a lone thread that also loads computes 15 to 20 % faster on
    CPUs), and what it raises is raised here. `stream` only puts a request into that thread's inbox and reads a queue;
    closing the generator sets a flag, and the request is gone before the next step.
    """

    def __init__(self, load: Callable[[], Model]) -> None:
        self._loop = loop = _Loop()
        # when nobody has it any more: by whatever thread finds that out, which must wait for nobody
        weakref.finalize(self, loop.end).atexit = False
        model = loop.start(load)
        self.tokenizer, self.hidden = model.tokenizer, model.hidden
        self.able = replace(model.able, speculates=model.ahead > 0)
        self.context = min(model.context, loop.blocks.count * loop.blocks.size)

    @property
    def facts(self) -> Model:
        """The runner and what belongs to it.

        Raises:
            EngineError: the engine is closed, or its thread is dead.
        """
        return self._loop.model

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        return self._answer(self._request(prompt, sampling, said.put), said)

    def ask(self, prompt: Prompt, sampling: Sampling, give: Callable[[Said], None]) -> Callable[[], None]:
        """`stream` without anybody who waits: ``give`` gets each token in the engine's thread, then None or an error.

        What is returned may be called by any thread, once nobody wants the rest; ``give`` gets its None then too.
        """
        request = self._request(prompt, sampling, give)
        self._loop.submit(request)
        return request.leave

    def after_steps(self, told: Callable[[], None]) -> None:
        """Has ``told`` called in the engine's thread behind each step: what was gathered of it can go on."""
        self._loop.stepped = told

    def _request(self, prompt: Prompt, sampling: Sampling, give: Callable[[Said], None]) -> Request[Drawing]:
        model = self.facts
        if not len(prompt):
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, 1, self.context)
        if sampling.top_logprobs is not None and not self.able.logprobs:
            raise BadSampling("top_logprobs", f"the engine {self._name} can't tell log-probabilities")
        constraint = None
        if sampling.schema is not None:
            if model.constraint is None or not self.able.grammar:
                raise BadSampling("schema", f"the engine {self._name} can't hold an answer to a JSON schema")
            constraint = model.constraint(sampling.schema, prompt.scope)
        room = self.context - len(prompt)
        drawing = Drawing(sampling, prompt.token_ids, model.end_ids, constraint)
        return Request(prompt, min(sampling.max_tokens or room, room), model.end_ids, give, drawing)

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """Where it looked; see `trifocal.engines.base.Engine.attention`."""
        ask = self.facts.attention
        if ask is None or not self.able.explains:
            raise UsageError(f"the engine {self._name} can't tell where it looks")
        if not len(prompt) or not ids:
            raise EngineError("there is no prompt or no answer to look at")
        if len(prompt) + len(ids) > self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, len(ids), self.context)
        blocks = self._loop.blocks
        keys = [] if prompt.scope is None else position_keys(prompt)[:-1]
        names = names_of(keys, blocks.size, scope=prompt.scope or "")
        return self._loop.call(lambda: ask(prompt, ids, blocks.find(names)))

    def state(self) -> State:
        """How it is now."""
        return self._loop.state()

    def close(self) -> None:
        """Ends all streams with an error, frees the model and the thread."""
        self._loop.stop()

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _answer(self, request: Request[Drawing], said: queue.SimpleQueue[Said]) -> Generator[Token, None, None]:
        self._loop.submit(request)  # here and not above: a generator that is never begun never ends either
        try:
            with woken_by(request.leave):
                while (token := said.get()) is not None:
                    if isinstance(token, TrifocalError):
                        raise token
                    yield token
        finally:
            request.leave()


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was begun at ``began`` and whose tokens nobody has read."""

    runs: list[Run[Drawing]]
    began: float
    logits: torch.Tensor
    drawn: Drawn | None

    def tokens(self) -> Sequence[Sequence[Picked]]:
        """The tokens of each run that tells any; waits for the device."""
        if self.drawn is not None:
            return self.drawn.tokens()
        telling = [run for run in self.runs if run.logits]
        return pick_along(self.logits, [run.request.row for run in telling], [run.draft for run in telling])


class _Loop:
    """The engine's thread: takes requests and calls from its inbox between steps, and steps while there is work."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Request[Drawing] | Callable[[], None]] = queue.SimpleQueue()
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._gone = threading.Event()
        self._closing = False
        self._lock = threading.Lock()  # between who puts into the inbox and the thread that ends
        self._model: Model | None = None
        self._prepare: Callable[[], bool] | None = None
        self._flight: _Flight | None = None  # the step behind the one that was read last
        self._read = 0.0
        self._failed, self._steps = "", 0
        self.stepped: Callable[[], None] = lambda: None  # is called after each step, and at the end
        self.blocks = Blocks(0, 1)
        self.scheduler: Scheduler[Drawing] = Scheduler(self.blocks)

    @property
    def model(self) -> Model:
        """What is run; an error where it is not there any more."""
        model = self._model
        if model is None:
            raise EngineError(self._failed or "the engine is closed")
        return model

    def start(self, load: Callable[[], Model]) -> Model:
        """Starts the thread and waits until the model is there, or raises why it is not."""
        self._thread = threading.Thread(target=self.run, args=(load,), name="engine", daemon=True)
        atexit.register(self.stop)
        try:
            self._thread.start()
        except BaseException:  # the system has no thread for it: nobody waits for its end
            atexit.unregister(self.stop)
            self._gone.set()
            raise
        error = self._started.get()
        if error is not None:
            self.stop()
            raise error
        return self.model

    def submit(self, request: Request[Drawing]) -> None:
        """Puts a request among those that wait."""
        with self._lock:
            self.model  # noqa: B018  (says that the engine is closed)
            self._inbox.put(request)

    def call(self, function: Callable[[], Result]) -> Result:
        """What a function returns in the engine's thread, between two steps."""
        done: queue.SimpleQueue[tuple[Result | None, TrifocalError | None]] = queue.SimpleQueue()

        def called() -> None:
            if self._model is None:
                done.put((None, EngineError(self._failed or "the engine is closed")))
                return
            try:
                done.put((function(), None))
            except BaseException as error:  # a panic of Rust's too: somebody waits
                done.put((None, _ours(error)))
                if not isinstance(error, Exception):
                    raise

        with self._lock:
            self.model  # noqa: B018
            self._inbox.put(called)
        result, error = done.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # where there is no error there is a result

    def state(self) -> State:
        """How the loop is now; read from any thread."""
        blocks, scheduler = self.blocks, self.scheduler
        if self._model is None:
            return State("failed", reason=self._failed or "the engine is closed")
        return State(
            "failed" if self._failed else "ready",
            len(scheduler.running),
            len(scheduler.waiting) + self._inbox.qsize(),
            blocks.count * blocks.size,
            blocks.free * blocks.size,
            self._failed,
            drafted=scheduler.drafted,
            accepted=scheduler.accepted,
            steps=self._steps,
        )

    def end(self) -> None:
        """Ends the thread after its step."""
        self._closing = True
        self._inbox.put(lambda: None)  # wakes it

    def stop(self) -> None:
        """Ends the thread after its step, and waits for that; a step that never ends is left behind."""
        self.end()
        if threading.current_thread() is not self._thread and self._gone.wait(STEP_LIMIT) and self._thread.ident:
            self._thread.join(STEP_LIMIT)  # an interpreter that ends while it is still on its way out of torch aborts
            atexit.unregister(self._thread.join)

    @torch.inference_mode()
    def run(self, load: Callable[[], Model]) -> None:
        """The thread's life."""
        try:
            if not self._begin(load):
                return
            while not self._closing:
                if not self.scheduler.busy:
                    self._prepare_more()
                self._receive(wait=not self.scheduler.busy)
                if not self._closing and self.scheduler.busy:
                    self._step()
                    self.stepped()
        except BaseException as error:  # whatever ends this thread must not leave anybody waiting
            self._failed = f"the engine's thread ended with {type(error).__name__}"
        finally:
            self._end()

    def _begin(self, load: Callable[[], Model]) -> bool:
        try:
            model = load()
            self.blocks = Blocks(model.runner.positions // model.block, model.block)
            self.scheduler = Scheduler(
                self.blocks, rows=model.rows, piece=model.piece, whole=model.whole, share=model.share, ahead=model.ahead
            )
        except BaseException as error:
            self._started.put(error)
            return False
        self._model, self._prepare = model, model.prepare
        self._started.put(None)
        return True

    def _receive(self, *, wait: bool) -> None:
        """Takes what has come, and waits for something where there is nothing to do."""
        while wait or not self._inbox.empty():
            item = self._inbox.get()
            wait = False
            if isinstance(item, Request):
                self._add(item)
            else:
                item()

    def _add(self, request: Request[Drawing]) -> None:
        """Has a request wait for its step; where even that fails nobody else knows of it, so it is told here."""
        try:
            self.scheduler.add(request)
        except BaseException as error:
            request.give(_ours(error))
            raise

    def _prepare_more(self) -> None:
        """Does what will be needed later, bit by bit, until somebody asks or it is done."""
        while self._prepare is not None and self._inbox.empty():
            try:
                more = self._prepare()
            except Exception:  # what is missing is made when it is needed, and what is wrong is told then
                more = False
            if not more:
                self._prepare = None

    def _step(self) -> None:
        """One token more for every request that streams."""
        try:
            flight = self._flight or self._launched(self.scheduler.next())
            self._flight = None
            if flight is None:
                return
            self._steps += 1
            if flight.drawn is not None:  # the device goes on while we read and tell
                self._flight = self._launched(self.scheduler.following(), flight.drawn.ids)
            tokens, begun = flight.tokens(), max(flight.began, self._read)
            self._read = time.perf_counter()
            self.scheduler.took(tokens, self._read - begun)
            if not self.scheduler.under_way:
                self._flight = None
            self._failed = ""
        except Exception as error:
            self._broken(error)

    def _launched(self, runs: list[Run[Drawing]], ids: torch.Tensor | None = None) -> _Flight | None:
        """A step under way; ``ids`` are those of its runs where only the device knows them."""
        if not runs:
            return None
        model, began = self.model, time.perf_counter()
        # [positions that are wanted, vocabulary]
        logits = model.runner.forward(runs) if ids is None or model.follow is None else model.follow(runs, ids)
        rows = [run.request.row for run in runs]
        overlaps = model.follow is not None and all(
            run.logits and not run.draft and row.forgets for run, row in zip(runs, rows, strict=True)
        )
        drawn = Drawn(logits, rows, 0 if ids is None else 1) if overlaps else None
        return _Flight(runs, began, logits, drawn)

    def _broken(self, error: Exception) -> None:
        """Ends all requests of a step that failed, and tries whether the runner can still compute anything.

        They are told afterwards: who hears of it can ask at once how the engine is.
        """
        self._flight = None
        ended = self.scheduler.drop()
        try:
            if not isinstance(_ours(error), OutOfMemory):  # there was too much; it may be less next time
                self._probe()
        finally:
            _tell(ended, lambda: _ours(error))

    def _probe(self) -> None:
        probe = Request(Prompt([TokenSpan((0,))]), 1, frozenset(), lambda _: None, Drawing(Sampling()))
        try:
            self.scheduler.add(probe)
            self.model.runner.forward(self.scheduler.next())
        except Exception as again:
            self._failed = str(_ours(again))
        finally:
            self.scheduler.fail(lambda: EngineError("a probe"))

    def _end(self) -> None:
        """Tells everybody, and lets the model go."""
        with self._lock:
            reason, self._model = self._failed or "the engine is closed", None
        try:
            left = self.scheduler.drop()
            while not self._inbox.empty():
                item = self._inbox.get()
                if isinstance(item, Request):
                    left.append(item)
                else:
                    item()
            _tell(left, lambda: EngineError(reason))
            self.stepped()
        finally:
            atexit.register(self._thread.join, STEP_LIMIT)  # of an engine that was only forgotten nobody waits for it
            atexit.unregister(self.stop)
            self._gone.set()


def _tell(requests: Sequence[Request[Drawing]], error: Callable[[], TrifocalError]) -> None:
    """Ends requests with an error of their own. Who can't be told is gone, and keeps nobody else from hearing it."""
    for request in requests:
        with suppress(Exception):
            request.give(error())


def _ours(error: BaseException) -> TrifocalError:
    """A runner's error as ours, a new one for each request."""
    # of the CPU torch says it in words alone
    said = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if said or isinstance(error, torch.OutOfMemoryError | MemoryError):
        made: TrifocalError = OutOfMemory("the language model's device has no room for what is asked; shorten it")
    elif isinstance(error, TrifocalError):
        made = type(error)(*error.args) if type(error) in (EngineError, OutOfMemory) else EngineError(str(error))
    else:
        made = EngineError(f"the language model failed ({type(error).__name__})")
    made.__cause__ = error
    return made
