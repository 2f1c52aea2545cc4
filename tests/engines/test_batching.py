"""The loop around a runner: what happens when it fails, is closed, or nobody listens any more."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from trifocal.cancelling import Scope
from trifocal.engines import batching
from trifocal.engines.base import Abilities, Engine
from trifocal.engines.batching import Batching, Model
from trifocal.engines.echo import Bytes
from trifocal.engines.scheduler import Run
from trifocal.errors import CheckpointError, EngineError, OutOfMemory, TrifocalError
from trifocal.messages import Sampling
from trifocal.prompt import Prompt, TokenSpan
from waiting import PATIENCE, until

PROMPT = Prompt([TokenSpan((1, 2, 3))])
TEN = Sampling(max_tokens=10)


class Counting:
    """Says 4, 4, 4 and so on; does what it is told to before each step."""

    def __init__(self, before: Callable[[int], None] = lambda _: None, positions: int = 256) -> None:
        self.positions, self.before, self.steps = positions, before, 0
        self.threads: set[int] = set()

    def forward(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        self.steps += 1
        self.threads.add(threading.get_ident())
        self.before(self.steps)
        return torch.nn.functional.one_hot(torch.tensor([4] * sum(run.logits for run in runs)), 8).float()


def engine_of(runner: Counting, **options: Any) -> Batching:
    values = {"context": 64, "hidden": 8, "end_ids": frozenset({0}), "able": Abilities(), **options}
    return Batching(lambda: Model(runner=runner, tokenizer=Bytes(), **values))


def ids(engine: Engine, sampling: Sampling = TEN) -> list[int]:
    return [token.id for token in engine.stream(PROMPT, sampling)]


def failing(error: BaseException, at: Sequence[int]) -> Callable[[int], None]:
    def before(step: int) -> None:
        if step in at:
            raise error

    return before


def test_all_steps_are_made_in_the_thread_that_loaded() -> None:
    loaded: list[int] = []

    def load() -> Model:
        loaded.append(threading.get_ident())
        return Model(runner=runner, tokenizer=Bytes(), hidden=8, context=64, end_ids=frozenset({0}), able=Abilities())

    runner = Counting()
    engine = Batching(load)
    assert ids(engine) == [4] * 10
    assert runner.threads == set(loaded) != {threading.get_ident()}
    engine.close()


def test_what_will_be_needed_is_made_bit_by_bit_while_nobody_asks() -> None:
    begun, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def prepare() -> bool:
        order.append("bit")
        begun.set()
        assert go_on.wait(60)
        return len(order) < 4

    runner = Counting(before=lambda step: order.append("step"))
    engine = engine_of(runner, prepare=prepare)
    assert begun.wait(60)
    stream = engine.stream(PROMPT, Sampling(max_tokens=1))
    asking = threading.Thread(target=lambda: list(stream))
    asking.start()
    until(lambda: engine.state().waiting == 1)
    go_on.set()
    asking.join(60)
    until(lambda: len(order) == 4)
    assert order == ["bit", "step", "bit", "bit"]  # whoever asks waits for one bit
    assert ids(engine) == [4] * 10
    assert order.count("bit") == 3
    engine.close()


def test_what_can_not_be_made_ahead_is_left_to_the_one_who_needs_it() -> None:
    tried: list[int] = []

    def prepare() -> bool:
        tried.append(1)
        raise RuntimeError("no room")

    engine = engine_of(Counting(), prepare=prepare)
    assert ids(engine) == [4] * 10
    assert ids(engine) == [4] * 10
    assert len(tried) == 1
    engine.close()


def test_what_loading_raises_is_raised() -> None:
    def load() -> Model:
        raise CheckpointError("damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        Batching(load)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (RuntimeError("x"), EngineError),
        (torch.OutOfMemoryError("x"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), OutOfMemory),
        (EngineError("x"), EngineError),
    ],
)
def test_a_step_that_fails_ends_all_its_requests_and_the_engine_goes_on(
    error: Exception, ours: type[TrifocalError]
) -> None:
    runner = Counting(failing(error, [3]))
    engine = engine_of(runner)
    failed = together(engine, runner, 2)
    assert [type(each) for each in failed] == [ours, ours]
    assert failed[0] is not failed[1]
    settled(lambda: runner.steps == (3 if ours is OutOfMemory else 4))  # a probe
    assert engine.state().phase == "ready"
    settled(lambda: engine.state().free == engine.state().positions == 256)
    assert ids(engine) == [4] * 10
    engine.close()


def test_a_runner_that_goes_on_failing_is_told_until_it_works_again() -> None:
    engine = engine_of(Counting(failing(ValueError("x"), [1, 2, 3, 4])))
    for _ in range(2):
        with pytest.raises(EngineError, match="ValueError"):
            ids(engine)
    settled(lambda: engine.state().phase == "failed")
    assert "ValueError" in engine.state().reason
    assert ids(engine) == [4] * 10
    assert engine.state().phase == "ready"
    engine.close()


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_what_ends_the_thread_leaves_nobody_waiting(error: BaseException) -> None:
    runner = Counting(failing(error, [3]))
    engine = engine_of(runner)
    failed = together(engine, runner, 3)
    assert [type(each) for each in failed] == [EngineError] * 3
    assert type(error).__name__ in str(failed[0])
    assert engine.state().phase == "failed"
    with pytest.raises(EngineError, match=type(error).__name__):
        engine.stream(PROMPT, TEN)
    engine.close()


def test_closing_ends_every_stream_and_every_call() -> None:
    gate = threading.Event()
    engine = engine_of(Counting(lambda step: None if step < 3 else gate.wait(10) and None))
    stream = engine.stream(PROMPT, Sampling(max_tokens=60))
    next(stream)
    threading.Timer(0.05, gate.set).start()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)
    assert engine.state().phase == "failed"
    with pytest.raises(EngineError, match="closed"):
        engine.stream(PROMPT, TEN)
    engine.close()


def test_an_engine_that_nobody_has_ends_its_thread_and_frees_its_model() -> None:
    runner = Counting()
    held = weakref.ref(runner)
    engine = engine_of(runner)
    ids(engine)
    thread = engine._loop._thread
    del engine, runner
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    gc.collect()
    assert held() is None


class Exits:
    """Stands for `atexit`: what an interpreter calls at its end."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def register(self, function: Callable[..., object], *given: Any) -> None:
        self.calls.append((function, given))

    def unregister(self, function: Callable[..., object]) -> None:
        self.calls = [call for call in self.calls if call[0] != function]


@pytest.mark.parametrize("how", ["closed", "forgotten", "not loaded"])
def test_an_interpreter_ends_when_the_thread_is_gone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was on its way out when the interpreter ended aborted it, now and then on a busy machine."""
    exits, threads, done = Exits(), list[threading.Thread](), threading.Event()

    class Leaving(threading.Event):
        def set(self) -> None:
            threads.append(threading.current_thread())
            super().set()
            done.set()
            time.sleep(0.1)  # on its way out

    class Loop(batching._Loop):
        def __init__(self) -> None:
            super().__init__()
            self._gone = Leaving()

    def load() -> Model:
        raise CheckpointError("no model")

    monkeypatch.setattr(batching, "atexit", exits)
    monkeypatch.setattr(batching, "_Loop", Loop)
    if how == "not loaded":
        with pytest.raises(CheckpointError):
            Batching(load)
    else:
        engine = engine_of(Counting())
        if how == "closed":
            engine.close()
        del engine
        gc.collect()
    assert done.wait(PATIENCE)
    if how == "forgotten":
        for function, given in reversed(exits.calls):
            function(*given)
    else:
        assert exits.calls == []
    assert not threads[0].is_alive()


def test_who_closes_is_gone_within_a_step() -> None:
    turn, runner = threading.Semaphore(0), Counting()
    runner.before = lambda _: turn.acquire(timeout=PATIENCE) and None
    engine = engine_of(runner)
    stream, other = engine.stream(PROMPT, Sampling(max_tokens=50)), engine.stream(PROMPT, Sampling(max_tokens=50))
    turn.release()
    next(stream)
    stream.close()
    reader = threading.Thread(target=list, args=(other,))
    reader.start()
    turn.release(2)
    settled(lambda: engine.state().running == 1 and runner.steps >= 3)
    turn.release(1000)
    reader.join(10)
    assert engine.state().running == 0
    engine.close()


def test_who_leaves_before_the_first_token_is_gone_within_a_step() -> None:
    turn, runner = threading.Semaphore(0), Counting()
    runner.before = lambda _: turn.acquire(timeout=PATIENCE) and None
    engine = engine_of(runner, rows=1)
    scope, told = Scope(), list[int]()

    def read() -> None:
        with scope.work():
            told.extend(ids(engine))

    first = threading.Thread(target=ids, args=(engine,))
    first.start()
    until(lambda: engine.state().running == 1)
    waits = threading.Thread(target=read)
    waits.start()
    until(lambda: engine.state().waiting == 1)
    scope.cancel()
    turn.release()
    waits.join(PATIENCE)
    assert not waits.is_alive()
    assert engine.state().waiting == 0
    turn.release(1000)
    first.join(PATIENCE)
    assert runner.steps == 10
    assert told == []
    engine.close()


def test_what_can_not_be_begun_is_raised() -> None:
    """All that is wrong with a model is told to whoever loads it, not only what its loader raises."""
    with pytest.raises(ZeroDivisionError):
        engine_of(Counting(), block=0)


@pytest.mark.parametrize("error", [ValueError(), SystemExit(1)])
def test_whoever_calls_into_a_thread_that_ends_is_told(error: BaseException) -> None:
    def attention(*_: object) -> torch.Tensor:
        raise error

    engine = engine_of(Counting(), able=Abilities(explains=True), attention=attention)
    with pytest.raises(EngineError, match=type(error).__name__):
        engine.attention(PROMPT, [4])
    engine.close()


def test_who_can_not_be_told_of_the_end_keeps_nobody_waiting() -> None:
    turn, runner, told = threading.Semaphore(0), Counting(), list[object]()
    runner.before = lambda _: turn.acquire(timeout=PATIENCE) and None
    engine = engine_of(runner)

    def gone(said: object) -> None:
        if isinstance(said, EngineError):
            raise RuntimeError("the loop that was to be told is closed")

    engine.ask(PROMPT, TEN, gone)
    engine.ask(PROMPT, TEN, told.append)
    until(lambda: engine.state().running + engine.state().waiting == 2)
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: engine._loop._closing)
    turn.release(1000)
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert isinstance(told[-1], EngineError)


def test_an_engine_that_nobody_has_is_waited_for_by_nobody() -> None:
    """Any thread may be the one that finds it, whatever that holds then; a thread that hangs would hang it, too."""
    turn, runner = threading.Semaphore(0), Counting()
    runner.before = lambda _: turn.acquire(timeout=PATIENCE) and None
    engine = engine_of(runner)
    engine.ask(PROMPT, TEN, lambda _: None)
    until(lambda: runner.steps == 1)
    thread = engine._loop._thread
    del engine
    gc.collect()
    assert thread.is_alive()
    turn.release(1000)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_stream_that_is_never_begun_runs_nothing() -> None:
    engine = engine_of(Counting())
    engine.stream(PROMPT, TEN)
    assert engine.state().waiting == engine.state().running == 0
    engine.close()


def test_the_context_is_no_longer_than_the_memory() -> None:
    engine = engine_of(Counting(positions=40))
    assert engine.context == 32  # whole blocks of 16
    assert len(ids(engine, Sampling())) == 29
    engine.close()


def together(engine: Batching, runner: Counting, count: int) -> list[Exception]:
    """What so many requests that begin together end with."""
    ended: list[Exception] = []

    def read() -> None:
        try:
            ids(engine)
        except (EngineError, OutOfMemory) as error:
            ended.append(error)

    before = runner.before

    def once_all_are_there(step: int) -> None:
        if step == 1:
            settled(lambda: engine.state().running + engine.state().waiting == count)
        before(step)

    runner.before = once_all_are_there
    readers = [threading.Thread(target=read) for _ in range(count)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(PATIENCE)
    return ended


def settled(done: Callable[[], bool]) -> None:
    until(done, "rest")


def test_a_thread_that_the_system_does_not_give_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's error is raised; nobody waits for the end of what never began."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="new thread"):
        engine_of(Counting())


def test_a_request_that_can_not_even_wait_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(Counting())
    monkeypatch.setattr(engine._loop.scheduler, "add", lambda _: failing(MemoryError(), [1])(1))
    with pytest.raises(OutOfMemory):
        ids(engine)
    engine.close()
