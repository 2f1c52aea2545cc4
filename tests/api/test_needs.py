"""What a route needs stands on it: one that does not say where its requests wait is not served at all."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, Request
from fastapi.responses import Response
from live import make_llava, running
from starlette.routing import Mount, Route

from trifocal.api.app import create_app
from trifocal.api.needs import NOTHING, Needs, needs, needs_of
from trifocal.api.serving import Serving
from trifocal.api.settings import ServerSettings
from trifocal.api.wire import Draft, Json
from trifocal.errors import UsageError

router = APIRouter()


@router.post("/told")
@needs(pool="light")
async def told(request: Request, server: Serving) -> Response:
    """Waits in the light pool, and works there."""
    return Json({"count": await server.count(request, Draft("user", ("four",)))})


@router.post("/careless")
@needs()
async def careless(request: Request, server: Serving) -> Response:
    """Says that it needs nothing, and works all the same."""
    return Json({"count": await server.count(request, Draft("user", ("four",)))})


async def silent(request: Request) -> Response:
    return Response()


def test_a_route_says_what_it_needs() -> None:
    assert needs_of(router.routes[0]) == Needs("light")
    assert needs_of(Route("/read", silent, methods=["GET"])) == NOTHING
    assert needs_of(Route("/send", silent, methods=["POST"])) is None
    assert needs_of(Route("/page", needs(key=False)(lambda request: Response()), methods=["GET"])) == Needs(key=False)


@pytest.mark.parametrize(
    "route",
    [
        Route("/forgotten", silent, methods=["POST"]),
        Route("/forgotten", silent, methods=["GET", "DELETE"]),
        Mount("/forgotten", routes=[Route("/inside", silent, methods=["POST"])]),
    ],
)
def test_a_route_that_does_not_say_it_is_refused_before_anything_is_served(route: Route | Mount) -> None:
    with pytest.raises(UsageError, match="the route /forgotten does not say what it needs"):
        create_app(make_llava(), ServerSettings(), [route])


def test_work_waits_where_the_route_says_or_not_at_all() -> None:
    with running(make_llava(), router.routes) as live, live.client() as client:
        assert client.post("/told").json() == {"count": 5}
        assert client.post("/careless").status_code == 500
        assert live.settled()
