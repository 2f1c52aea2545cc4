"""Many machines: seeing, language and front as deployments of Ray Serve. Ray is imported when `build` is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trifocal.deploy.plan import Front, Language, Plan, Seeing

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["Front", "Language", "Plan", "Seeing", "build"]


def build(args: Mapping[str, Any]) -> Application:
    """The application that ``serve run`` and ``serve deploy`` start: ``import_path: trifocal.deploy:build``.

    ``args`` are those of the file, see `Plan`.

    Raises:
        MissingExtra: Ray is not installed.
        UsageError: what is no plan.
    """
    plan = Plan.read(args)
    from trifocal.deploy.application import application

    return application(plan)
