"""Who may come in: host names, origins, keys, and the size and speed of what they send. Plain ASGI, before routing."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trifocal.api.caller import ClientGone
from trifocal.api.errors import Refusal, explain, server_busy, shutting_down
from trifocal.api.host import Host
from trifocal.api.needs import NOTHING, Needs, needs_of
from trifocal.api.settings import ServerSettings, hash_key
from trifocal.api.wire import dump
from trifocal.errors import TrifocalError

__all__ = ["AccessCheck", "BodyLimit", "LastWord", "Reporter", "Sockets"]

log = logging.getLogger("trifocal.api")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ONCE = (  # what decides who may come in and how a body is read
    b"origin",
    b"sec-fetch-site",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"transfer-encoding",
    b"authorization",
    b"x-api-key",
    b"api-key",
)
_HEADERS = re.compile(r"[A-Za-z0-9_-]{1,64}(?: ?, ?[A-Za-z0-9_-]{1,64}){0,63}")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'; object-src 'none'"
)


class LastWord:
    """Around whole applications: what gets past their own layers is our error object, not the web server's plain text.

    What is no `Exception`, as when a task is cancelled, is passed on when the client has been told.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except BaseException as error:
            if not begun and scope["type"] in ("http", "websocket"):
                with suppress(Exception):  # nobody is there any more
                    await respond(scope, receive, send, explain(error))
            if not isinstance(error, Exception):
                raise
            log.error("bug", extra={"facts": {"error": type(error).__name__, "where": _where(error)}})


class Reporter:
    """An application's outermost layer: a request id, an error object for what nobody caught, a log line, a count."""

    def __init__(self, app: ASGIApp, server: Host, routes: Sequence[BaseRoute]) -> None:
        self._app, self._server, self._routes = app, server, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        scope["trifocal.request_id"] = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["trifocal.route"], scope["trifocal.needs"] = matched(self._routes, scope)
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                ours = [pair for pair in self._headers(scope) if pair[0] not in own]
                message = {**message, "headers": [*message["headers"], *ours]}
            elif message["type"] == "websocket.http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except ClientGone:
            status = status or 499
        except Exception as error:
            refusal = explain(error)
            if not status:
                await respond(scope, receive, sending, refusal)
            self._log_bug(scope, error, refusal)
        finally:
            self._server.metrics.requests.labels(scope["trifocal.route"], str(status or 499)).inc()
            log.info(
                "request",
                extra={
                    "facts": {
                        "id": scope["trifocal.request_id"],
                        "method": scope.get("method", "WEBSOCKET"),
                        "route": scope["trifocal.route"],
                        "status": status or 499,
                        "seconds": round(time.perf_counter() - started, 4),
                    }
                },
            )

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        pairs = {**_SAFE, "content-security-policy": PAGE_POLICY, "x-request-id": scope["trifocal.request_id"]}
        origin = header(scope, b"origin")
        if origin and origin in self._server.settings.origins:
            pairs |= {
                "access-control-allow-origin": origin,
                "access-control-expose-headers": "x-request-id, retry-after, x-trifocal-notes",
                "vary": "origin",
            }
        return [(name.encode(), value.encode()) for name, value in pairs.items()]

    def _log_bug(self, scope: Scope, error: Exception, refusal: Refusal) -> None:
        """Where it happened, never what was in it."""
        if refusal.status < 500 or isinstance(error, Refusal | TrifocalError):
            return
        facts = {"id": scope["trifocal.request_id"], "error": type(error).__name__, "where": _where(error)}
        log.error("bug", extra={"facts": facts})
        log.debug("bug", exc_info=error)


class AccessCheck:
    """Headers, host, origin and key, all decided before a byte of the body is read."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        own = (
            ()
            if settings.host in ("0.0.0.0", "::")
            else (f"[{settings.host}]" if ":" in settings.host else settings.host,)
        )
        self._hosts = {name.lower() for name in (*_LOOPBACK, *own, *settings.public_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._check(scope)
                if scope.get("method") == "OPTIONS" and header(scope, b"origin") in self._settings.origins:
                    await preflight(scope, send)
                    return
                self._check_key(scope)
            except Refusal as refusal:
                await respond(scope, receive, send, refusal)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        self._check_headers(scope)
        self._check_host(scope)
        self._check_origin(scope)

    def _check_headers(self, scope: Scope) -> None:
        count, size = len(scope["headers"]), sum(len(name) + len(value) for name, value in scope["headers"])
        settings = self._settings
        if count > settings.header_count or size + len(scope["raw_path"]) > settings.header_bytes:
            raise Refusal(
                431,
                "headers_too_large",
                f"{count} headers of {size} bytes; allowed are {settings.header_count} of {settings.header_bytes}",
            )

        names = [name for name, _ in scope["headers"]]
        doubled = next((name for name in _ONCE if names.count(name) > 1), None)
        if doubled or (b"content-length" in names and b"transfer-encoding" in names):
            what = f"the header {doubled.decode()} stands there twice" if doubled else "a body has two lengths"
            raise Refusal(400, "invalid_request", f"{what}; programs on the way may read that in another way")

    def _check_host(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        name = re.sub(r":\d{1,5}$", "", hosts[0].decode("latin-1").lower()) if len(hosts) == 1 else ""
        if name not in self._hosts:
            raise Refusal(
                403, "host_not_allowed", "the server is not known by this host name; name it with --public-host"
            )

    def _check_origin(self, scope: Scope) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            return
        origin = header(scope, b"origin")
        if origin in self._settings.origins and origin:
            return
        own = origin in (f"http://{header(scope, b'host')}", f"https://{header(scope, b'host')}")
        foreign = header(scope, b"sec-fetch-site") in ("cross-site", "same-site")
        if (origin and not own) or foreign:
            raise Refusal(403, "origin_not_allowed", "web pages of this origin may not call the server; see --origin")

    def _check_key(self, scope: Scope) -> None:
        client = scope.get("client")
        scope["trifocal.caller"] = f"address {client[0]}" if client else "address -"
        if not self._settings.keys:
            return
        given = hash_key(_given_key(scope))
        known = [hmac.compare_digest(given, key) for key in self._settings.keys]
        if any(known):
            scope["trifocal.caller"] = f"key {given[:16]}"
        elif scope["trifocal.needs"].key:
            raise Refusal(401, "invalid_api_key", "a key is needed: Authorization: Bearer KEY (or x-api-key: KEY)")


class Sockets:
    """Bounds the websockets that are open at a time, all of them and each caller's."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        caller, settings = scope["trifocal.caller"], self._settings
        if self._open[caller] >= settings.sockets_per_caller or self._open.total() >= settings.sockets:
            allowed = f"{settings.sockets_per_caller} a caller and {settings.sockets} in all"
            await respond(scope, receive, send, server_busy(message=f"too many websockets are open: {allowed}"))
            return
        self._open[caller] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= Counter({caller: 1})


class BodyLimit:
    """Reads a body whole before anything else happens: bounded, and not slower than a person on a train.

    All bodies that are held at a time are bounded together, too. Where a route's requests wait for
    a pool, there must be room in its queue: in a crowd, reading bodies first would cost seconds.
    """

    def __init__(self, app: ASGIApp, server: Host) -> None:
        self._app, self._server, self._settings = app, server, server.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                self._check(scope)
                await self._read(receive, body)
            except Refusal as refusal:
                await respond(scope, receive, send, refusal, linger=not self._server.draining)
                return
            await self._pass_on(scope, receive, send, bytes(body))
        finally:
            self._server.held -= len(body)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check(self, scope: Scope) -> None:
        pool = scope["trifocal.needs"].pool
        if pool is not None:
            self._server.pools[pool].admission.check(scope["trifocal.caller"])
        if header(scope, b"content-encoding") not in ("", "identity"):
            raise Refusal(415, "unsupported_media_type", "compressed bodies are not taken")
        length = header(scope, b"content-length")
        if length and (not length.isdecimal() or int(length[:19]) > self._settings.body_bytes):
            raise self._too_large(f", got {length[:19]}")

    async def _read(self, receive: Receive, body: bytearray) -> None:
        """Fills ``body``, which counts as held from its first byte on."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        until = loop.time() + settings.body_seconds
        goal, goal_until = settings.body_progress_bytes, loop.time() + settings.body_progress_seconds
        while True:
            message = await self._piece(receive, min(until, goal_until))
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            body += piece
            self._server.held += len(piece)
            if len(body) > settings.body_bytes:
                raise self._too_large("")
            if self._server.held > settings.held_bytes:
                raise server_busy(message="too many large requests are under way")
            if not message.get("more_body", False):
                return
            if len(body) >= goal:
                goal, goal_until = (
                    len(body) + settings.body_progress_bytes,
                    loop.time() + settings.body_progress_seconds,
                )

    async def _piece(self, receive: Receive, until: float) -> Message:
        """What comes next of a body, before the time ``until`` and the server's end."""
        server = self._server
        try:
            async with asyncio.timeout_at(0 if server.cut else until) as wait:
                server.reading.add(wait)
                try:
                    return await receive()
                finally:
                    server.reading.discard(wait)
        except TimeoutError as error:
            if server.cut:
                raise shutting_down() from error
            raise Refusal(408, "request_timeout", "the body came too slowly") from error

    def _too_large(self, got: str) -> Refusal:
        return Refusal(413, "request_too_large", f"a body may have {self._settings.body_bytes} bytes{got}")


def _where(error: BaseException) -> str:
    """Module and line from which an error came."""
    trace, where = error.__traceback__, "?"
    while trace:
        where = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


async def respond(scope: Scope, receive: Receive, send: Send, refusal: Refusal, *, linger: bool = False) -> None:
    """Answers with the error object. ``linger`` reads on a little, so that the client sees the answer, not a reset."""
    if scope["type"] == "websocket":
        await _deny(scope, send, refusal)
        return
    body = dump(refusal.body(scope["path"])).encode()
    headers = {**refusal.headers, "content-type": "application/json", "content-length": str(len(body))}
    start = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": start})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body, "more_body": linger})
    if linger:
        try:
            async with asyncio.timeout(2):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        break
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _deny(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Refuses a websocket before it is one, with the error object where the server can say it."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})
        return
    body = dump(refusal.body(scope["path"])).encode()
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def preflight(scope: Scope, send: Send) -> None:
    """Answers a browser that asks whether a listed page may call; the origin itself is added by `Reporter`.

    The headers that it asks for are allowed: clients in pages send a dozen of their own, and none has a power here.
    """
    asked = header(scope, b"access-control-request-headers")
    allowed = asked if _HEADERS.fullmatch(asked) else "authorization, content-type, x-api-key, x-request-id"
    headers = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
        (b"access-control-allow-headers", allowed.encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def matched(routes: Iterable[BaseRoute], scope: Scope) -> tuple[str, Needs]:
    """The route that will answer, by its path, and what it needs: what routing itself decides."""
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return getattr(route, "path", "") or "/", needs_of(route) or NOTHING
    return "none", NOTHING


def header(scope: Scope, name: bytes) -> str:
    """A header's value; empty where it is not there, or there twice."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _given_key(scope: Scope) -> str:
    kind, _, key = header(scope, b"authorization").partition(" ")
    return key.strip() if kind.lower() == "bearer" else header(scope, b"x-api-key") or header(scope, b"api-key")


class LogFormat(logging.Formatter):
    """A request's facts as ``name=value`` words or as one JSON object a line."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever is in the record."""
        facts: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        if self._json:
            return json.dumps(facts, ensure_ascii=True)
        return " ".join(f"{name}={json.dumps(value) if ' ' in str(value) else value}" for name, value in facts.items())
