"""Listening: sockets, signals and the end. The app itself is `trifocal.api.app`."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from trifocal.api.accepting import SPARE, LimitedListener, room_for_connections
from trifocal.api.app import create_app
from trifocal.api.guard import LastWord, LogFormat
from trifocal.api.loading import Loading
from trifocal.api.models import offers_of
from trifocal.api.protocol import Sliced, protocol
from trifocal.api.settings import ServerSettings
from trifocal.errors import UsageError
from trifocal.model.opening import Apart, Opened, open_model
from trifocal.model.settings import Settings

__all__ = ["Listener", "addresses", "listen", "listening", "log_to_stderr", "serve"]

log = logging.getLogger("trifocal.api")
BACKLOG = 2048
LAST_WORDS = 1.0  # seconds in which what was cancelled tells its client so
# seconds that a thread keeps the interpreter: at Python's own 0.005 every send waits that long for the model's thread
SWITCH = 0.0002
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # how this machine itself asks for an address that is all of them


class Listener(uvicorn.Server):
    """uvicorn, told how to stop: refuse what is new, let run what runs for a while, then go.

    The first signal drains; the second one leaves at once.
    """

    def __init__(self, app: Starlette, settings: ServerSettings) -> None:
        config = uvicorn.Config(
            LastWord(app),
            http=protocol(settings.header_seconds, room_for_connections(settings)),
            ws=Sliced,
            ws_max_size=settings.body_bytes,
            ws_per_message_deflate=False,  # a megabyte of it can become a gigabyte
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            h11_max_incomplete_event_size=settings.header_bytes + 1024,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            date_header=True,
            proxy_headers=False,
            lifespan="off",
        )
        super().__init__(config)
        self.app = app
        self.loading: Loading | None = None  # the model that the app waits for
        self._leaving: asyncio.Task[None] | None = None
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does: drain, and at the second one leave."""
        self._signals += 1
        self.app.state.server.draining = True
        if self._signals > 1:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's heartbeat, ten times a second: takes the model once it is there, drains after a signal."""
        if self.loading is not None and not self.loading.arrived():
            self.should_exit = True
        if self.app.state.server.draining and self._leaving is None:
            self._leaving = asyncio.ensure_future(self._leave())
        return bool(await super().on_tick(counter))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's end, and the end of every connection with it: who reads nothing holds nobody here.

        A task that wants to say something to such a client waits for it however often it is cancelled.
        """
        await super().shutdown(sockets)
        if self.server_state.tasks and not self.force_exit:
            await asyncio.wait(set(self.server_state.tasks), timeout=LAST_WORDS)
        for connection in set(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # in which the connections learn that they are lost

    async def _leave(self) -> None:
        log.info("draining")
        await self.app.state.server.drain()
        await asyncio.sleep(0.05)  # so that the last events are on their way
        self.should_exit = True


def listen(settings: ServerSettings) -> list[socket.socket]:
    """The sockets to serve on.

    Raises:
        UsageError: an address that is taken or not ours; the message names it.
    """
    ports = [settings.port, *([settings.legacy_port] if settings.legacy_port is not None else [])]
    sockets: list[socket.socket] = []
    for port in ports:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        # named TCP, or asyncio would leave Nagle on: it costs 40 ms an answer
        sock = LimitedListener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.most = room_for_connections(settings) + SPARE
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, port))
            sock.listen(BACKLOG)  # at once: two servers that still load could both be bound
        except OSError as error:
            for other in (sock, *sockets):
                other.close()
            taken = "it is in use already" if error.errno == errno.EADDRINUSE else "it can't be listened on"
            raise UsageError(f"{settings.host}:{port}: {taken}; choose another with --port") from error
        sockets.append(sock)
    return sockets


@contextmanager
def listening(settings: ServerSettings) -> Iterator[list[socket.socket]]:
    """The sockets to serve on, closed in the end whatever came between; raises as `listen` does."""
    sockets = listen(settings)
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def serve(
    settings: Settings,
    server: ServerSettings,
    page: Callable[[], Sequence[BaseRoute]] | None = None,
    ready: Callable[[str], None] | None = None,
    others: Sequence[str] = (),
) -> None:
    """Loads the model, serves it until a signal ends it, and frees it. What needs no model is answered meanwhile.

    ``others`` are checkpoints that are offered beside it, and loaded when somebody asks for them.

    ``page`` gives the routes of a page for people, see `trifocal.api.app.create_app`. ``ready`` is told the page's
    address as soon as the model is there.

    Raises:
        UsageError: an address that is taken.
        TrifocalError: the model can't be loaded.
    """
    offers = offers_of(settings, [settings.checkpoint, *others])
    with listening(server) as sockets:
        log_to_stderr(server)
        sys.setswitchinterval(SWITCH)
        app = create_app(None, server, page() if page else (), offers)
        listener = Listener(app, server)

        def came(llava: Opened) -> None:
            models = app.state.server.models
            (models.took if models else app.state.server.take)(llava)
            places = ", ".join(addresses(server, sockets))
            address = f"http://{_host(_LOOPBACK.get(server.host, server.host))}:{sockets[0].getsockname()[1]}/"
            shown = f"; the page: {address}" if page else ""
            names = ", ".join(each.name for each in app.state.server.all) + (" are" if others else " is")
            print(f"{names} served at {places}{shown} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            if ready:
                ready(address)

        apart = Apart(server.replicas, server.step_limit)
        listener.loading = loading = Loading(lambda: open_model(settings, apart), came)
        listener.run(sockets=sockets)
    app.state.server.close()
    if app.state.server.models:
        app.state.server.models.close()
    if loading.error or not app.state.server.models:
        loading.close()
    if any(thread.name.startswith(("answer", "fetch", "load")) for thread in threading.enumerate()):
        os._exit(0)  # a step that can't be interrupted is still under way; its client is gone


def addresses(server: ServerSettings, sockets: Sequence[socket.socket]) -> list[str]:
    """Where it is served, for people."""
    return [f"http://{_host(server.host)}:{sock.getsockname()[1]}" for sock in sockets]


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def log_to_stderr(settings: ServerSettings) -> None:
    """Has the server's log on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormat(as_json=settings.log_format == "json"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
