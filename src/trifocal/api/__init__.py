"""The server: one model, spoken to in the dialects of OpenAI, text-generation-webui, Anthropic and Ollama."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trifocal.api.settings import ServerSettings

if TYPE_CHECKING:
    from trifocal.model.settings import Settings

__all__ = ["ServerSettings", "serve", "serve_vision"]


def serve(
    settings: Settings,
    server: ServerSettings,
    page: Callable[[], Any] | None = None,
    ready: Callable[[str], None] | None = None,
    others: Sequence[str] = (),
) -> None:
    """Loads the model and serves it until a signal ends it; see `trifocal.api.server.serve`."""
    with _installed():
        from trifocal.api.server import serve as run
    run(settings, server, page, ready, others)


def serve_vision(settings: Settings, server: ServerSettings) -> None:
    """Loads the vision half and serves it until a signal ends it; see `trifocal.api.seeing.serve_vision`."""
    with _installed():
        from trifocal.api.seeing import serve_vision as run
    run(settings, server)


@contextmanager
def _installed() -> Iterator[None]:
    """Says what to install where the server's libraries are not."""
    try:
        yield
    except ModuleNotFoundError as error:
        from trifocal.errors import MissingExtra

        raise MissingExtra(f"the server ({error.name})", "serve") from error
