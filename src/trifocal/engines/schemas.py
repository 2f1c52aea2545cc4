"""JSON schemas from strangers: bounded, and compiled once where a crash is nobody's, before the server itself does it.

llguidance compiles in Rust: some schemas make it panic, and a large one overflows its stack, which ends the process.
`checked` compiles in a process of its own; run as a program, this file is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "LONGEST_PATTERN",
    "LONGEST_SCHEMA",
    "MOST_DEEP",
    "MOST_NAMES",
    "MOST_VALUES",
    "checked",
    "compiled",
    "inner",
    "told",
]

LONGEST_SCHEMA = 64 << 10  # bytes
MOST_DEEP = 32  # levels
MOST_NAMES = 500  # properties, definitions and other names, all together
MOST_VALUES = 1000  # members of enums and of other lists, all together
LONGEST_PATTERN = 256  # characters
_MEMORY = 1 << 30
_SECONDS = 5  # of the process's own work; _HANGING are those of the clock on the wall
_HANGING = 120
# where a schema has schemas inside: by name, in a row, alone
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
ONES = (
    "items",
    "additionalProperties",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "not",
    "if",
    "then",
    "else",
)
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependentRequired")


@lru_cache(maxsize=256)
def checked(schema: str, scope: str = "") -> str:
    """Why a schema can't be held, as a few words; empty where it can.

    It is known for the next one of the same ``scope`` alone: trying takes a third of a second, which tells who asked.
    """
    return _bounded(schema) or _tried(schema)


def compiled(tokenizer: Any, schema: str) -> tuple[Any, str]:
    """llguidance's matcher for a schema, and why it is none; white space is fixed.

    A small model that may write white space between any two values writes nothing else.
    """
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        return matcher, told(matcher.get_error())
    except ValueError as error:
        return None, told(str(error))


def inner(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, each with its way there."""
    for key, value in schema.items() if isinstance(schema, dict) else ():
        if key in MAPS and isinstance(value, dict):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        elif key in LISTS and isinstance(value, list):
            yield from ((f"{key}[{at}]", each) for at, each in enumerate(value))
        elif key in ONES and isinstance(value, dict):
            yield key, value


def _bounded(schema: str) -> str:
    """What of a schema is over the limits."""
    size = len(schema.encode("utf-8", "surrogatepass"))
    if size > LONGEST_SCHEMA:
        return f"it has {size} bytes; allowed are {LONGEST_SCHEMA}"
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError):
        return "it is no JSON"
    names = values = 0
    for key, value, depth in _walk(found):
        if depth > MOST_DEEP:
            return f"it is nested deeper than {MOST_DEEP} levels"
        names += len(value) if isinstance(value, dict) and key in _NAMED else 0
        values += len(value) if isinstance(value, list) else 0
        patterns = [value] if key == "pattern" else list(value) if key == "patternProperties" else []
        if any(isinstance(each, str) and len(each) > LONGEST_PATTERN for each in patterns):
            return f"a pattern is longer than {LONGEST_PATTERN} characters"
    if names > MOST_NAMES:
        return f"it has {names} properties and definitions; allowed are {MOST_NAMES}"
    return f"its lists have {values} members; allowed are {MOST_VALUES}" if values > MOST_VALUES else ""


def _walk(value: Any) -> Iterator[tuple[str, Any, int]]:
    """Every value inside a value, under which key it stands and how deep."""
    left = [("", value, 1)]
    while left:
        key, inside, depth = left.pop()
        yield key, inside, depth
        if isinstance(inside, dict):
            left += [(name, each, depth + 1) for name, each in inside.items()]
        elif isinstance(inside, list):
            left += [(key, each, depth + 1) for each in inside]


def _tried(schema: str) -> str:
    """What comes of compiling it in a process of its own."""
    command = [sys.executable, "-P", str(Path(__file__))]
    environment = {
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "PYTHONIOENCODING": "utf-8",
        "RAYON_NUM_THREADS": "1",
    }
    try:
        ended = subprocess.run(
            command, input=schema.encode(), capture_output=True, env=environment, timeout=_HANGING, check=False
        )
    except subprocess.TimeoutExpired:
        return "compiling it takes too long"
    if ended.returncode:
        return "compiling it takes too long, too much memory, or fails"
    return ended.stdout.decode("utf-8", "replace")


def told(reason: str) -> str:
    """The first line of what the library says; of a panic nothing, since it names its own files."""
    line = next(iter(reason.splitlines()), "")[:200]
    return "the library that holds answers to schemas fails on it" if "panic" in reason.lower() else line


def _main() -> None:
    """Compiles the schema on standard input and says why it can't be held, or nothing."""
    import resource

    from llguidance import LLTokenizer

    for what, most in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CPU, _SECONDS), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    tokenizer, schema = LLTokenizer("byte"), sys.stdin.read()
    matcher, reason = compiled(tokenizer, schema)
    if not reason:
        matcher.compute_bitmask()
        reason = told(matcher.get_error())
    elif place := _place(tokenizer, json.loads(schema), reason):
        reason = f"{place}: {reason}"
    print(reason, end="")


def _place(tokenizer: Any, schema: Any, reason: str) -> str:
    """The way to the innermost schema that fails for the same reason; as far as a second of work leads."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
    way: list[str] = []
    while schema is not None and time.process_time() < _SECONDS / 2:
        inside, schema = schema, None
        for step, each in inner(inside):
            alone = {**shared, **each} if isinstance(each, dict) and not step.startswith(tuple(shared)) else each
            if compiled(tokenizer, json.dumps(alone))[1] == reason:
                way.append(step)
                schema = each
                break
    return ".".join(way)


if __name__ == "__main__":
    _main()
