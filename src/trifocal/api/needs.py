"""What a route needs besides its path: where its requests wait, and whether a key. It stands on the route itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.routing import BaseRoute

from trifocal.errors import UsageError

__all__ = ["NOTHING", "Needs", "Pool", "check_needs", "needs", "needs_of"]

Pool = Literal["answers", "light"]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Needs:
    """``pool`` is where its requests wait for their turn.

    That is ``answers`` (a place, where the model is needed), ``light`` (what only reads and counts), or None: answered
    at once. ``key`` is off for what everybody may ask, whether or not the server has keys.
    """

    pool: Pool | None = None
    key: bool = True


NOTHING = Needs()


def needs(*, pool: Pool | None = None, key: bool = True) -> Callable[[Endpoint], Endpoint]:
    """Says it of the function, or the application, that answers on a route; stands below the route's own decorator."""

    def marked(endpoint: Endpoint) -> Endpoint:
        endpoint.needs = Needs(pool, key)  # type: ignore[attr-defined]
        return endpoint

    return marked


def needs_of(route: BaseRoute) -> Needs | None:
    """What a route needs; None where it must say so and does not: whoever sends something may have to wait."""
    told: Needs | None = getattr(getattr(route, "endpoint", None), "needs", None)
    only_reads = (getattr(route, "methods", None) or {"POST"}) <= {"GET", "HEAD"}
    return told or (NOTHING if only_reads else None)


def check_needs(routes: Sequence[BaseRoute]) -> None:
    """Refuses a route that does not say where its requests wait, before the first of them comes.

    Raises:
        UsageError: there is one.
    """
    for route in routes:
        if needs_of(route) is None:
            where = getattr(route, "path", "") or type(route).__name__
            raise UsageError(f"the route {where} does not say what it needs: put @needs(pool=...) on its function")
