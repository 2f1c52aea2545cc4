"""A recipe is plain data: it crosses a process, and what crosses is loaded as before."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from trifocal.checkpoints import from_folder, language_recipe
from trifocal.engines import Engine, Recipe, load_engine
from trifocal.errors import UnknownName, UsageError
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import Prompt, TokenSpan
from waiting import PATIENCE

PROMPT, FOUR = Prompt([TokenSpan((1, 300, 310))]), Sampling(max_tokens=4, ignore_end=True)
CHILD = f"""
import sys
from trifocal.engines import Recipe, load_engine
from trifocal.messages import Sampling
from trifocal.prompt import Prompt, TokenSpan
engine = load_engine(Recipe.from_json(sys.stdin.buffer.read()))
print([token.id for token in engine.stream({PROMPT!r}, {FOUR!r})], engine.context)
engine.close()
"""


def said(engine: Engine) -> list[int]:
    return [token.id for token in engine.stream(PROMPT, FOUR)]


@pytest.fixture
def recipe(hf15: Path) -> Recipe:
    place = Placement("cpu", "float32")
    return language_recipe(from_folder(hf15), place, engine="native", options={"context": 64, "kernels": False})


def test_it_says_all_that_its_loading_needs(recipe: Recipe, hf15: Path) -> None:
    assert (recipe.path, recipe.placement, recipe.hidden) == (hf15, Placement("cpu", "float32"), 64)
    assert recipe.config["model_type"] == "llama"


def test_written_down_and_read_again_it_is_the_same(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    odd = replace(recipe, source="/a folder/of \udcff bytes", options={"bounds": [1, 2.5, None], "names": {"a": True}})
    assert Recipe.from_json(odd.to_json().encode()) == odd


def test_another_process_loads_the_same_engine_from_it(recipe: Recipe) -> None:
    with closing(load_engine(recipe)) as engine:
        expected = f"{said(engine)} {engine.context}"
    told = subprocess.run(
        [sys.executable, "-c", CHILD], input=recipe.to_json().encode(), capture_output=True, timeout=PATIENCE
    )
    assert told.stdout.decode().strip() == expected, told.stderr.decode()


@pytest.mark.parametrize("value", [Path("a"), (1, 2), {3: "three"}, object()])
def test_an_option_that_would_not_come_back_as_it_was_is_refused(recipe: Recipe, value: object) -> None:
    with pytest.raises(UsageError, match=r"^folder: .* is no plain value"):
        replace(recipe, options={"folder": value}).to_json()


def test_what_is_no_recipe_is_told(recipe: Recipe) -> None:
    for text in ("", "[]", "{}", "3", '{"source": "a"}'):
        with pytest.raises(UsageError, match="an engine's recipe was expected"):
            Recipe.from_json(text)
    newer = {**json.loads(recipe.to_json()), "colour": "red"}
    with pytest.raises(UnknownName, match="colour"):
        Recipe.from_json(json.dumps(newer))
