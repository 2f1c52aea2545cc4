"""Every step of a request made to fail at its first, second and last turn: nothing is lost, the next answer is right.

The points are planted from here into functions of the server: in production there are none, and they cost nothing.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from live import FULL, Live, data_uri, running, user

from trifocal import load
from trifocal.api.settings import hash_key
from waiting import until

# what fails: module, and where in it the function is
POINTS = {
    "read of a body": "trifocal.api.guard:BodyLimit._piece",
    "read of its JSON": "trifocal.api.host:loads",
    "admission": "trifocal.api.admission:Admission.enter",
    "place": "trifocal.api.admission:Place.run",
    "room for pixels": "trifocal.api.room:Lease.take",
    "base64": "trifocal.images:_from_base64",
    "parts of a file": "trifocal.images:plain",
    "decode": "trifocal.api.wire:_decode",
    "pixels": "trifocal.images:_plain",
    "name of a file": "trifocal.images:_name_of",
    "template": "trifocal.conversation.templates:Template.render",
    "outline": "trifocal.model.composer:Composer.outline",
    "looks": "trifocal.vision.llava:LlavaVision.looks",
    "squares": "trifocal.vision.llava:LlavaVision._squares",
    "tower": "trifocal.vision.towers:VisionTransformer.forward",
    "tower's block": "trifocal.vision.towers:Block.forward",
    "rows of a picture": "trifocal.vision.llava:_way",
    "cache of pictures, read": "trifocal.vision.gallery:Gallery._ask",
    "cache of pictures, turn": "trifocal.vision.gallery:Gallery._next",
    "cache of pictures, write": "trifocal.vision.gallery:Gallery._keep",
    "prompt": "trifocal.model.composer:Composer.prompt",
    "drawing": "trifocal.engines.batching:Drawing",
    "inbox": "trifocal.engines.batching:_Loop.submit",
    "beginning": "trifocal.engines.scheduler:Scheduler._begin",
    "names of blocks": "trifocal.engines.scheduler:Scheduler._names",
    "blocks, found": "trifocal.engines.blocks:Blocks.find",
    "blocks, held": "trifocal.engines.blocks:Blocks.hold",
    "blocks, taken": "trifocal.engines.blocks:Blocks.take",
    "blocks, named": "trifocal.engines.blocks:Blocks.name",
    "prefill and step": "trifocal.engines.native.runner:NativeRunner.forward",
    "splice": "trifocal.prompt:Prompt.splice",
    "pick": "trifocal.engines.batching:pick_along",
    "scheduler's notes": "trifocal.engines.scheduler:Scheduler.took",
    "detokenise": "trifocal.model.decoding:Decoder.push",
    "rest of the text": "trifocal.model.decoding:Decoder.flush",
    "token given": "trifocal.api.pump:Pump._give",
    "token read": "trifocal.api.pump:Pump.next",
    "event": "trifocal.api.openai:event",
    "send": "uvicorn.protocols.http.h11_impl:RequestResponseCycle.send",
    "metrics": "trifocal.api.metrics:Metrics.answered",
}
ERRORS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("planted at /secret/path"),
    lambda: MemoryError("planted at /secret/path"),
    lambda: OSError(28, "planted at /secret/path"),
    lambda: torch.OutOfMemoryError("planted at /secret/path"),
)
PLAIN = "uvicorn's own"
BODY = {
    "messages": [
        user(
            {"type": "image_url", "image_url": {"url": data_uri("red")}},
            {"type": "image_url", "image_url": {"url": data_uri("blue")}},
            {"type": "text", "text": "What is in these pictures, and what is beside it?"},
        )
    ],
    "stream": True,
    "temperature": 0,
    "max_tokens": 5,
    "seed": 1,
}


class Point:
    """A function that fails at its turn number ``at`` and counts its turns; 0 never fails."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.at, self.error, self.turns = at, error, 0
        self._lock = threading.Lock()

    def hit(self) -> None:
        with self._lock:
            self.turns += 1
            fails = self.turns == self.at
        if fails:
            raise self.error()


@contextmanager
def planted(where: str, at: int = 0, error: Callable[[], BaseException] = ERRORS[0]) -> Iterator[Point]:
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *above, name = path.split(".")
    for each in above:
        owner = getattr(owner, each)
    whole, point = getattr(owner, name), Point(at, error)

    def failing(*given: Any, **options: Any) -> Any:
        point.hit()
        return whole(*given, **options)

    setattr(owner, name, failing)
    try:
        yield point
    finally:
        setattr(owner, name, whole)


@dataclass(frozen=True)
class Held:
    """What a server at rest holds."""

    threads: int
    descriptors: int
    children: str

    @classmethod
    def now(cls) -> Held:
        task = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children")
        files = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
        threads = [each for each in threading.enumerate() if each.name != "AnyIO worker thread"]  # they come and go
        return cls(len(threads), len(files), task.read_text() if task.exists() else "")

    def within(self, before: Held) -> bool:
        """Nothing more than before. Less may be: a thread that waited for work in vain goes home after seconds."""
        more = set(self.children.split()) - set(before.children.split())
        return not more and self.threads <= before.threads and self.descriptors <= before.descriptors


@dataclass(frozen=True)
class Told:
    """What a client was told: the status, the answer's text, and whether it came to its end or was an error."""

    status: int
    text: str
    whole: bool


class Sweep:
    """A server, one key a request so that nothing of an earlier one is found again, and the right answer."""

    def __init__(self, live: Live, keys: Iterator[str]) -> None:
        self.live, self._keys = live, keys
        self.golden = self.ask()
        assert self.golden.whole, self.golden
        assert self.golden.text
        assert self.ask() == self.golden
        self.rest()
        gc.collect()
        self.held = Held.now()

    def ask(self) -> Told:
        headers = {"Authorization": f"Bearer {next(self._keys)}", "Connection": "close"}
        try:
            with self.live.client() as client:
                answer = client.post("/v1/chat/completions", json=BODY, headers=headers)
        except httpx.TransportError:  # the failure was the sending itself
            return Told(0, "", False)
        assert "/secret" not in answer.text
        assert "planted" not in answer.text
        if answer.status_code == 500 and answer.headers["content-type"].startswith("text/plain"):
            return Told(500, PLAIN, False)
        if answer.status_code != 200:
            return Told(answer.status_code, answer.json()["error"]["message"], False)
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
        said = [each["choices"][0]["delta"] for each in map(json.loads, lines) if each.get("choices")]
        texts = [delta.get("content") or "" for delta in said]
        return Told(200, "".join(texts), answer.text.rstrip().endswith("[DONE]") and "error" not in answer.text)

    def ready(self) -> None:
        with self.live.client() as client:
            assert client.get("/readyz").status_code == 200

    def rest(self, *, whole: bool = True) -> None:
        """Waits until nothing is under way, and looks whether all is back."""
        live = self.live
        assert live.settled()
        engine: Any = live.llava.engine
        until(lambda: engine.state().running == engine.state().waiting == 0, "the engine's rest")
        state = engine.state()
        assert state.phase == "ready", state
        assert state.free == state.positions, "a block is held by nobody"
        until(lambda: not live.server._room.used and not live.server.held, "the room of bodies and pixels")
        gallery = live.llava.gallery
        assert not gallery._busy
        if whole:  # of a turn that broke off, the next one sees what is left
            assert not gallery._wanted
            assert not gallery._requests

    def fails(self, where: str, at: int, error: Callable[[], BaseException]) -> Told:
        """What is told when a point fails, after which all is as it was."""
        with planted(where, at, error) as point:
            told = self.ask()
            self.ready()
            self.rest(whole=False)
        assert point.turns >= at, "it was never reached"
        assert self.ask() == self.golden
        self.rest()
        if not Held.now().within(self.held):
            gc.collect()
            until(lambda: Held.now().within(self.held), f"what was held before ({self.held}, and now {Held.now()})")
        return told


@pytest.fixture(scope="module")
def sweep(hf15: Path) -> Iterator[Sweep]:
    names = [f"failpoint-{at:08}" for at in range(3000)]
    with load(checkpoint=str(hf15)) as llava:
        keys = frozenset(map(hash_key, names))
        with running(llava, keys=keys, slots=2) as live:
            for pool in live.server.pools.values():  # threads start when they are wanted; here they are counted
                _awake(pool.threads)
            _awake(live.server._preparing)
            yield Sweep(live, iter(names))


def _awake(threads: ThreadPoolExecutor) -> None:
    together = threading.Barrier(threads._max_workers)
    for done in [threads.submit(together.wait) for _ in range(threads._max_workers)]:
        done.result()


@pytest.mark.parametrize("name", POINTS)
def test_whatever_fails_the_next_answer_is_right(sweep: Sweep, name: str) -> None:
    where = POINTS[name]
    with planted(where) as counted:
        assert sweep.ask() == sweep.golden
        sweep.rest()
    assert counted.turns, "no request comes by here"
    turns = [1, min(2, counted.turns), counted.turns]
    if not FULL:  # each run has one turn of each point, the sweep has all
        turns = [turns[list(POINTS).index(name) % 3]]
    for number, at in enumerate(sorted(set(turns))):
        kinds = ERRORS if FULL else [ERRORS[(number + len(name)) % len(ERRORS)]]
        for error in kinds:
            told = sweep.fails(where, at, error)
            assert told == sweep.golden or not told.whole, "an answer that is not whole says so"
            assert told.text != PLAIN or name == "send", "only where no error could be sent it is not ours"
            assert told.status in (0, 200, 500, 503) or (told.status == 400 and "damaged" in told.text), told


def test_what_is_left_behind_would_be_found_and_who_went_home_is_none() -> None:
    before = Held(3, 20, "7 9 ")
    assert before.within(before)
    assert Held(2, 19, "9 ").within(before)
    for more in (Held(4, 20, "7 9 "), Held(3, 21, "7 9 "), Held(3, 20, "7 10 ")):
        assert not more.within(before)


def test_a_leak_would_be_found(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = sweep.live.llava.engine
    engine._loop.blocks.take()
    with pytest.raises(AssertionError, match="a block is held"):
        sweep.rest()
    engine._loop.blocks.release([block for block, holders in enumerate(engine._loop.blocks._holders) if holders])
    sweep.rest()


@pytest.mark.parametrize("at", [1, 2, -1])
def test_a_load_that_fails_holds_nothing_and_the_next_one_loads(hf15: Path, at: int) -> None:
    where = "trifocal.weights.tensors:Weights.__getitem__"
    with planted(where) as counted, load(checkpoint=str(hf15)):
        pass
    gc.collect()
    held = Held.now()
    with planted(where, at % (counted.turns + 1)) as point, pytest.raises(RuntimeError, match="planted"):
        load(checkpoint=str(hf15))
    assert point.turns
    gc.collect()
    assert Held.now().within(held)
    with load(checkpoint=str(hf15)) as llava:
        assert llava.state().phase == "ready"
