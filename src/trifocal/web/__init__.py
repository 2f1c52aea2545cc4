"""The page for people: a chat about pictures in a browser, over the same server as every other client."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """All routes of the page: its files, which are public, and what it asks the server for beyond the dialects.

    Raises:
        UsageError: the page's files are not there.
    """
    from trifocal.web import count, explain, info, pages, preview

    asked = [route for part in (info, count, preview, explain) for route in part.router.routes]
    return [*pages.routes(), *asked]
