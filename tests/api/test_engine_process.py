"""The server over an engine of another process: what a client meets when that process dies or stops."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from live import HIDDEN, Live, data_uri, error_of, full, make_llava, running, user

from trifocal.engines.recipe import Recipe
from trifocal.engines.remote import Remote, load_remote
from trifocal.engines.remote.worker import Worker
from trifocal.errors import EngineError
from waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("forked")

KILLS = full(20, 3)
SLOW = Recipe(source="", config={"hidden_size": HIDDEN}, engine="echo", options={"delay": 0.01})
BODY = {
    "messages": [user({"type": "image_url", "image_url": {"url": data_uri("red")}}, {"type": "text", "text": "What?"})],
    "temperature": 0,
}
STREAM = {**BODY, "stream": True}


@dataclass(frozen=True)
class Told:
    """What came of a stream: its text, its last error, whether it ended as streams end, and when."""

    text: str
    error: dict[str, str] | None
    done: bool
    at: float


@pytest.fixture(scope="module")
def engine() -> Iterator[Remote]:
    made = load_remote(SLOW, step_limit=2.0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def live(engine: Remote) -> Iterator[Live]:
    with running(make_llava(engine), slots=8) as server:
        yield server


def follow(client: httpx.Client, begun: list[float]) -> Told:
    """Reads a stream to its end; ``begun`` grows with its first piece."""
    text, error, done = "", None, False
    with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            done = line == "data: [DONE]"
            event = {} if done else json.loads(line.removeprefix("data: "))
            error = event.get("error", error)
            for choice in event.get("choices", ()):
                text += choice["delta"].get("content") or ""
            if len(text) > 3:
                begun.append(time.monotonic())
    return Told(text, error, done, time.monotonic())


@pytest.mark.parametrize("how", [signal.SIGKILL, *([signal.SIGSTOP] if KILLS == 20 else [])])
def test_a_death_in_mid_stream_is_told_at_once_and_the_next_answer_is_right(
    live: Live, engine: Remote, how: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    until(lambda: engine.state().phase == "ready", "the process")
    seconds: list[tuple[float, float]] = []
    with live.client() as client, ThreadPoolExecutor() as pool:
        golden = client.post("/v1/chat/completions", json=BODY).json()["choices"]
        for _ in range(KILLS):
            begun: tuple[list[float], ...] = ([], [], [])
            streams = [pool.submit(follow, client, each) for each in begun]
            until(lambda begun=begun: all(begun), "the streams")
            (pid,) = engine.pids
            os.kill(pid, how)
            killed = time.monotonic()
            meanwhile = pool.submit(client.post, "/v1/chat/completions", json=BODY)
            for stream in streams:
                told = stream.result(PATIENCE)
                assert told.text.startswith("A ch")
                assert told.error is not None
                assert (told.error["code"], told.done) == ("engine_lost", True)
            readyz = client.get("/readyz")
            if readyz.status_code == 200:
                assert engine.pids not in ([], [pid])  # the next one is there already
            else:
                refused = error_of(readyz, 503)
                assert refused["code"] == "engine_starting"
                assert "it starts again" in refused["message"]
            assert client.get("/livez").status_code == 200
            assert meanwhile.result(PATIENCE).json()["choices"] == golden
            until(lambda: client.get("/readyz").status_code == 200, "the next process")
            seconds.append((max(stream.result().at for stream in streams) - killed, time.monotonic() - killed))
            assert engine.pids != [pid]
    assert live.settled()
    with capsys.disabled():
        told_in, back_in = (max(each) for each in zip(*seconds, strict=True))
        print(f"\n{how.name} x {KILLS}: errors within {told_in:.2f} s, ready again within {back_in:.2f} s")


def test_its_twin_that_takes_a_death_for_a_step_that_failed_is_found(
    live: Live, engine: Remote, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "_orphaned", lambda worker, call, how: call.said.put(EngineError(how)))
    with pytest.raises(AssertionError):
        test_a_death_in_mid_stream_is_told_at_once_and_the_next_answer_is_right(live, engine, signal.SIGKILL, capsys)
    until(lambda: engine.state().phase == "ready", "the process")
