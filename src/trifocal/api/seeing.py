"""``trifocal see``: the `looks` and `see` of one vision over HTTP, behind the same guards as the model's server."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from trifocal.api.admission import Admission
from trifocal.api.caller import ClientGone, caller_of, while_connected
from trifocal.api.errors import Refusal, explain, refuse, server_busy, shutting_down
from trifocal.api.guard import AccessCheck, BodyLimit, Reporter
from trifocal.api.host import Host, WorkerPool
from trifocal.api.needs import check_needs, needs
from trifocal.api.places import nearest
from trifocal.api.room import Room
from trifocal.api.server import Listener, addresses, listening, log_to_stderr
from trifocal.api.settings import ServerSettings
from trifocal.api.strict_json import loads
from trifocal.api.wire import Json
from trifocal.errors import BadImage, TrifocalError
from trifocal.images import Image, Limits, check_size
from trifocal.model.settings import Settings
from trifocal.placement import Placed
from trifocal.vision import AT_ONCE, Gallery, Look, Vision, open_vision
from trifocal.vision.wire import PROTOCOL, Size, layout_to, name_of, pack, picture_from, rows_digest, unpack

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["SeeingApp", "serve_vision"]

log = logging.getLogger("trifocal.api")
SLOTS = 2 * AT_ONCE  # requests whose pictures can go through one pass, and as many that decode theirs meanwhile
Result = TypeVar("Result")
Side = Annotated[int, Field(ge=1, le=1 << 20)]
Prompt = Annotated[list[tuple[Side, Side, Annotated[int, Field(ge=0, le=1 << 16)]]], Field(max_length=4096)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _LooksRequest(_Wire):
    """The sizes of a prompt's pictures."""

    identity: str
    sizes: Prompt


class _Asked(_Wire):
    """A picture to be seen: the name of its pixels and of its look, and which of which prompt's it is."""

    digest: str
    way: str
    prompt: Annotated[int, Field(ge=0)]
    at: Annotated[int, Field(ge=0)]


class _SeeRequest(_Wire):
    """Pictures to be seen."""

    identity: str
    prompts: Annotated[list[Prompt], Field(max_length=64)]
    looks: Annotated[list[_Asked], Field(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True)
class _Blank:
    """The size of a picture whose pixels are not here: all that a look may ask for."""

    width: int
    height: int
    mode: str = "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


class Seeing(Host):
    """One vision, its gallery and its worker threads."""

    def __init__(self, name: str, vision: Vision, settings: ServerSettings, cache_bytes: int) -> None:
        slots, per_key = settings.slots or SLOTS, settings.per_key if settings.keys else None
        super().__init__(
            settings,
            {
                "answers": _worker_pool(slots, settings.queue, per_key, "answer"),
                "light": _worker_pool(1, settings.queue, per_key, "answer-light"),
            },
        )
        self.name, self.vision, self.gallery = name, vision, Gallery(vision, cache_bytes)
        self._room = Room(settings.decoded_bytes, settings.deadline)

    @property
    def facts(self) -> dict[str, Any]:
        """What is told of the vision."""
        parts = self.vision.parts if isinstance(self.vision, Placed) else ()
        return {
            "protocol": PROTOCOL,
            "name": self.name,
            "hidden": self.vision.hidden,
            "identity": self.vision.identity,
            "body_bytes": self.settings.body_bytes,
            "parts": [{"name": part.name, "what": part.what, "dtype": part.dtype} for part in parts],
        }

    async def work(self, request: Request, do: Callable[[], Result]) -> Result:
        """What ``do`` gives, in a thread of the pool that the request's route names.

        Raises:
            Refusal: there is no room, or the server ends.
            TimeoutError: the deadline came.
            ClientGone: nobody waits for it any more.
        """
        if self.draining:
            raise shutting_down()
        pool = self.pools[request.scope["trifocal.needs"].pool]
        place = pool.admission.enter(caller_of(request))

        async def working() -> Result:
            async with asyncio.timeout(self.settings.deadline):
                await place.run(0, self.settings.queue_wait)
                return await place.during(pool.threads, do)

        try:
            return await while_connected(request, working())
        finally:
            place.release()

    def looks(self, asked: _LooksRequest) -> list[dict[str, Any]]:
        """How pictures of these sizes will be seen in one prompt."""
        self._check(asked.identity)
        told = self.gallery.looks(_blanks(asked.sizes, self._limits))
        return [{"layout": layout_to(look.layout), "way": name_of(look)} for look in told]

    def see(self, body: bytes, scope: str) -> bytes:
        """The rows of the pictures in a body, which others' pictures go through the tower with."""
        tensors, text = unpack(body)
        asked = _validated(_SeeRequest, text.encode())
        self._check(asked.identity)
        files = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
        with self._room.lease() as lease:
            limits = replace(self._limits, taking=lease.take)
            looks = [self._look(number, asked, files, limits) for number in range(len(asked.looks))]
            rows = self.gallery.rows(looks, scope=scope)
        dtype = str(rows[0].dtype).removeprefix("torch.")
        facts = {"identity": self.vision.identity, "dtype": dtype, "digest": rows_digest(rows)}
        return pack({str(number): each for number, each in enumerate(rows)}, facts)

    @property
    def _limits(self) -> Limits:
        return Limits(bytes=self.settings.image_bytes)

    def _look(self, number: int, asked: _SeeRequest, files: dict[str, bytes], limits: Limits) -> Look:
        """How the picture ``number`` of a request is seen, which must be what its client was told."""
        told, name = asked.looks[number], f"images[{number}]"
        if told.prompt >= len(asked.prompts) or told.at >= len(asked.prompts[told.prompt]):
            raise refuse("invalid_value", f"looks[{number}]: there is no such picture in its prompt")
        sizes = asked.prompts[told.prompt]
        mine = [file for frame in range(max(1, sizes[told.at][2])) if (file := files.get(f"{number}.{frame}"))]
        image = picture_from(mine, sizes[told.at], told.digest, name, limits)
        images = [*_blanks(sizes, limits)]
        images[told.at] = image
        look = self.gallery.looks(images)[told.at]
        if name_of(look) != told.way:
            raise Refusal(409, "other_look", f"{name} would be seen in another way than the one that was named")
        return look

    def _check(self, identity: str) -> None:
        if identity != self.vision.identity:
            raise Refusal(409, "other_vision", "another vision is served here than the one that was asked for")


class SeeingApp(Starlette):
    """The routes around one vision."""

    def __init__(self, host: Seeing) -> None:
        routes = [
            Route("/livez", _livez),
            Route("/readyz", _readyz),
            Route("/metrics", _metrics),
            Route("/v1/vision", _facts),
            Route("/v1/vision/looks", _looks, methods=["POST"]),
            Route("/v1/vision/see", _see, methods=["POST"]),
        ]
        check_needs(routes)
        kinds = (Exception, TrifocalError, Refusal, HTTPException, MemoryError, TimeoutError)
        super().__init__(routes=routes, exception_handlers=dict.fromkeys(kinds, _answer_error))
        self.state.server = host

    def build_middleware_stack(self) -> ASGIApp:
        """The guards around the routes, the outermost last."""
        host: Seeing = self.state.server
        return Reporter(
            AccessCheck(BodyLimit(super().build_middleware_stack(), host), host.settings), host, self.router.routes
        )


def serve_vision(settings: Settings, server: ServerSettings) -> None:
    """Loads the checkpoint's vision half, serves it until a signal ends it, and frees it.

    Raises:
        UsageError: an address that is taken.
        TrifocalError: the vision can't be loaded.
    """
    with listening(server) as sockets:
        log_to_stderr(server)
        checkpoint = settings.find()
        vision = open_vision(checkpoint, settings.tower, settings.projector, allow_pickle=settings.allow_pickle)
        host = Seeing(checkpoint.name, vision, server, settings.cache_bytes)
        places = ", ".join(addresses(server, sockets))
        print(f"the vision of {checkpoint.name} is served at {places} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        Listener(SeeingApp(host), server).run(sockets=sockets)
    host.close()
    if any(thread.name.startswith("answer") for thread in threading.enumerate()):
        os._exit(0)  # a pass that can't be interrupted is still under way; its client is gone


@needs(key=False)
async def _livez(_: Request) -> Response:
    return Json({"status": "ok"})


@needs(key=False)
async def _readyz(request: Request) -> Response:
    if _host(request).draining:
        raise server_busy("shutting_down", "the server is shutting down")
    return Json({"status": "ok"})


async def _metrics(request: Request) -> Response:
    return Response(_host(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _facts(request: Request) -> Response:
    return Json(_host(request).facts)


@needs(pool="light")
async def _looks(request: Request) -> Response:
    host, body = _host(request), await request.body()

    def looks() -> dict[str, Any]:
        asked = _validated(_LooksRequest, body)
        return {"identity": host.vision.identity, "looks": host.looks(asked)}

    return Json(await host.work(request, looks))


@needs(pool="answers")
async def _see(request: Request) -> Response:
    host, body = _host(request), await request.body()
    scope = host.scope(caller_of(request))
    return Response(await host.work(request, lambda: host.see(body, scope)), media_type="application/octet-stream")


def _host(request: Request) -> Seeing:
    host: Seeing = request.app.state.server
    return host


def _worker_pool(slots: int, queue: int, per_key: int | None, name: str) -> WorkerPool:
    return WorkerPool(Admission(slots, queue, per_key), ThreadPoolExecutor(slots, thread_name_prefix=name))


Asked = TypeVar("Asked", bound=_Wire)


def _validated(kind: type[Asked], body: bytes) -> Asked:
    try:
        loads(body)  # refuses what no JSON of a client's is, before pydantic reads it
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise refuse("invalid_value", f"{place or 'body'}: {first['msg']}") from error


def _blanks(sizes: Sequence[Size], limits: Limits) -> list[Image]:
    """Pictures of these sizes without pixels.

    Raises:
        BadImage: a size over the limits.
    """
    return [_blank(size, f"images[{number}]", limits) for number, size in enumerate(sizes)]


def _blank(size: Size, name: str, limits: Limits) -> Image:
    width, height, frames = size
    check_size(width, height, name=name, limits=limits)
    pixels = cast("Picture", _Blank(width, height))
    return Image(pixels, name, frames=(pixels,) * frames)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        raise error  # nobody is there to be told
    if isinstance(error, BadImage):
        error = Refusal(400, error.rule, error.detail, param=error.name)
    elif isinstance(error, HTTPException):
        words = nearest(request.scope["path"], request.app.router.routes)
        if error.status_code == 405:
            words = f"{(error.headers or {}).get('Allow', 'another method')} is needed here"
        error = Refusal(error.status_code, "not_found" if error.status_code == 404 else "method_not_allowed", words)
    refusal = explain(error)
    return Json(refusal.body(), refusal.status, refusal.headers)
