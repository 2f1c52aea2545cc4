"""Streamed answers: written as they grow, ended by an event whatever happens, dropped when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["LINES", "STREAMED", "EventStream", "event"]

# what a route's documentation says of its 200: JSON, or a stream when asked for
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {}}}}}
LINES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {"schema": {}}}}}


def event(data: str, name: str | None = None) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"


class EventStream(Response):
    """Writes an async generator's texts and closes it when the client leaves or stops reading."""

    def __init__(
        self,
        texts: AsyncGenerator[str, None],
        patience: float,
        media_type: str = "text/event-stream",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers={"x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._texts, self._patience = texts, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The response as an ASGI application."""
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                await writing
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            await self._texts.aclose()

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async with aclosing(self._texts):
            async for text in self._texts:
                async with asyncio.timeout(self._patience):
                    await send({"type": "http.response.body", "body": text.encode("utf-8"), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
