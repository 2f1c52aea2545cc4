"""What runs in a replica, asked as a front asks it: thimble's two halves, and no cluster between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as Pictures

import trifocal
from trifocal.deploy.replicas import LanguageReplica, SeeingReplica
from trifocal.engines.base import State, Token
from trifocal.engines.remote.answering import Answer
from trifocal.engines.remote.wire import error_from, prompt_to, tokens_from
from trifocal.errors import EngineError, PromptTooLong, VisionError
from trifocal.images import from_pil
from trifocal.prompt import Prompt, TokenSpan
from trifocal.vision.elsewhere import Exchange, vision_over

MODEL = {"checkpoint": "thimble", "engine": "echo"}
SAMPLING = {"max_tokens": 4, "stop": []}


@pytest.fixture(scope="module")
def language() -> LanguageReplica:
    return LanguageReplica(MODEL, step_limit=5.0)


@pytest.fixture(scope="module")
def seeing() -> SeeingReplica:
    return SeeingReplica({"checkpoint": "thimble"})


def body_of(prompt: Prompt) -> tuple[dict[str, Any], bytes]:
    head, parts = prompt_to(prompt)
    return head, b"".join(parts)


def answered(replica: LanguageReplica, prompt: Prompt, **sampling: Any) -> list[bytes | dict[str, Any]]:
    head, body = body_of(prompt)

    async def items() -> list[bytes | dict[str, Any]]:
        return [item async for item in replica.answer({**head, "sampling": {**SAMPLING, **sampling}}, body)]

    return asyncio.run(items())


def test_an_answer_comes_packed(language: LanguageReplica) -> None:
    items = answered(language, Prompt([TokenSpan((104, 105))]))
    ids = [token.id for item in items if isinstance(item, bytes) for _, token in tokens_from(memoryview(item))]
    assert ids == [104, 105]
    assert language.counts()["asked"] == 1
    assert language.counts()["open"] == 0


def test_an_error_comes_as_what_it_is(language: LanguageReplica) -> None:
    *_, last = answered(language, Prompt([TokenSpan(tuple(range(9000)))]))
    assert isinstance(last, dict)
    assert isinstance(error_from(last), PromptTooLong)


def test_what_is_no_prompt_is_told(language: LanguageReplica) -> None:
    async def items() -> list[Any]:
        return [item async for item in language.answer({"spans": [3], "scope": "", "sampling": {}}, b"1")]

    (last,) = asyncio.run(items())
    assert "the engine raised" in str(error_from(last))


def test_who_leaves_ends_the_answer(language: LanguageReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("trifocal.deploy.replicas.Answer", lambda give: given.append(give) or Answer(give))
    head, body = body_of(Prompt([TokenSpan((104, 105))]))

    async def leave() -> None:
        items = language.answer({**head, "sampling": {**SAMPLING, "max_tokens": 2000}}, body)
        await anext(items)
        await items.aclose()

    asyncio.run(leave())
    assert language.counts()["open"] == 0
    given[0](Token(105))  # as of a step that was under way: the loop is closed, and the engine's thread goes on


def test_who_hangs_or_failed_is_told_to_the_cluster(language: LanguageReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    language.check_health()
    now = [0.0]
    monkeypatch.setattr("trifocal.deploy.replicas.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(language, "_open", {object()})
    monkeypatch.setattr(language, "_engine", _At(State("ready", steps=7)))
    language.check_health()
    now[0] = 4.0
    language.check_health()
    now[0] = 6.0
    with pytest.raises(EngineError, match="no step for 5 seconds"):
        language.check_health()
    monkeypatch.setattr(language, "_open", set())
    language.check_health()
    monkeypatch.setattr(language, "_engine", _At(State("failed", reason="a sticky error")))
    with pytest.raises(EngineError, match="a sticky error"):
        language.check_health()


class _At:
    def __init__(self, state: State) -> None:
        self._state = state

    def state(self) -> State:
        return self._state


def test_pictures_are_seen_as_at_home(seeing: SeeingReplica) -> None:
    image = from_pil(Pictures.new("RGB", (30, 20), "red"))
    with trifocal.load(engine="echo") as llava:
        gallery = llava.composer.gallery
        wanted = gallery.rows(gallery.looks([image]))[0]
    vision = vision_over({"seeing": over(seeing.exchange)})
    (look,) = vision.looks([image])
    assert vision.see([look])[0].equal(wanted)


def test_a_replica_that_sees_and_is_gone_is_an_error_that_names_it(seeing: SeeingReplica) -> None:
    vision = vision_over({"seeing": over(seeing.exchange)})

    def gone(*_: Any) -> tuple[int, bytes]:
        raise OSError("ended")

    vision._servers[0].exchange = gone
    with pytest.raises(VisionError, match="seeing: ended"):
        vision.looks([from_pil(Pictures.new("RGB", (30, 20), "red"))])


def over(exchange: Callable[..., Any]) -> Exchange:
    return lambda path, body, kind, most: asyncio.run(exchange(path, body, kind))
