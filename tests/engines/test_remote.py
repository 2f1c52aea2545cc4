"""An engine in a process of its own: whatever ends or stops the process ends its streams, and it comes again."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from installing import installed

from trifocal.cancelling import Scope
from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines import load_engine
from trifocal.engines.base import Engine, Token
from trifocal.engines.echo import Bytes
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote import Remote, crew, load_remote, worker
from trifocal.engines.remote.process import Process
from trifocal.errors import BadSampling, EngineError, EngineLost, OutOfMemory, PromptTooLong, UnknownName, UsageError
from trifocal.messages import Sampling
from trifocal.prompt import ImageSpan, Prompt, TokenSpan
from waiting import PATIENCE, line_of, until

FULL = os.environ.get("TRIFOCAL_FULL") == "1"
LIMIT = 2.0  # seconds without a step
FAULTS = ["kill", "sicken", "hang", *(["panic", "stop", "segv", "exit", "deaf"] if FULL else [])]
ECHO = Recipe(source="", config={"hidden_size": 8}, engine="echo", options={"delay": 0.02})

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """The recipe of an engine that fails as its prompts say."""
    with installed(tmp_path_factory.mktemp("site"), "faulty", Path(__file__).with_name("faulty.py")):
        yield Recipe(source="", config={"hidden_size": 8}, engine="faulty")


@pytest.fixture(scope="module")
def engine(faulty: Recipe) -> Iterator[Remote]:
    with loaded(faulty, step_limit=LIMIT) as made:
        yield made


@contextmanager
def loaded(recipe: Recipe, **options: Any) -> Iterator[Remote]:
    """An engine, of which nothing is left behind the block."""
    before = threading.active_count()
    engine = load_remote(recipe, **options)
    pids = engine.pids
    yield engine
    pids += engine.pids
    engine.close()
    assert not [pid for pid in pids if alive(pid)]
    assert threading.active_count() <= before


def alive(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_whose_thread_the_system_does_not_give_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def started(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
        begun.append(popen(*given, **more))
        return begun[0]

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="new thread"):
        Process(ECHO, {})
    assert begun[0].returncode == -signal.SIGKILL
    assert begun[0].stdin.closed
    assert begun[0].stdout.closed


def prompt(words: str) -> Prompt:
    return Prompt([TokenSpan(tuple(Bytes().encode(words, start=False)))])


def told(stream: Generator[Token, None, None]) -> str:
    return Bytes().decode([token.id for token in stream])


def ask(engine: Engine, words: str, **options: object) -> str:
    return told(engine.stream(prompt(words), Sampling(**options)))  # type: ignore[arg-type]


def endless(engine: Engine) -> Generator[Token, None, None]:
    """A slow answer that ends with the context."""
    return engine.stream(prompt("fault:none:-1:slow"), Sampling(ignore_end=True))


def ready(engine: Remote) -> None:
    until(lambda: engine.state().phase == "ready", "the next process")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_ends_or_stops_the_process_ends_what_was_begun_and_loses_nothing_else(
    engine: Remote, fault: str, tmp_path: Path
) -> None:
    ready(engine)
    (first,) = engine.pids
    with ThreadPoolExecutor() as pool:
        neighbour = endless(engine)
        next(neighbour)
        once = tmp_path / "once"
        unbegun = pool.submit(ask, engine, f"fault:{fault}:0:once={once}")
        with pytest.raises(EngineLost, match="the language engine's process"):
            told(neighbour)
        state = engine.state()
        assert state.phase == "ready" or (state.phase == "starting" and "it starts again" in state.reason)
        late = pool.submit(ask, engine, "who comes meanwhile")
        assert unbegun.result(PATIENCE) == f"fault:{fault}:0:once={once}"
        assert late.result(PATIENCE) == "who comes meanwhile"
    assert engine.state().phase == "ready"
    assert engine.state().reason == ""
    assert not alive(first)


def test_a_step_that_fails_alone_ends_its_requests_and_not_the_process(engine: Remote) -> None:
    ready(engine)
    pids = engine.pids
    for fault, kind in (("oops", EngineError), ("memory", OutOfMemory)):
        stream = engine.stream(prompt(f"fault:{fault}:2"), Sampling())
        assert [next(stream).id, next(stream).id] == Bytes().encode("fa", start=False)
        with pytest.raises(kind):
            next(stream)
    assert ask(engine, "still here") == "still here"
    assert engine.pids == pids


def test_a_front_that_slept_does_not_take_it_for_the_hanging_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the whole machine is paused: what was said meanwhile is still in the pipe."""
    monkeypatch.setattr(crew, "BEAT", 1000.0)  # nobody else looks
    with loaded(ECHO) as engine:
        (place,), pids = engine._crew.workers, engine.pids
        stream = engine.stream(prompt("a" * 2000), Sampling())
        next(stream)

        def looked(late: float) -> bool:
            """Whether the process is still there after a look at one that said nothing for long."""
            with place._lock:
                if place._process is not None:
                    place._process.heard = place._moved = time.monotonic() - 1000
            place.check(late)
            return place.pid == pids[0]

        assert looked(late=1000)
        next(stream)
        until(lambda: not looked(late=0), "its end")
        with pytest.raises(EngineLost, match="said nothing for 30 s"):
            told(stream)


def test_a_request_that_kills_every_process_is_given_up_and_takes_nobody_with_it(engine: Remote) -> None:
    ready(engine)
    with ThreadPoolExecutor() as pool:
        killer = pool.submit(ask, engine, "fault:kill:0")
        until(lambda: engine.state().phase == "starting", "the first death")
        others = [pool.submit(ask, engine, words) for words in ("before", "fault:none:-1:slow")]
        with pytest.raises(EngineError, match="3 processes of the language engine ended before"):
            killer.result(PATIENCE)
        assert [other.result(PATIENCE) for other in others] == ["before", "fault:none:-1:slow"]


def test_what_a_library_prints_is_nobodys_answer(engine: Remote) -> None:
    assert ask(engine, "fault:print:1") == "fault:print:1"


def test_its_own_tokenizer_is_asked(engine: Remote) -> None:
    assert engine.tokenizer.encode("é", start=True) == Bytes().encode("é", start=True)
    assert engine.tokenizer.decode(Bytes().encode("é", start=True)) == "é"
    assert engine.tokenizer.token("</s>") == Bytes().token("</s>")
    assert engine.tokenizer.token("nonsense") is None


def test_who_leaves_is_let_go_within_a_step(engine: Remote) -> None:
    ready(engine)
    streams = [endless(engine) for _ in range(3)]
    for stream in streams:
        next(stream)
    assert (engine.state().running, engine.state().waiting) == (3, 0)
    for stream in streams:
        stream.close()
    until(lambda: (state := engine.state()).running == 0 and state.free == state.positions, "rest")


def test_who_leaves_before_the_first_token_waits_for_no_process(engine: Remote) -> None:
    ready(engine)
    (pid,) = engine.pids
    scope = Scope()

    def read() -> None:
        with scope.work(), pytest.raises(EngineError, match="nobody waits"):
            ask(engine, "never begun")

    os.kill(pid, signal.SIGSTOP)
    try:
        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: engine.state().waiting == 1)
        scope.cancel()
        reader.join(PATIENCE)
        assert not reader.is_alive()
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: engine.state().waiting == engine.state().running == 0)
    assert ask(engine, "and others go on") == "and others go on"


def test_nobody_reads_and_nobody_waits_for_it(engine: Remote) -> None:
    """A stream that is not read piles up here; the process and everybody else go on."""
    unread = engine.stream(prompt("." * 2000), Sampling())
    next(unread)
    assert ask(engine, "who reads") == "who reads"
    assert len(told(unread)) == 1999


def test_twenty_deaths_leave_nothing_behind(engine: Remote) -> None:
    ready(engine)
    ask(engine, "warm")
    gc.collect()
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for _ in range(20 if FULL else 1):
        stream = endless(engine)
        next(stream)
        (pid,) = engine.pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineLost):
            told(stream)
        ready(engine)
        assert not alive(pid)
        assert ask(engine, "again") == "again"
    until(lambda: threading.active_count() <= before[0])  # who was about to leave when it was counted is gone, too
    assert len(os.listdir("/proc/self/fd")) <= before[1]
    task = Path(f"/proc/{os.getpid()}/task")
    children = [pid for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
    assert [int(pid) for pid in children if int(pid) in engine.pids] == engine.pids
    assert not [pid for pid in children if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]]


def test_it_is_given_up_with_a_sentence(faulty: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GIVE_UP", 2)
    monkeypatch.setattr(worker, "PAUSE", 0.01)
    dying = replace(faulty, options={"once": str(tmp_path / "once"), "dies": True})
    with loaded(dying) as engine:
        stream, other = (endless(engine) for _ in range(2))
        next(stream)
        os.kill(engine.pids[0], signal.SIGKILL)
        with pytest.raises(EngineLost):
            told(stream)
        with pytest.raises(EngineLost, match=r"was ended by SIGKILL, 2 times in a row: restart the server"):
            told(other)
        assert engine.state().phase == "failed"
        with pytest.raises(EngineLost, match="restart the server"):
            ask(engine, "too late")


def test_what_can_not_be_loaded_is_told_as_it_would_be_here(faulty: Recipe, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(UnknownName, match="did you mean dies"):
        load_remote(replace(faulty, options={"dyes": True}))
    (tmp_path / "once").touch()
    with pytest.raises(EngineError, match="it was ended by SIGKILL"):
        load_remote(replace(faulty, options={"once": str(tmp_path / "once"), "dies": True}))
    with pytest.raises(UsageError, match="no plain value"):
        load_remote(replace(faulty, options={"dies": object()}))
    until(lambda: threading.active_count() <= before, "the end of its threads")


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """However it dies, and though the process hears nothing of its pipe meanwhile."""
    program = (
        "import os, sys, time\n"
        "from trifocal.engines.recipe import Recipe\n"
        "from trifocal.engines.remote import load_remote\n"
        "engine = load_remote(Recipe(source='', config={'hidden_size': 8}, engine='echo'))\n"
        "print(*engine.pids, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        try:
            pid = int(line_of(parent))
            assert os.getpgid(pid) == pid
            os.kill(pid, signal.SIGTERM)  # as a service's manager says it to everybody: the parent decides
            os.kill(pid, signal.SIGINT)
            assert alive(pid)
        finally:
            parent.kill()
    until(lambda: not alive(pid), "its end")


def test_answers_are_those_of_the_engine_here() -> None:
    recipe = language_recipe(find_checkpoint("thimble"))
    here = load_engine(recipe)
    features = torch.randn(16, here.hidden, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    asked = Prompt([TokenSpan((1, 50, 60)), ImageSpan(features, "a"), TokenSpan((70, 80))])
    schema = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
    samplings = [
        Sampling(max_tokens=12, ignore_end=True, top_logprobs=3),
        Sampling(max_tokens=12, temperature=1, seed=5, repetition_penalty=1.2),
        Sampling(max_tokens=12, schema=schema),
    ]
    with loaded(recipe) as apart:
        for sampling in samplings:
            assert list(apart.stream(asked, sampling)) == list(here.stream(asked, sampling))
        assert torch.equal(apart.attention(asked, [5, 6]), here.attention(asked, [5, 6]))
        assert apart.tokenizer.encode("What is it?", start=True) == here.tokenizer.encode("What is it?", start=True)
        assert (apart.able, apart.context, apart.hidden) == (here.able, here.context, here.hidden)
        assert [part.nbytes for part in apart.parts] == [28835840]
        with pytest.raises(PromptTooLong):
            apart.stream(Prompt([TokenSpan((5,) * apart.context)]), Sampling())
        with pytest.raises(BadSampling):
            list(apart.stream(asked, Sampling(schema="{")))
    here.close()


def test_conversations_are_spread_over_idle_processes_and_go_on_where_they_began() -> None:
    with loaded(ECHO, replicas=2) as engine:
        seats = list(engine.roster.seats.values())

        def home(words: str) -> int:
            """Which process answers, alone on an idle machine."""
            until(lambda: not any(seat.place.open for seat in seats), "rest")
            stream = engine.stream(prompt(words), Sampling())
            next(stream)
            where = [bool(seat.place.open) for seat in seats]
            stream.close()
            assert sum(where) == 1
            return where.index(True)

        homes = {letter: home(letter * 320) for letter in "abcdefgh"}
        assert set(homes.values()) == {0, 1}
        assert {letter: home(letter * 320 + "?") for letter in homes} == homes


def test_a_conversation_goes_where_its_beginning_is_and_others_where_there_is_room() -> None:
    with loaded(ECHO, replicas=2) as engine:
        places = engine._crew.workers

        def busy() -> list[int]:
            return [len(place.open) for place in places]

        first, second = (engine.stream(prompt(letter * 320), Sampling()) for letter in "ab")
        next(first)
        homes = {"a": busy().index(1)}
        next(second)
        assert busy() == [1, 1]  # the other one was free
        homes["b"] = 1 - homes["a"]
        first.close()
        second.close()
        for letter in "abba":
            until(lambda: busy() == [0, 0], "rest")
            stream = engine.stream(prompt(letter * 320 + "?"), Sampling())
            next(stream)
            assert busy().index(1) == homes[letter]
            stream.close()
        many = [engine.stream(prompt("a" * 320), Sampling()) for _ in range(12)]
        for stream in many:
            next(stream)
        assert min(busy()) >= 2  # the beginning is not worth to wait for
        os.kill(engine.pids[0], signal.SIGKILL)
        until(lambda: engine.state().reason, "its death")
        assert engine.state().phase == "ready"
        assert "it starts again" in engine.state().reason
        assert ask(engine, "the other one answers") == "the other one answers"
        until(lambda: engine.state().reason == "", "the second process")
        for stream in many:
            stream.close()


def test_an_answer_that_the_collector_closes_while_its_crew_is_asked_waits_for_nobody(engine: Remote) -> None:
    stream = engine.stream(prompt("left alone"), Sampling())
    next(stream)
    with engine._crew.workers[0]._lock:  # as whoever asks has it
        stream.close()
    until(lambda: engine.state().running == 0, "rest")
