"""Live servers on free ports of this machine: one that echoes at once, and others made to order."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import httpx
import torch
from PIL import Image as Pictures
from starlette.routing import BaseRoute

from trifocal.api.app import create_app
from trifocal.api.errors import dialect_of
from trifocal.api.models import Offered
from trifocal.api.server import Listener, listen
from trifocal.api.settings import ServerSettings
from trifocal.checkpoints import find_checkpoint
from trifocal.conversation.templates import get_template
from trifocal.engines.base import Engine, Token
from trifocal.engines.echo import Echo
from trifocal.images import Image
from trifocal.messages import Sampling
from trifocal.model.composer import Composer
from trifocal.model.llava import Llava
from trifocal.prompt import Prompt
from trifocal.timing import step
from trifocal.vision import Gallery, Look, PatchGrid, View
from waiting import PATIENCE, until

HIDDEN, POSITIONS = 8, 4
# a client reads the authorities of the web anew otherwise, 15 ms each time, and then asks this machine without TLS
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# by hand, for frames that no client writes
UPGRADE = (
    b"GET /api/v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class MeanColour:
    """A vision that sees one thing, the mean colour, in four rows."""

    hidden, identity = HIDDEN, "mean"

    def looks(self, images: Sequence[Image]) -> list[Look]:
        return [Look(image, (POSITIONS,)) for image in images]

    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        with step("tower"):
            return [torch.full((POSITIONS, HIDDEN), _mean(look.image)) for look in looks]

    def views(self, look: Look) -> list[View]:
        return [View(look.image.on((0, 0, 0)).resize((2, 2)), "whole", (0.0, 0.0, 1.0, 1.0))]

    def grids(self, look: Look) -> list[PatchGrid]:
        return [PatchGrid(0, 2, 2, 2, (0.0, 0.0, 1.0, 1.0))]


class Gated(Echo):
    """An echo that can be held before every token, and knows how many streams are open and how often one was held."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = threading.Event()
        self.gate.set()
        self.open = 0
        self.held = 0
        self.made = 0
        self._lock = threading.Lock()

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        return self._gated(super().stream(prompt, sampling))

    def _gated(self, tokens: Generator[Token, None, None]) -> Generator[Token, None, None]:
        with self._lock:
            self.open += 1
        try:
            with closing(tokens):
                for token in tokens:
                    self.held += 1
                    assert self.gate.wait(PATIENCE)
                    self.made += 1
                    yield token
        finally:
            with self._lock:
                self.open -= 1


class Watching(Echo):
    """An echo that looks at one position after the other, from the last one on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.able = replace(self.able, explains=True)

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        return torch.eye(len(prompt)).flip(0)[torch.arange(len(ids)) % len(prompt)]


def make_llava(engine: Engine | None = None, template: str = "llava_v1") -> Llava:
    engine = engine or Echo(hidden=HIDDEN)
    composer = Composer(engine.tokenizer, Gallery(MeanColour(), takes_rows=True))
    checkpoint = replace(find_checkpoint("thimble"), name="echo")
    return Llava(checkpoint, composer, engine, get_template(template))


def _mean(image: Image) -> float:
    small = image.on((0, 0, 0)).resize((1, 1)).getpixel((0, 0))
    assert isinstance(small, tuple)
    return sum(small) / 3


@dataclass
class Live:
    """A server that listens, and what is behind it."""

    url: str
    port: int
    listener: Listener
    llava: Llava

    @property
    def server(self) -> Any:
        return self.listener.app.state.server

    def client(self, **options: Any) -> httpx.Client:
        own = {"timeout": PATIENCE, "trust_env": False, "verify": NO_AUTHORITIES}
        return httpx.Client(base_url=self.url, **own | options)

    def settled(self) -> bool:
        """True as soon as nothing runs or waits any more."""
        until(lambda: not self.server.busy and not self.server.admission.waiting, "rest")
        return True


@contextlib.contextmanager
def running(
    llava: Llava | None = None, page: Sequence[BaseRoute] = (), offers: Sequence[Offered] = (), **settings: Any
) -> Iterator[Live]:
    """A live server for as long as the block lasts; ``page`` are the routes of its page.

    Of several ``offers`` the first is loaded: it is ``llava``.
    """
    llava = llava or make_llava()
    chosen = replace(ServerSettings(port=0, slots=1), **settings)
    sockets = listen(chosen)
    app = create_app(None if offers else llava, chosen, page, offers)
    if offers:
        app.state.server.models.took(llava)
    listener = Listener(app, chosen)
    # a daemon: one that never ends fails its test, and does not keep the tests' process too
    thread = threading.Thread(target=lambda: asyncio.run(listener.serve(sockets)), name="server", daemon=True)
    thread.start()
    try:
        until(lambda: listener.started or not thread.is_alive(), "the server")
        port = sockets[0].getsockname()[1]
        yield Live(f"http://127.0.0.1:{port}", port, listener, llava)
    finally:
        listener.should_exit = True
        thread.join(PATIENCE)
        told = _doing(thread)
        app.state.server.close()
        for sock in sockets:
            sock.close()
        assert not thread.is_alive(), f"the server did not end; {told}"


def _doing(thread: threading.Thread) -> str:
    """Where a thread is, and every task of its event loop with it."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "its thread has ended"
    here, loop = "".join(traceback.format_stack(frame)), None
    while frame is not None and loop is None:
        own = frame.f_locals.get("self")
        loop, frame = own if isinstance(own, asyncio.AbstractEventLoop) else None, frame.f_back
    tasks = asyncio.all_tasks(loop) if loop is not None else set()
    stacks = [f"{task!r}\n{''.join(map(str, task.get_stack()))}" for task in tasks]
    return f"its thread is at\n{here}\nits tasks are\n" + "\n".join(stacks)


def png(colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Pictures.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def data_uri(colour: str = "red", kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(png(colour)).decode()}"


FULL = os.environ.get("TRIFOCAL_FULL") == "1"  # the sizes of `make test-hostile`, not those of every run


def full(count: int, ci: int) -> int:
    """A test's size: ``count`` when everything is asked for, ``ci`` in every run."""
    return count if FULL else ci


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of a refusal, which has the shape of the dialect that was spoken, as OpenAI's."""
    assert response.status_code == status, response.text[:300]
    assert response.headers["content-type"].startswith("application/json")
    assert len(response.content) <= 8192
    body, error = response.json(), response.json()["error"]
    match dialect_of(response.request.url.path):
        case "Ollama":
            assert set(body) == {"error"}
            error = {"message": error, "type": None, "param": None, "code": None}
        case "Anthropic":
            assert (set(body), body["type"]) == ({"type", "error"}, "error")
            error = {**error, "param": None, "code": None}
        case "OpenAI":
            assert set(body) == {"error"}
            assert isinstance(error["code"], str)
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return dict(error)


def events_of(response: httpx.Response) -> list[Any]:
    """The data of a stream's events."""
    assert response.status_code == 200, response.text[:300]
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def user(*content: Any) -> dict[str, Any]:
    """A message of a user in OpenAI's shape."""
    return {
        "role": "user",
        "content": content[0] if len(content) == 1 and isinstance(content[0], str) else list(content),
    }
