"""On Ray Serve for real: two replicas of the language model, one that sees, one in front, on this machine."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image as Pictures

from needs import engine
from trifocal.deploy import Language, Plan
from trifocal.deploy.application import ENVIRONMENT
from waiting import PATIENCE, until

pytestmark = engine("ray", "ray")
QUESTION = "What colour is the picture?"
PORT = 18123
PLAN = Plan(model={"checkpoint": "thimble"}, language=Language(least=2, most=3, overload=600, idle=3600.0, cpus=0.25))


@dataclass(frozen=True, slots=True)
class Deployed:
    """What answers at ``url``, and handles of the replicas of the language model by their names."""

    url: str
    languages: dict[str, Any]

    def counts(self, name: str) -> dict[str, int]:
        """Which process a replica is, and how many requests it got in this life."""
        told: dict[str, int] = self.languages[name].counts.remote().result(timeout_s=PATIENCE)
        return told

    def asked(self) -> dict[str, int]:
        """How many requests each replica that always runs got."""
        return {name: self.counts(name)["asked"] for name in list(self.languages)[:2]}

    def open(self) -> int:
        """How many answers the replicas that always run are at."""
        return sum(self.counts(name)["open"] for name in list(self.languages)[:2])

    def body(self, *turns: Any, tokens: int = 24, stream: bool = False) -> dict[str, Any]:
        """A request; turns are the user's and the model's in turn."""
        roles = ["user", "assistant"] * len(turns)
        messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
        return {"model": "thimble", "messages": messages, "max_tokens": tokens, "stream": stream}

    def text(self, *turns: Any) -> str:
        """The answer."""
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=self.body(*turns), timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A cluster of its own with what a serve.yaml says, started as `serve run` starts it."""
    import ray
    from ray import serve

    file = tmp_path_factory.mktemp("ray") / "serve.yaml"
    file.write_text(PLAN.to_yaml(port=PORT), "utf-8")
    os.environ.update(ENVIRONMENT | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"})
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        told = yaml.safe_load(file.read_text("utf-8"))
        (application,) = told["applications"]
        serve.start(http_options=told["http_options"], proxy_location=told["proxy_location"])
        from trifocal.deploy import build

        serve.run(build(application["args"]), name=application["name"], route_prefix=application["route_prefix"])
        languages = {name: serve.get_deployment_handle(name, application["name"]) for name in PLAN.language.names}
        made = Deployed(f"http://127.0.0.1:{PORT}", languages)
        made.asked()  # makes the handles, which takes seconds
        yield made
    finally:
        serve.shutdown()
        ray.shutdown()


def picture(colour: str) -> dict[str, Any]:
    """A picture of one colour, as clients send it."""
    buffer = BytesIO()
    Pictures.new("RGB", (64, 64), colour).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def about(colour: str, question: str = QUESTION) -> list[dict[str, Any]]:
    """A turn with a picture."""
    return [picture(colour), {"type": "text", "text": question}]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(sent: signal.Signals, tmp_path: Path) -> None:
    """`trifocal deploy`, in a process of its own and a cluster of its own."""
    words = ["deploy", "--port", str(PORT + 1), "--engine", "echo", "--language-cpus", "0.25"]
    log = tmp_path / "log"

    def interruptible() -> None:
        """A shell has what it starts in the background ignore SIGINT, and so would whatever a test starts there."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with log.open("wb") as errors:
        command = [sys.executable, "-m", "trifocal", *words]
        out: dict[str, Any] = {"stderr": errors, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen(command, **out, preexec_fn=interruptible)
    try:
        until(lambda: process.poll() is not None or b"is deployed" in log.read_bytes(), "the deployment")
        assert httpx.get(f"http://127.0.0.1:{PORT + 1}/readyz", timeout=PATIENCE).status_code == 200, log.read_text()
        process.send_signal(sent)
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.short
@pytest.mark.parametrize("colour", ["red", "green", "yellow"])
def test_the_answer_is_true(deployed: Deployed, colour: str) -> None:
    assert colour in deployed.text(about(colour))


def test_the_second_turn_meets_the_replica_of_the_first(deployed: Deployed) -> None:
    homes = set()
    for number in range(6):
        before = deployed.asked()
        colour = f"#{40 * number:02x}3080"
        first = deployed.text(about(colour))
        second = deployed.text(about(colour), first, "Are you sure?")
        assert second
        more = {name: count - before[name] for name, count in deployed.asked().items()}
        assert sorted(more.values()) == [0, 2], "one replica got both turns"
        homes.add(max(more, key=lambda name: more[name]))
    assert len(homes) == 2, "and not always the same one"


def test_page_and_documents_are_there(deployed: Deployed) -> None:
    assert httpx.get(f"{deployed.url}/").status_code == 200
    assert httpx.get(f"{deployed.url}/readyz").json() == {"status": "ok"}
    assert httpx.get(f"{deployed.url}/v1/models").json()["data"][0]["id"] == "thimble"
    assert httpx.post(f"{deployed.url}/v1/chat/completions", json={"messages": 3}).status_code == 400
    bad = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    refused = httpx.post(f"{deployed.url}/v1/chat/completions", json=deployed.body(bad))
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_who_leaves_ends_the_work(deployed: Deployed) -> None:
    body = long(deployed, about("red"), 1200)
    with httpx.stream("POST", f"{deployed.url}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()  # held: a generator that nobody has closes the connection
        next(lines)
        assert sum(deployed.counts(name)["open"] for name in list(deployed.languages)[:2]) == 1
    until(
        lambda: not any(deployed.counts(name)["open"] for name in list(deployed.languages)[:2]), "the end of the work"
    )


def long(deployed: Deployed, turn: Any, tokens: int) -> dict[str, Any]:
    """A request whose answer has so many tokens, whatever the model would say: numbers."""
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": tokens, "maxItems": tokens}
    schema = {"type": "object", "properties": {"n": numbers}, "required": ["n"], "additionalProperties": False}
    held = {"type": "json_schema", "json_schema": {"name": "numbers", "strict": True, "schema": schema}}
    return {**deployed.body(turn, tokens=tokens, stream=True), "response_format": held}


@dataclass(slots=True)
class Streamed:
    """What came of a stream."""

    status: int = 0
    pieces: list[str] = field(default_factory=list)
    error: str = ""
    done: bool = False
    begun: threading.Event = field(default_factory=threading.Event)


def streamed(deployed: Deployed, body: dict[str, Any], into: Streamed) -> Streamed:
    """Reads a stream to its end, whatever that is."""
    with httpx.stream("POST", f"{deployed.url}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
        into.status = answer.status_code
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                into.done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                into.error = event["error"]["code"]
            elif piece := event["choices"][0]["delta"].get("content"):
                into.pieces.append(piece)
                into.begun.set()
    into.begun.set()
    return into


def test_one_more_is_woken_where_positions_wait(deployed: Deployed) -> None:
    """The third replica sleeps until the two that run have more than 600 positions before each."""
    assert not running("language-2")
    # texts, which nobody has to see first, and answers that are long beside their coming: all are under way together
    bodies = [long(deployed, f"{number}: " + "What is in a picture? " * 40, 200) for number in range(24)]
    results = [Streamed() for _ in bodies]
    with ThreadPoolExecutor(24) as threads:
        ends = [threads.submit(streamed, deployed, body, into) for body, into in zip(bodies, results, strict=True)]
        for end in ends:
            end.result()
    assert all(each.done and not each.error for each in results)
    until(lambda: running("language-2"), "the third one")
    assert "red" in deployed.text(about("red"))


@pytest.mark.short
def test_of_a_replica_that_is_killed_only_begun_answers_are_lost(deployed: Deployed) -> None:
    """Half of the requests stream when one of two replicas is killed, the others come in that moment."""
    first = [long(deployed, about(f"#{30 * number:02x}0000"), 600) for number in range(8)]
    colours = ["red", "green", "yellow", "red"] * 2
    second = [deployed.body(about(colour), stream=True) for colour in colours]
    running, coming = [Streamed() for _ in first], [Streamed() for _ in second]
    with ThreadPoolExecutor(16) as threads:
        ends = [threads.submit(streamed, deployed, body, into) for body, into in zip(first, running, strict=True)]
        for each in running:
            assert each.begun.wait(PATIENCE)
        counts = {name: deployed.counts(name) for name in list(deployed.languages)[:2]}
        victim = max(counts, key=lambda name: counts[name]["open"])
        assert counts[victim]["open"], "it answers some of them"
        late = [threads.submit(streamed, deployed, body, into) for body, into in zip(second, coming, strict=True)]
        os.kill(counts[victim]["pid"], signal.SIGKILL)
        ready = []
        while not all(end.done() for end in (*ends, *late)):
            ready.append(httpx.get(f"{deployed.url}/readyz", timeout=PATIENCE).status_code)
            time.sleep(0.2)
        for end in (*ends, *late):
            end.result()
    assert set(ready) == {200}, "the other one lives"
    lost = [each for each in running if each.error]
    assert len(lost) >= counts[victim]["open"] - len([each for each in running if each.done and not each.error])
    assert lost, "those that it answered end with an error"
    assert {each.error for each in lost} == {"engine_lost"}
    assert all(each.pieces and (each.error or each.done) for each in running)
    for each, colour in zip(
        coming, colours, strict=True
    ):  # had they begun before the kill they may be lost, but none of them is silent
        assert each.status == 200
        assert each.error == "engine_lost" if each.error else each.done and colour in "".join(each.pieces)
    assert [each for each in coming if not each.error], "those that had not begun are answered"
    until(lambda: pid_of(deployed, victim) not in (None, counts[victim]["pid"]), "its next life")
    until(lambda: "reason" not in httpx.get(f"{deployed.url}/readyz").json(), "word of it")


def running(name: str) -> bool:
    """Whether a deployment has a replica that runs; nobody is woken by the question."""
    from ray import serve

    states = serve.status().applications["trifocal"].deployments[name].replica_states
    return any(str(getattr(state, "value", state)) == "RUNNING" and count for state, count in states.items())


def pid_of(deployed: Deployed, name: str) -> int | None:
    with suppress(Exception):
        return deployed.counts(name)["pid"]
    return None
