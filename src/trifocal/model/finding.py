"""What settings name, found before anything of it is loaded: a wrong name is told without torch."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.checkpoints import Checkpoint, language_recipe
from trifocal.conversation.jinja import find_template
from trifocal.conversation.templates import ChatTemplate
from trifocal.engines import engine_names
from trifocal.engines.recipe import Recipe
from trifocal.errors import UnknownName, UsageError
from trifocal.model.settings import Settings

__all__ = ["Found", "find"]


@dataclass(frozen=True, slots=True)
class Found:
    """What settings name, before anything of it is loaded."""

    checkpoint: Checkpoint
    template: ChatTemplate
    recipe: Recipe


def find(settings: Settings) -> Found:
    """What the settings name; raises as `trifocal.model.llava.load`."""
    if settings.engine not in engine_names():
        raise UnknownName("engine", settings.engine, engine_names())
    _check_elsewhere(settings)
    checkpoint = settings.find()
    template = find_template(settings.template or checkpoint.template, *checkpoint.language.homes)
    recipe = language_recipe(
        checkpoint,
        settings.language,
        engine=settings.engine,
        options=settings.engine_options,
        allow_pickle=settings.allow_pickle,
    )
    return Found(checkpoint, template, recipe)


def _check_elsewhere(settings: Settings) -> None:
    """Refuses what is to be said where the tower is.

    Raises:
        UsageError: the vision is elsewhere, and a placement of it or a fit are asked for here.
    """
    if settings.is_elsewhere:
        plain = Settings()
        for name in ("tower", "projector", "fit"):
            if getattr(settings, name) != getattr(plain, name):
                raise UsageError(f"{name}: the vision is at {settings.vision}; say --{name} to trifocal see there")
