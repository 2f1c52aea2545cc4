"""Who asks, what his request's route says of it, and whether he is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from trifocal.api.needs import Pool

__all__ = ["ClientGone", "caller_of", "pool_of", "while_connected"]

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client left before its answer was ready; there is nobody to tell."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled as soon as the client leaves.

    Raises:
        ClientGone: it left.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        raise ClientGone
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def pool_of(request: Request, pool: Pool | None = None) -> Pool:
    """Where this request's route says that its requests wait: ``pool``, where it must be that."""
    told: Pool | None = request.scope["trifocal.needs"].pool
    assert told is not None, "a route that works says where its requests wait"
    assert pool in (None, told), f"its route says that its requests wait for {told}, not for {pool}"
    return told


def caller_of(request: Any) -> str:
    """Who asks: the digest of the key, or the address where there is no key."""
    return str(request.scope.get("trifocal.caller", "-"))
