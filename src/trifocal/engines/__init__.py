"""The table of language engines; each is imported when it is asked for."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from trifocal.engines.base import Engine, Tokenizer
from trifocal.engines.options import check_options
from trifocal.engines.recipe import Recipe
from trifocal.errors import MissingExtra, TrifocalError, UnknownName, UsageError

__all__ = [
    "ENGINES",
    "PASSED_ON",
    "WITH_PROCESSES",
    "Engine",
    "Recipe",
    "Tokenizer",
    "check_engine",
    "engine_names",
    "load_engine",
    "spare_threads",
]

# name -> "module:function"; the function is load(recipe, placement, **options) -> Engine
ENGINES = {
    "llamacpp": "trifocal.engines.llamacpp:load",
    "native": "trifocal.engines.native:load",
    "transformers": "trifocal.engines.transformers:load",
    "echo": "trifocal.engines.echo:load",
    "vllm": "trifocal.engines.vllm:load",
    "sglang": "trifocal.engines.sglang:load",
}
GROUP = "trifocal.engines"
WITH_PROCESSES = ("vllm", "sglang")  # engines that have processes of their own
PASSED_ON = "openai"  # no engine of spans: a whole model of another server's (`trifocal.model.relay`)
AUTO = "auto"  # the fastest of ours that can run a language model
NARROW = 512  # the width up to which CPU threads only wait for each other

log = logging.getLogger("trifocal")


def engine_names() -> list[str]:
    """Ours and those of installed packages (entry points of the group ``trifocal.engines``)."""
    return sorted({AUTO, PASSED_ON, *ENGINES, *(point.name for point in entry_points(group=GROUP))})


def check_engine(name: str, options: Mapping[str, Any]) -> None:
    """Refuses an engine that nobody knows, and options that it does not take, without loading anything.

    What ``auto`` takes depends on the language model, and what an engine takes whose library is not here can't be told.

    Raises:
        UnknownName: no such engine, or an option that it does not have.
        UsageError: an option's value is none that it takes.
    """
    if name not in engine_names():
        raise UnknownName("engine", name, engine_names())
    if name not in (AUTO, PASSED_ON):
        with suppress(MissingExtra):
            check_options(name, _loader(name), options)


_SEEN = {"images": "picture", "prompt": "prompt"}


def load_engine(recipe: Recipe) -> Engine:
    """Loads a language model into the engine that its recipe names; ``auto`` is the fastest of ours that can run it.

    Raises:
        UnknownName: no such engine, or an option that it does not have.
        MissingExtra: the engine's library is not installed.
        CheckpointError: the language model's files are missing, damaged or of another shape.
        UsageError: an option's value is none that it takes, or this language model attends in a way that it can't.
        OutOfMemory: the device has no room.
    """
    if recipe.engine == PASSED_ON:
        raise UsageError(
            f"the engine {PASSED_ON} takes no embeddings, it has a whole model: trifocal.open_model asks it"
        )
    if recipe.engine == AUTO:
        return _fastest(recipe)
    name = recipe.engine
    load = _loader(name)
    check_options(name, load, recipe.options)
    spare_threads(recipe)
    with _libraries_of(name):
        engine = load(recipe, recipe.placement, **recipe.options)
    if recipe.attention not in engine.able.sees:
        engine.close()
        raise UsageError(
            f"the engine {name} can't let a {_SEEN.get(recipe.attention, 'picture')}'s positions see each other, "
            "which this language model was trained with; the engine transformers can"
        )
    return engine


def _fastest(recipe: Recipe) -> Engine:
    """The fastest engine; where it can't after all, the next one, which is told."""
    from trifocal.engines.choosing import choices

    for choice in choices(recipe):
        try:
            return load_engine(replace(recipe, engine=choice.engine))
        except TrifocalError as error:
            if choice.engine != "llamacpp":
                raise
            log.warning("the engine llamacpp was the first choice (%s), but: %s", choice.why, error)
    raise AssertionError("the last choice loads or raises")


def spare_threads(recipe: Recipe) -> None:
    """One CPU thread for a model so narrow that more of them only wait for each other.

    Measured on thimble on two busy cores: ten times faster at the median. Torch's threads are the
    whole process's; who has set ``OMP_NUM_THREADS`` is left alone.
    """
    if recipe.hidden <= NARROW and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def _loader(name: str) -> Callable[..., Engine]:
    with _libraries_of(name):
        if name in ENGINES:
            module, function = ENGINES[name].split(":")
            return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
        for point in entry_points(group=GROUP, name=name):
            return point.load()  # type: ignore[no-any-return]
    raise UnknownName("engine", name, engine_names())


@contextmanager
def _libraries_of(name: str) -> Iterator[None]:
    """Tells of a library that is not installed, whether an engine imports it with its module or while it loads."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the engine {name} ({error.name})", name) from error
