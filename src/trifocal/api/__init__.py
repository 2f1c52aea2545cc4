"""The server: one model, spoken to in the dialects of OpenAI, text-generation-webui, Anthropic and Ollama."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trifocal.api.settings import ServerSettings

if TYPE_CHECKING:
    from trifocal.model.settings import Settings

__all__ = ["ServerSettings", "serve"]


def serve(
    settings: Settings,
    server: ServerSettings,
    page: Callable[[], Any] | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Loads the model and serves it until a signal ends it; see `trifocal.api.server.serve`."""
    try:
        from trifocal.api.server import serve as run
    except ModuleNotFoundError as error:
        from trifocal.errors import MissingExtra

        raise MissingExtra(f"the server ({error.name})", "serve") from error
    run(settings, server, page, ready)
