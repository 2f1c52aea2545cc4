"""The front's replica: our server's app over a model whose halves are replicas elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from trifocal.api.app import create_app
from trifocal.api.server import SWITCH, log_to_stderr
from trifocal.deploy.handles import ReplicaPlace, Watch, exchange_over
from trifocal.deploy.plan import Plan
from trifocal.engines.roster import Roster
from trifocal.engines.spread import Place, Spread
from trifocal.model.finding import find
from trifocal.model.llava import Llava, put_together
from trifocal.vision.elsewhere import vision_over
from trifocal.web import routes

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

__all__ = ["Fronted"]

LOADING = 3600.0  # seconds in which the language model is loaded: a large one is fetched first


class Fronted:
    """An ASGI app: the server of ``trifocal serve`` with its page, its dialects and its guards.

    It is made when the language model and the vision are loaded; until then Ray Serve has no front to pass requests to.
    """

    def __init__(self, plan: Plan) -> None:
        from ray import serve

        handles = {name: serve.get_deployment_handle(name) for name in plan.language.names}
        seeing = serve.get_deployment_handle("seeing")
        self._watch = Watch(handles)
        with ThreadPoolExecutor(1) as pool:  # a handle's answer can't be waited for in the event loop that we are in
            llava, self._roster = pool.submit(self._opened, plan, handles, seeing).result()
        settings = plan.front.settings(plan.language)
        log_to_stderr(settings)
        sys.setswitchinterval(SWITCH)
        self._app = create_app(llava, settings, routes() if plan.front.page else ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Requests, and the word that all ends."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        while (message := await receive())["type"] != "lifespan.shutdown":
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
        await self._app.state.server.drain()
        self._watch.stop()
        self._roster.close()
        self._app.state.server.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _opened(
        self, plan: Plan, handles: Mapping[str, DeploymentHandle], seeing: DeploymentHandle
    ) -> tuple[Llava, Roster[Place]]:
        settings = plan.settings
        found = find(settings)
        places: list[Place] = [ReplicaPlace(name, handle) for name, handle in handles.items()]
        told = plan.language
        roster = Roster(places, told.least, told.idle, told.overload, self._watch.wake)
        facts: dict[str, Any] = handles[places[0].name].facts.remote().result(timeout_s=LOADING)
        engine = Spread(found.recipe, facts, roster)
        self._watch.start(roster)
        vision = vision_over({"seeing": exchange_over(seeing)})
        return put_together(settings, found, engine, vision), roster
