"""A plan as an application of Ray Serve: one deployment sees, one is in front, one a replica has the language."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trifocal.api.seeing import SLOTS as SEEN_AT_ONCE
from trifocal.deploy.plan import Front, Language, Plan, Seeing
from trifocal.deploy.replicas import QUEUE, LanguageReplica, SeeingReplica
from trifocal.errors import MissingExtra

if TYPE_CHECKING:
    from ray import serve
    from starlette.types import ASGIApp

__all__ = ["ENVIRONMENT", "application", "run"]

AT_ONCE = 1024  # requests under way in a replica: ours decide who waits, not Ray Serve's
LIFE = {
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 60.0,
    "graceful_shutdown_timeout_s": 20.0,
    "logging_config": {"enable_access_log": False},  # the server has its own, and each replica is asked each second
}
NAME = "trifocal"
# of a cluster that is started here; Ray Serve kills a proxy that is not there within 5 seconds, and begins again
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "55"}


def application(plan: Plan) -> serve.Application:
    """The deployments of a plan, bound to each other.

    A replica of the language model is a deployment of its own, since only so can a front say which of them it asks
    without a part of Ray that may change.

    Raises:
        MissingExtra: Ray is not installed.
    """
    serve = _serve()
    model = dict(plan.model)
    seeing = serve.deployment(
        SeeingReplica,
        name="seeing",
        max_ongoing_requests=SEEN_AT_ONCE + QUEUE,
        ray_actor_options=_share(plan.seeing),
        **_how_many(plan.seeing.least, plan.seeing.most, plan.seeing.target),
        **LIFE,
    ).bind(model)
    languages = [
        _language(plan.language, number, name).bind(model, plan.language.step_limit)
        for number, name in enumerate(plan.language.names)
    ]
    front = serve.deployment(
        serve.ingress(_building(plan))(),
        name="front",
        max_ongoing_requests=AT_ONCE,
        ray_actor_options=_share(plan.front),
        **_how_many(plan.front.least, plan.front.most, plan.front.target),
        **LIFE,
    )
    return front.bind(seeing, *languages)


def run(plan: Plan, host: str, port: int, address: str | None, told: Callable[[str], None]) -> None:
    """Starts a plan on a cluster, or on this machine alone, until Ctrl-C or SIGTERM; ``told`` gets what happens.

    Raises:
        MissingExtra: Ray is not installed.
    """
    serve = _serve()
    import ray

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(address=address, include_dashboard=False, logging_level="WARNING")
    try:
        with suppress(KeyboardInterrupt):
            serve.start(http_options={"host": host, "port": port})
            serve.run(application(plan), name=NAME, route_prefix="/")
            told(f"{plan.settings.checkpoint} is deployed; the page: http://{host}:{port}/ (Ctrl-C ends it)")
            _stay()
        serve.shutdown()
    finally:
        ray.shutdown()


def _stay() -> None:
    """Stays until Ctrl-C, or SIGTERM, by which containers are ended: Ray's own answer to that drains nothing."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()


def _serve() -> Any:
    """Ray Serve, which is imported by nobody who does not deploy."""
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise MissingExtra(f"trifocal deploy ({error.name})", "ray") from error
    return serve


def _language(told: Language, number: int, name: str) -> serve.Deployment:
    """One replica of the language model: always there, or asleep until somebody asks it."""
    serve = _serve()
    sleeper = _scaled(0, 1, 1.0, downscale_delay_s=told.idle)
    many = {"num_replicas": 1} if number < told.least else {"autoscaling_config": sleeper}
    return serve.deployment(
        LanguageReplica,
        name=name,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options=_share(told),
        **many,
        **LIFE,
    )


def _how_many(least: int, most: int, target: float) -> dict[str, Any]:
    if least == most:
        return {"num_replicas": least}
    return {"autoscaling_config": _scaled(least, most, target)}


def _scaled(least: int, most: int, target: float, **more: float) -> Any:
    from ray.serve.config import AutoscalingConfig

    return AutoscalingConfig(min_replicas=least, max_replicas=most, target_ongoing_requests=target, **more)


def _share(role: Seeing | Language | Front) -> dict[str, Any]:
    """A replica's share of a machine, as Ray has it."""
    gpus = role.gpus if isinstance(role, Seeing | Language) else 0
    return {"num_cpus": role.cpus, "num_gpus": gpus, "resources": dict(role.resources)}


def _building(plan: Plan) -> Callable[[], ASGIApp]:
    def fronted() -> ASGIApp:  # is sent to the replica, and called there
        from trifocal.deploy.front import Fronted

        return Fronted(plan)

    return fronted
