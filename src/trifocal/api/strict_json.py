"""JSON from strangers: bounded in depth and number, without doubled keys, NaN, infinities or half characters."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from trifocal.api.errors import Refusal, refuse

__all__ = ["loads"]

_TOKENS = re.compile(rb'"[^"]*"?|[\[\]{},:]')
_LETTERS = bytes(set(range(256)) - set(b'"[]{},:'))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes, *, depth: int = 64, values: int = 50_000, keys: int = 10_000) -> Any:
    """The value that the JSON in ``data`` stands for.

    Raises:
        Refusal: it is no JSON, or more than ``depth`` levels, ``values`` values or ``keys`` keys.
    """
    _check_shape(data, depth, values, keys)
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except Refusal:
        raise
    except UnicodeError as error:
        raise refuse("invalid_json", "the body is not UTF-8 text") from error
    except RecursionError as error:
        raise refuse("invalid_json", f"the body is nested deeper than {depth} levels") from error
    except ValueError as error:
        at = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise refuse("invalid_json", f"the body is no JSON: there is an error{at}") from error
    return value


def _check_shape(data: bytes, depth: int, values: int, keys: int) -> None:
    """One pass over brackets, commas and colons, before any of it becomes an object.

    It ends early, whatever comes: JSON has no more signs than a few for each value.
    """
    level, count, named = 0, 1, 0
    # what is neither sign nor quote goes first, in fast passes: a picture is megabytes of letters
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
    bare = bare.translate(None, _LETTERS)
    for signs, match in enumerate(_TOKENS.finditer(bare)):
        token = bare[match.start()]
        if signs > 6 * values:
            raise refuse("invalid_json", f"the body has over {values} values, or is no JSON")
        if token in b":":
            named += 1
            if named > keys:
                raise refuse("invalid_json", f"the body has over {keys} keys")
        elif token in b"[{":
            level += 1
            if level > depth:
                raise refuse("invalid_json", f"the body is nested deeper than {depth} levels")
        elif token in b"]}":
            level -= 1
        elif token in b",":
            count += 1
            if count > values:
                raise refuse("invalid_json", f"the body has over {values} values")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) != len(pairs):
        raise refuse("invalid_json", "a key stands twice in one object")
    return known


def _no_constant(name: str) -> float:
    raise refuse("invalid_json", "NaN and infinities are no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise refuse("invalid_json", "a number is too large")
    return value
