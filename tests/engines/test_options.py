"""What an engine's options may be is what its loader says of them."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Literal

import pytest

from trifocal.engines import ENGINES, check_engine, load_engine
from trifocal.engines.base import Engine
from trifocal.engines.options import check_options
from trifocal.engines.recipe import Recipe
from trifocal.errors import UnknownName, UsageError
from trifocal.placement import Placement


def load(
    recipe: Recipe,
    placement: Placement,
    *,
    count: int | None = None,
    share: float = 0.5,
    fast: bool = True,
    name: str = "",
    kind: Literal["a", "b"] = "a",
    layers: Literal[-1] | int | None = None,
    strange: list[int] | None = None,
) -> Engine:
    raise AssertionError


def untold(recipe: Nowhere, placement: Placement, *, count: int = 0) -> Engine:  # type: ignore[name-defined]  # noqa: F821
    raise AssertionError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": "many"}, "count=many: the engine x expects a whole number of 0 or more"),
        ({"count": -1}, "count=-1: the engine x expects a whole number"),
        ({"count": 1.5}, "a whole number"),
        ({"count": True}, "a whole number"),
        ({"share": "half"}, "a number of 0 or more"),
        ({"share": float("nan")}, "a number"),
        ({"share": float("inf")}, "a number"),
        ({"share": None}, "a number"),
        ({"fast": 1}, "true or false"),
        ({"fast": "yes"}, "true or false"),
        ({"name": 7}, "a text"),
        ({"kind": "c"}, "a or b"),
        ({"kind": ["a"]}, "a or b"),
        ({"layers": -2}, "-1 or a whole number of 0 or more"),
    ],
)
def test_a_value_of_another_kind_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_options("x", load, options)


def test_what_is_of_its_kind_is_taken() -> None:
    taken = {"count": 0, "share": 1, "fast": False, "name": "7b", "kind": "b", "layers": -1}
    for option, value in [*taken.items(), ("count", None), ("layers", 3), ("strange", "whatever")]:
        check_options("x", load, {option: value})
    check_options("x", untold, {"count": "whatever"})  # its kinds are known to type checkers alone


def test_an_option_that_it_has_not_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown option of the engine x 'cuont'; .*did you mean count"):
        check_options("x", load, {"cuont": 1})


@pytest.mark.parametrize("name", ENGINES)
def test_every_option_of_ours_says_its_kind(name: str) -> None:
    """A list is a value of none of them."""
    module, function = ENGINES[name].split(":")
    options = list(inspect.signature(getattr(importlib.import_module(module), function)).parameters)[2:]
    assert options
    for option in options:
        with pytest.raises(UsageError, match=f"{option}="):
            check_engine(name, {option: [1]})


def test_nothing_is_loaded_before_its_options_are_looked_at() -> None:
    """An echo with such a context never came up at all."""
    with pytest.raises(UsageError, match="context=abc: the engine echo expects a whole number"):
        load_engine(Recipe(source="", config={}, engine="echo", options={"context": "abc"}))
