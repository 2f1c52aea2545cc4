"""A model by its settings: one that is loaded here, its language engine here or apart, or one of another server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from trifocal.engines import PASSED_ON, WITH_PROCESSES, spare_threads
from trifocal.engines.base import STEP_LIMIT
from trifocal.engines.remote import load_remote
from trifocal.model.finding import find
from trifocal.model.llava import Llava, load, load_vision, put_together
from trifocal.model.relay import Relay, open_relay
from trifocal.model.settings import Settings

__all__ = ["Apart", "Opened", "open_model"]

Opened = Llava | Relay


@dataclass(frozen=True, slots=True)
class Apart:
    """In how many processes of its own a language engine runs, and how many seconds one may take for a step.

    None is this process.
    """

    replicas: int = 0
    step_limit: float = STEP_LIMIT


def open_model(settings: Settings | None = None, apart: Apart = Apart(), **values: Any) -> Opened:
    """What answers conversations: `load`'s model, or with ``engine="openai"`` one that another server has.

    ``open_model(engine="openai", engine_options={"url": "http://127.0.0.1:11434", "model": "llava"})`` passes
    conversations on to that server. Raises as `load`, and `PeerError` where the server can't be asked.
    """
    settings = (settings or Settings()).with_values(values)
    if settings.engine == PASSED_ON:
        return open_relay(settings)
    few = 1 if settings.engine in WITH_PROCESSES else 0  # one of these runs apart from us by itself
    return _load_apart(settings, apart) if apart.replicas > few else load(settings)


def _load_apart(settings: Settings, apart: Apart) -> Llava:
    """`load` with the engine in processes of its own, which load while the vision does."""
    found = find(settings)
    spare_threads(found.recipe)
    with ThreadPoolExecutor(1, thread_name_prefix="load-engine") as pool:
        if torch.cuda.is_available():  # the engine takes what a card has left
            vision = load_vision(settings, found.checkpoint)
        coming = pool.submit(load_remote, found.recipe, apart.replicas, apart.step_limit)
        if not torch.cuda.is_available():
            try:
                vision = load_vision(settings, found.checkpoint)
            except BaseException:
                coming.result().close()
                raise
        return put_together(settings, found, coming.result(), vision)
