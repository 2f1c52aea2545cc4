"""What runs in a replica, with nothing of Ray in it: the language engine and the vision, asked with plain values."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from trifocal.api.seeing import Seeing, SeeingApp
from trifocal.api.settings import ServerSettings
from trifocal.engines import load_engine
from trifocal.engines.base import STEP_LIMIT, Token
from trifocal.engines.batching import Batching
from trifocal.engines.remote.answering import BROKEN, Answer, Said, facts_of, ours
from trifocal.engines.remote.wire import error_to, prompt_from, sampling_from, state_to, tensor_to, tokens_to
from trifocal.errors import EngineError, TrifocalError
from trifocal.model.finding import find
from trifocal.model.settings import Settings
from trifocal.vision import open_vision

__all__ = ["LanguageReplica", "SeeingReplica"]

PICTURE_BYTES = 200 << 20  # the largest picture that is taken anywhere, without any loss
QUEUE = 1024  # requests that wait for a tower: those of all fronts


class LanguageReplica:
    """One copy of the language model. What it is asked is a head of plain values and a body of raw numbers, as in
    `trifocal.engines.remote.wire`; tokens go back packed, errors as plain values."""

    def __init__(self, model: Mapping[str, Any], step_limit: float = STEP_LIMIT) -> None:
        recipe = find(Settings().with_values(model)).recipe
        self._engine = load_engine(recipe)
        self._limit = step_limit
        self._open: set[Answer] = set()
        self._moved, self._steps = time.monotonic(), 0
        self.asked = 0

    def facts(self) -> dict[str, Any]:
        """What the engine is; see `trifocal.engines.remote.answering.facts_of`."""
        return facts_of(self._engine)

    def state(self) -> dict[str, Any]:
        """How it is, as the fields of a `State`."""
        return state_to(self._engine.state())

    def counts(self) -> dict[str, int]:
        """Which process it is, and how many requests it got."""
        return {"pid": os.getpid(), "asked": self.asked, "open": len(self._open)}

    async def answer(self, head: Mapping[str, Any], body: bytes) -> AsyncGenerator[bytes | dict[str, Any], None]:
        """An answer: packed tokens, and where it ends with an error that as plain values."""
        loop, said = asyncio.get_running_loop(), asyncio.Queue[Said]()

        def give(each: Said) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(said.put_nowait, each)

        answer = Answer(give)
        self._open.add(answer)
        self.asked += 1
        if len(self._open) == 1:
            self._moved = time.monotonic()
        try:
            threading.Thread(target=self._work, args=(answer, head, body, give), name="answer", daemon=True).start()
            while True:
                each = [await said.get()]
                while not said.empty():
                    each.append(said.get_nowait())
                if tokens := [(0, token) for token in each if isinstance(token, Token)]:
                    yield bytes(tokens_to(tokens))
                if isinstance(each[-1], TrifocalError):
                    self._end_if_broken(each[-1])
                    yield error_to(each[-1])
                if not isinstance(each[-1], Token):
                    return
        finally:
            answer.leave()
            self._open.discard(answer)

    async def attention(self, head: Mapping[str, Any], body: bytes) -> tuple[Any, bytes] | dict[str, Any]:
        """Where it looked, or the error."""

        def attention() -> tuple[Any, bytes]:
            prompt, _ = prompt_from(head, memoryview(bytearray(body)))
            told, rows = tensor_to(self._engine.attention(prompt, head["ids"]))
            return told, bytes(rows)

        try:
            return await asyncio.get_running_loop().run_in_executor(None, attention)
        except Exception as error:
            return error_to(ours(error))

    def check_health(self) -> None:
        """Whether it can go on; who can't is started again.

        Raises:
            EngineError: it can't.
        """
        state = self._engine.state()
        if state.phase == "failed":
            raise EngineError(state.reason or "the language engine failed")
        now = time.monotonic()
        if state.steps != self._steps or not self._open:
            self._moved, self._steps = now, state.steps
        if state.steps and now - self._moved > self._limit:
            raise EngineError(f"no step for {self._limit:.0f} seconds though there is work")

    def _work(self, answer: Answer, head: Mapping[str, Any], body: bytes, give: Any) -> None:
        try:
            prompt, _ = prompt_from(head, memoryview(bytearray(body)))  # writable: rows lie in it
            sampling = sampling_from(head["sampling"])
        except Exception as error:
            give(ours(error))
            return
        if isinstance(self._engine, Batching):
            answer.ask(self._engine, prompt, sampling, give)
        else:
            answer.pull(self._engine, prompt, sampling)

    def _end_if_broken(self, error: TrifocalError) -> None:
        """After a device's sticky error every step fails: what had not begun is then asked elsewhere."""
        if self._engine.state().phase == "failed":
            os._exit(BROKEN)


class SeeingReplica:
    """One copy of the vision, asked as ``trifocal see`` is over HTTP: the same app, without a socket."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        settings = Settings().with_values(model)
        checkpoint = settings.find()
        vision = open_vision(checkpoint, settings.tower, settings.projector, allow_pickle=settings.allow_pickle)
        server = replace(ServerSettings(), body_bytes=PICTURE_BYTES + (1 << 20), image_bytes=PICTURE_BYTES, queue=QUEUE)
        self._host = Seeing(checkpoint.name, vision, server, settings.cache_bytes)
        self._app = SeeingApp(self._host)

    async def exchange(self, path: str, body: bytes | None, kind: str) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        headers = [(b"host", b"localhost")]
        if body is not None:
            headers += [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET" if body is None else "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 0),
        }
        return await _asked(self._app, scope, body or b"")


async def _asked(app: Any, scope: Mapping[str, Any], body: bytes) -> tuple[int, bytes]:
    """What an ASGI app answers to one request."""
    coming: Sequence[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    waiting = iter(coming)
    status, parts = 500, list[bytes]()

    async def receive() -> dict[str, Any]:
        for each in waiting:
            return each
        await asyncio.Event().wait()  # nobody leaves: who does cancels all of this
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
