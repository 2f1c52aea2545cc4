"""A model by its settings: one that is loaded here, or one that another server has."""

from __future__ import annotations

from typing import Any

from trifocal.engines import PASSED_ON
from trifocal.model.llava import Llava, load
from trifocal.model.relay import Relay, open_relay
from trifocal.model.settings import Settings

__all__ = ["Opened", "open_model"]

Opened = Llava | Relay


def open_model(settings: Settings | None = None, **values: Any) -> Opened:
    """What answers conversations: `load`'s model, or with ``engine="openai"`` one that another server has.

    ``open_model(engine="openai", engine_options={"url": "http://127.0.0.1:11434", "model": "llava"})`` passes
    conversations on to that server. Raises as `load`, and `PeerError` where the server can't be asked.
    """
    settings = (settings or Settings()).with_values(values)
    return open_relay(settings) if settings.engine == PASSED_ON else load(settings)
