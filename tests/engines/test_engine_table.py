"""The table of docs/engines.md is what the engines say of themselves."""

from __future__ import annotations

import importlib

import pytest

from engine_table import PAGE, SAID, able, table
from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines import ENGINES, load_engine
from trifocal.engines.base import Engine
from trifocal.engines.recipe import Recipe
from trifocal.errors import MissingExtra
from trifocal.placement import Placement


def test_the_table_is_drawn_as_it_is() -> None:
    assert table() in PAGE.read_text("utf-8"), "draw it anew: python tests/engine_table.py"


def test_every_engine_is_in_it() -> None:
    assert {name.split()[0] for name in SAID} == set(ENGINES)


def test_every_engine_has_its_line_for_whom_it_is() -> None:
    text = PAGE.read_text("utf-8").split("## What each can")[0]
    assert [name for name in ENGINES if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", ["native", "transformers", "echo"])
def test_a_loaded_engine_can_what_its_module_says(name: str) -> None:
    engine = load_engine(language_recipe(find_checkpoint("thimble"), Placement("cpu", "float32"), engine=name))
    assert engine.able == able(name)
    engine.close()


def late(recipe: Recipe, placement: Placement) -> Engine:
    """An engine that imports its library when it loads, as llama.cpp's does."""
    return importlib.import_module("library_that_is_not_here").load(recipe, placement)  # type: ignore[no-any-return]


def test_a_library_that_is_missing_when_an_engine_loads_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "late", f"{__name__}:late")
    recipe = language_recipe(find_checkpoint("thimble"), Placement("cpu", "float32"), engine="late")
    with pytest.raises(MissingExtra, match=r"the engine late \(library_that_is_not_here\) .*trifocal\[late\]"):
        load_engine(recipe)
