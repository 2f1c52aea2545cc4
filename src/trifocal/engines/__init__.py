"""The table of language engines; each is imported when it is asked for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from trifocal.engines.base import Engine, Language, Tokenizer
from trifocal.errors import MissingExtra, UnknownName, UsageError
from trifocal.placement import Placement

__all__ = ["ENGINES", "Engine", "Language", "Tokenizer", "engine_names", "load_engine"]

# name -> "module:function"; the function is load(language, placement, **options) -> Engine
ENGINES = {
    "native": "trifocal.engines.native:load",
    "transformers": "trifocal.engines.transformers:load",
    "echo": "trifocal.engines.echo:load",
}
GROUP = "trifocal.engines"
AUTO = "auto"  # the fastest of ours that can run a language model


def engine_names() -> list[str]:
    """Ours and those of installed packages (entry points of the group ``trifocal.engines``)."""
    return sorted({AUTO, *ENGINES, *(point.name for point in entry_points(group=GROUP))})


_SEEN = {"images": "picture", "prompt": "prompt"}


def load_engine(name: str, language: Language, placement: Placement, **options: Any) -> Engine:
    """Loads a language model into the engine of that name; ``auto`` is the fastest of ours that can run it.

    Raises:
        UnknownName: no such engine, or an option that it does not have.
        MissingExtra: the engine's library is not installed.
        CheckpointError: the language model's files are missing, damaged or of another shape.
        UsageError: this language model attends in a way that the engine can't.
        OutOfMemory: the device has no room.
    """
    name = _fitting(language) if name == AUTO else name
    load = _loader(name)
    known = [
        parameter for parameter in inspect.signature(load).parameters if parameter not in ("language", "placement")
    ]
    for option in options:
        if option not in known:
            raise UnknownName(f"option of the engine {name}", option, known)
    engine = load(language, placement, **options)
    if language.attention not in engine.able.sees:
        engine.close()
        raise UsageError(
            f"the engine {name} can't let a {_SEEN.get(language.attention, 'picture')}'s positions see each other, "
            "which this language model was trained with; the engine transformers can"
        )
    return engine


def _fitting(language: Language) -> str:
    """Our own engine where it has all that a language model needs, else that over transformers."""
    from trifocal.engines.native.shape import unfit

    return "native" if language.attention == "causal" and not unfit(language.config) else "transformers"


def _loader(name: str) -> Callable[..., Engine]:
    try:
        if name in ENGINES:
            module, function = ENGINES[name].split(":")
            return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
        for point in entry_points(group=GROUP, name=name):
            return point.load()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the engine {name} ({error.name})", name) from error
    raise UnknownName("engine", name, engine_names())
