"""An engine's own options, held to what its loader says of them before anything is loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trifocal.errors import UnknownName, UsageError

__all__ = ["check_options"]


def check_options(engine: str, load: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses options that a loader, ``load(recipe, placement, **options)``, does not have, and values of other kinds.

    A number is 0 or more. What a stranger's loader does not tell the kind of is its own affair.

    Raises:
        UnknownName: there is no such option.
        UsageError: a value is none that it takes.
    """
    known = list(inspect.signature(load).parameters)[2:]  # after recipe and placement, whatever they are called
    for option in options:
        if option not in known:
            raise UnknownName(f"option of the engine {engine}", option, known)
    kinds = _kinds(load) if options else {}
    for option, value in options.items():
        if option in kinds and not _is(value, kinds[option]):
            raise UsageError(f"{option}={value}: the engine {engine} expects {_words(kinds[option])}")


def _kinds(load: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(load)
    except Exception:  # a stranger's annotations, whatever they are: names for type checkers alone
        return {}


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is int:
        return type(value) is int and value >= 0
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value) and value >= 0
    return isinstance(value, kind) if kind in (bool, str, NoneType) else True


def _words(kind: Any) -> str:
    """What is expected, for people; that it may be left out goes without saying."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(one) for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Literal:
        return " or ".join(str(one) for one in get_args(kind))
    names = {int: "a whole number of 0 or more", float: "a number of 0 or more", bool: "true or false", str: "a text"}
    return names.get(kind, "another value")
