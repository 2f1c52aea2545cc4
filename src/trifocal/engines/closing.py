"""A JSON schema read as people mean it: objects that list their properties have no others, unless they say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trifocal.engines.schemas import LISTS, MAPS, inner

__all__ = ["closed", "held"]

_ALONE = ("items", "additionalProperties", "contains")
_JOINED = ("allOf", "anyOf", "oneOf")
_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties")


def held(schema: str) -> str:
    """The text of a schema, `closed`; what is no JSON stays as it is, to be refused."""
    try:
        return json.dumps(closed(json.loads(schema)), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return schema


def closed(schema: Any) -> Any:
    """The schema with ``additionalProperties: false`` where an object lists its properties and says nothing of others.

    Parts that are put together into one object are left as they are: each would exclude the others' properties.
    """
    together = {name for each in _every(schema) if _joins(each) for name in _references(each)}
    return _closed(schema, together, joined=False)


def _every(schema: Any) -> Iterator[dict[str, Any]]:
    left = [schema]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            yield each
            left += [inside for _, inside in inner(each)]


def _joins(schema: dict[str, Any]) -> bool:
    """Whether an object is put together of several parts."""
    parts = schema.get("allOf")
    several = isinstance(parts, list) and len(parts) > 1
    return several or ("properties" in schema and any(key in schema for key in (*_JOINED, "$ref")))


def _references(schema: dict[str, Any]) -> Iterator[str]:
    """The names of the definitions that an object is put together of."""
    parts = [schema, *(each for key in _JOINED for each in schema.get(key) or () if isinstance(each, dict))]
    for part in parts:
        if isinstance(part.get("$ref"), str):
            yield part["$ref"].rpartition("/")[2]


def _closed(schema: Any, together: set[str], *, joined: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    joins = joined or _joins(schema)
    done: dict[str, Any] = {}
    for key, value in schema.items():
        if key in MAPS and isinstance(value, dict):
            defines = key in ("$defs", "definitions")
            done[key] = {
                name: _closed(each, together, joined=defines and name in together) for name, each in value.items()
            }
        elif key in LISTS and isinstance(value, list):
            done[key] = [_closed(each, together, joined=joins and key in _JOINED) for each in value]
        else:
            done[key] = _closed(value, together, joined=False) if key in _ALONE else value
    if "properties" in schema and not joins and not any(key in schema for key in _OPEN):
        done["additionalProperties"] = False
    return done
