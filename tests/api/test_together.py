"""The n answers of a request are made together: the same as alone, at the cost of one prompt."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest
from live import Live, data_uri, events_of, running

import trifocal
from trifocal.api.answers import usage_of
from trifocal.api.jobs import Step
from trifocal.api.together import together
from trifocal.engines.native import Native
from trifocal.engines.scheduler import Run
from trifocal.messages import End
from waiting import PATIENCE

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WARM = {"temperature": 2.0, "seed": 5, "max_tokens": 12}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with trifocal.load() as llava, running(llava) as started:
        yield started


def question(colour: str = "red", words: str = "What do you see?") -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": data_uri(colour)}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": words}]}]


def texts(live: Live, path: str, body: dict[str, Any], *, stream: bool) -> list[str]:
    """The text of each answer, in the order of their numbers."""
    with live.client() as client:
        response = client.post(path, json={**body, "stream": stream})
    assert response.status_code == 200, response.text
    said: dict[int, str] = {}
    for event in events_of(response)[:-1] if stream else [response.json()]:
        for choice in event["choices"]:
            held = choice.get("delta") or choice.get("message") or choice
            said[choice["index"]] = said.get(choice["index"], "") + (held.get("content") or held.get("text") or "")
    return [said[index] for index in sorted(said)]


@pytest.mark.parametrize("stream", [False, True])
def test_each_answer_is_the_one_that_its_seed_gives_alone(live: Live, stream: bool) -> None:
    body = {"messages": question(), **WARM}
    alone = [texts(live, CHAT, {**body, "seed": seed}, stream=stream)[0] for seed in range(5, 9)]
    assert len(set(alone)) > 1
    assert texts(live, CHAT, {**body, "n": 4}, stream=stream) == alone


@pytest.mark.parametrize("stream", [False, True])
def test_so_do_the_answers_to_several_raw_prompts(live: Live, stream: bool) -> None:
    prompts = ["USER: What is a dog? ASSISTANT:", "USER: Count to three. ASSISTANT:"]
    alone = [
        texts(live, TEXT, {**WARM, "prompt": prompt, "seed": seed}, stream=stream)[0]
        for prompt in prompts
        for seed in (5, 6)
    ]
    assert texts(live, TEXT, {**WARM, "prompt": prompts, "n": 2}, stream=stream) == alone


def test_four_answers_cost_one_prompt_and_their_steps_are_shared(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(live.llava, trifocal.Llava)
    engine, steps = live.llava.engine, list[list[int]]()
    assert isinstance(engine, Native)
    forward = engine.runner.forward

    def counting(runs: Sequence[Run[Any]]) -> Any:
        steps.append([run.count - len(run.draft) for run in runs])
        return forward(runs)

    monkeypatch.setattr(engine.runner, "forward", counting)
    body = {"messages": question("blue", "Which colour is it, and what else can be seen?"), **WARM, "n": 4}
    with live.client() as client:
        usage = client.post(CHAT, json=body).json()["usage"]
    computed = sum(count for counts in steps for count in counts if count > 1)
    assert 0 < computed < usage["prompt_tokens"] + 3 * 16  # of each other answer less than a block
    assert max(map(len, steps)) == 4


def counted(name: str, count: int, closed: list[str], error: Exception | None = None) -> Generator[str, None, None]:
    try:
        for at in range(count):
            yield f"{name}{at}"
        if error is not None:
            raise error
    finally:
        closed.append(name)


def others() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "answer-together"}


@pytest.mark.parametrize("count", [1, 3])
def test_all_items_come_each_answer_s_in_order(count: int) -> None:
    closed: list[str] = []
    items = list(together([counted(name, 50, closed) for name in "abc"[:count]]))
    for name in "abc"[:count]:
        assert [item for item in items if item[0] == name] == [f"{name}{at}" for at in range(50)]
    assert sorted(closed) == list("abc"[:count])
    assert not others()


def test_an_error_of_one_closes_all() -> None:
    closed: list[str] = []
    endless = [counted(name, 10**9, closed) for name in "ab"]
    with pytest.raises(ValueError, match="no luck"):
        list(together([*endless, counted("c", 2, closed, ValueError("no luck"))]))
    assert sorted(closed) == ["a", "b", "c"]
    assert not others()


def test_whoever_leaves_closes_all() -> None:
    closed: list[str] = []
    with closing(together([counted(name, 10**9, closed) for name in "ab"])) as items:
        next(items)
    assert sorted(closed) == ["a", "b"]
    assert not others()


def test_a_thread_that_the_system_does_not_give_closes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    answers = [counted(name, 10**9, closed) for name in "abc"]
    start, started = threading.Thread.start, list[threading.Thread]()

    def second_refused(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", second_refused)
    with pytest.raises(RuntimeError, match="new thread"):
        list(together(answers))
    assert [answer.gi_frame for answer in answers] == [None] * 3  # what never began is closed, too
    assert closed == ["a"]
    assert not others()


def test_they_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=PATIENCE)

    def meeting() -> Generator[int, None, None]:
        both.wait()
        yield 1

    assert list(together([meeting(), meeting()])) == [1, 1]


def test_usage_counts_each_prompt_once_whichever_answer_ended_first() -> None:
    def ended(index: int, prompt: int) -> Step:
        return Step(index, "", End("stop", prompt_tokens=prompt, image_tokens=0, completion_tokens=1))

    steps = [ended(2, 30), ended(1, 10), ended(3, 30), ended(0, 10)]
    assert usage_of(steps, 2)["prompt_tokens"] == 40
