"""The table of docs/engines.md is what the engines say of themselves."""

from __future__ import annotations

import pytest

from engine_table import PAGE, SAID, able, table
from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines import ENGINES, load_engine
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
