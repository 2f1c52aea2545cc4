"""The app: dialects over one `Server`, behind the guards, with one handler that turns errors into statuses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.routing import APIRoute, APIRouter
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from trifocal import __version__
from trifocal.api import anthropic, health, ollama, openai, places, responses, textgen
from trifocal.api.caller import ClientGone
from trifocal.api.errors import ErrorBody, Refusal, error_model, explain
from trifocal.api.guard import AccessCheck, BodyLimit, Reporter, Sockets
from trifocal.api.model import Model
from trifocal.api.models import Offered
from trifocal.api.needs import check_needs
from trifocal.api.serving import Server, Uses
from trifocal.api.settings import ServerSettings
from trifocal.api.wire import Json, invalid, one_request
from trifocal.errors import TrifocalError

__all__ = ["DIALECTS", "App", "create_app"]

DIALECTS: tuple[APIRouter, ...] = (
    openai.router,
    responses.router,
    textgen.router,
    anthropic.router,
    ollama.router,
    health.router,
    places.router,
)
# what clients say of JSON: nothing, what curl says when nothing is said, or the truth
_JSON_KINDS = ("", "application/x-www-form-urlencoded", "application/json")
_STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 500, 501, 502, 503, 504)


class App(FastAPI):
    """FastAPI with our errors, our guards and an OpenAPI document that lists every status."""

    def __init__(self, server: Server, page: Sequence[BaseRoute]) -> None:
        super().__init__(
            title="Trifocal",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
            responses={status: {"model": ErrorBody} for status in _STATUSES},
        )
        self.state.server = server
        for dialect in DIALECTS:
            for route in dialect.routes:
                self._adopt(route)
        for route in page or [Route("/", places.greeting, name="page")]:
            self._adopt(route)
        check_needs([*(route for dialect in DIALECTS for route in dialect.routes), *page])
        self.add_exception_handler(Exception, _answer_error)
        for kind in (TrifocalError, Refusal, HTTPException, RequestValidationError, MemoryError, TimeoutError):
            self.add_exception_handler(kind, _answer_error)

    def build_middleware_stack(self) -> ASGIApp:
        """The guards around the routes, the outermost last."""
        server: Server = self.state.server
        inner = BodyLimit(Uses(super().build_middleware_stack()), server)
        guarded = AccessCheck(Sockets(inner, server.settings), server.settings)
        return places.Places(Reporter(guarded, server, self.router.routes))

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, in which a bad body is a 400 like any other bad request."""
        if not self.openapi_schema:
            routes = [_documented(route) for route in self.routes]
            document = get_openapi(title=self.title, version=self.version, routes=routes)
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                document.get("components", {}).get("schemas", {}).pop(name, None)
            self.openapi_schema = document
        return self.openapi_schema

    def _adopt(self, route: BaseRoute) -> None:
        """Adds a route; one of FastAPI's as our own, read by our JSON parser."""
        self.router.routes.append(_strict(route, {}) if isinstance(route, APIRoute) else route)


def _documented(route: BaseRoute) -> BaseRoute:
    """The route with every status: pydantic reads the model of each anew, and no server that starts waits for that."""
    if not isinstance(route, APIRoute):
        return route
    # its words are told, or a route whose only answer is a refusal would call that one a success
    words = {status: HTTPStatus(status).phrase for status in _STATUSES}
    model = error_model(route.path)
    return _strict(route, {status: {"model": model, "description": words[status]} for status in _STATUSES})


def _strict(route: APIRoute, responses: dict[int | str, dict[str, Any]]) -> APIRoute:
    """One of FastAPI's routes as our own."""
    return _StrictRoute(
        route.path,
        route.endpoint,
        methods=route.methods,
        name=route.name,
        tags=route.tags,
        summary=route.summary,
        status_code=route.status_code,
        responses={**responses, **route.responses},
        response_class=route.response_class,
    )


class _StrictRequest(Request):
    """A request whose body is read by `strict_json`."""

    async def json(self) -> Any:
        """The body's value; refused where it is not plain bounded JSON."""
        if not hasattr(self, "_json"):
            self._json = await self.app.state.server.read(await self.body())
        return self._json


class _StrictRoute(APIRoute):
    """A route that takes JSON and says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler over our kind of request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            scope = request.scope
            if self.body_field:
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind not in _JSON_KINDS and not kind.endswith("+json"):
                    words = f"the body must be JSON, not {kind}: content-type: application/json"
                    raise Refusal(415, "unsupported_media_type", words)
                others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
                scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
            ours = _StrictRequest(scope, request.receive)
            if self.body_field:
                await ours.json()  # here, since FastAPI would hide what is wrong with it
            with one_request():
                return await handler(ours)

        return strict


def create_app(
    llava: Model | None,
    settings: ServerSettings,
    page: Sequence[BaseRoute] = (),
    offers: Sequence[Offered] = (),
) -> App:
    """The server's app around a loaded model, or one that is still to come (`trifocal.api.serving.Server.take`).

    ``page`` are the routes of a page for people. What of them needs no key says so (`trifocal.api.needs`), so none of
    these may match what it does not serve: a mount at ``/`` would open every unknown path. Several ``offers`` are
    loaded when they are asked for, the first of them by the caller (`trifocal.api.models.Models.took`).

    Raises:
        UsageError: a route that does not say where its requests wait.
    """
    server = Server(llava, settings)
    if len(offers) > 1:
        server.offer(offers)
    return App(server, page)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        raise error  # nobody is there to be told; an answer would be counted as ours
    refusal = _translated(request, error)
    return Json(refusal.body(request.scope["path"]), refusal.status, refusal.headers)


def _translated(request: Request, error: Exception) -> Refusal:
    """FastAPI's and Starlette's own errors as ours."""
    if isinstance(error, RequestValidationError):
        errors = [{**each, "loc": each["loc"][1:]} for each in error.errors()]  # without "body", "query" or "path"
        asked = dict(request.query_params) | request.path_params
        return invalid(errors, asked if error.body is None else error.body)
    if isinstance(error, HTTPException):
        path, routes = request.scope["path"], request.app.router.routes
        methods = (error.headers or {}).get("Allow", "another method")
        codes = {
            404: ("not_found", places.nearest(path, routes)),
            405: ("method_not_allowed", f"{methods} is needed here"),
        }
        code, message = codes.get(error.status_code, ("invalid_request", "the request can't be read"))
        return Refusal(error.status_code, code, message)
    return explain(error)
