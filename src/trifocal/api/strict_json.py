"""JSON from strangers: bounded in depth and number, without doubled keys, NaN, infinities or half characters.

Nothing here keeps the interpreter for long, whatever comes: one call of Python's own parser on 30 MB does so for a
third of a second. Long strings, which are pictures mostly, are taken out first and read one by one; what is left is
small or refused. A large body is best read in a thread: between the calls others have their turn.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trifocal.api.errors import refuse

__all__ = ["SMALL", "loads"]

SMALL = 64 << 10  # bytes that are read in no time
_MOST_BESIDES = 16 << 20  # bytes beside long ASCII strings: a text at its limit, all of it escaped, has 4.5 MiB
_MOST_ESCAPES = 3 << 20  # one for each byte of such a text, and the slashes of pictures, which some escape
_LONGEST_NUMBER = 400  # digits
_SLICE = 1 << 20
_TOKENS = re.compile(rb'"[^"]*"?|[\[\]{},:]')
_LETTERS = bytes(set(range(256)) - set(b'"[]{},:'))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes, *, depth: int = 64, values: int = 50_000, keys: int = 10_000) -> Any:
    """The value that the JSON in ``data`` stands for.

    Raises:
        Refusal: it is no JSON, or more than ``depth`` levels, ``values`` values or ``keys`` keys, or more than can
            be pictures and texts.
    """
    lifted = _Lifted(data, values + keys)
    _check_shape(lifted.body, depth, values, keys)
    try:
        with _told(lifted.place):
            return lifted.put_back(_parsed(lifted.body))
    except RecursionError as error:
        raise refuse("invalid_json", f"the body is nested deeper than {depth} levels") from error


class _Lifted:
    """A body in which names stand for its long ASCII strings; nobody who sends one can know such a name."""

    def __init__(self, data: bytes, most: int) -> None:
        self.body, self._strings = data, dict[str, str]()
        self._cuts: list[tuple[int, int]] = []  # where in the body a string was, and how many bytes less there are
        if len(data) > SMALL:
            self._lift(data, most)
            if len(self.body) > _MOST_BESIDES:
                words = f"the body has {len(self.body)} bytes beside pictures and other long strings of ASCII letters"
                raise refuse("invalid_value", f"{words}; allowed are {_MOST_BESIDES}")

    def put_back(self, value: Any) -> Any:
        """The value with its long strings where they were."""
        if not self._strings:
            return value
        if isinstance(value, str):
            return self._strings.get(value, value)
        if isinstance(value, list):
            return [self.put_back(each) for each in value]
        if isinstance(value, dict):
            return _unique([(self.put_back(name), self.put_back(each)) for name, each in value.items()])
        return value

    def place(self, at: int) -> int:
        """Where in the body as it was sent something of `body` stands."""
        return at + sum(less for cut, less in self._cuts if cut < at)

    def _lift(self, data: bytes, most: int) -> None:
        kept, length, copied = list[bytes](), 0, 0
        for start, end in _strings(data, most):
            if end - start <= SMALL or not data[start:end].isascii():
                continue
            name = secrets.token_hex(16)
            with _told(lambda at, start=start: start + at):  # type: ignore[misc]
                self._strings[name] = _parsed(data[start:end])
            kept += [data[copied:start], f'"{name}"'.encode()]
            length, copied = length + len(kept[-2]) + len(kept[-1]), end
            self._cuts.append((length - 1, end - start - len(kept[-1])))
        self.body = b"".join((*kept, data[copied:]))


def _strings(data: bytes, most: int) -> Iterator[tuple[int, int]]:
    """Where the strings of a body begin and end, quotes included: ``most`` of them, or there are too many values."""
    if sum(data.count(b"\\", at, at + _SLICE) for at in range(0, len(data), _SLICE)) > _MOST_ESCAPES:
        raise refuse("invalid_value", f"the body has over {_MOST_ESCAPES} escaped characters")
    # as long as before, but each quote in it opens or closes a string
    bare = data.replace(b"\\\\", b"--").replace(b'\\"', b"--") if b"\\" in data else data
    end = 0
    for _ in range(most):
        start = bare.find(b'"', end)
        end = bare.find(b'"', start + 1) + 1 if start >= 0 else 0
        if not end:
            return
        yield start, end
    if bare.find(b'"', end) >= 0:
        raise refuse("invalid_json", f"the body has over {most} strings")


@contextmanager
def _told(place: Callable[[int], int]) -> Iterator[None]:
    """Says what is wrong with JSON, and at which place."""
    try:
        yield
    except UnicodeError as error:
        raise refuse("invalid_json", "the body is not UTF-8 text") from error
    except ValueError as error:
        at = f" at character {place(error.pos)}" if isinstance(error, json.JSONDecodeError) else ""
        raise refuse("invalid_json", f"the body is no JSON: there is an error{at}") from error


def _parsed(data: bytes) -> Any:
    value = json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_unique,
        parse_constant=_no_constant,
        parse_float=_finite,
        parse_int=_whole,
    )
    if _SURROGATE.search(data):
        json.dumps(value, ensure_ascii=False).encode("utf-8")
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


def _whole(text: str) -> int:
    return int(_short(text))


def _finite(text: str) -> float:
    value = float(_short(text))
    if not math.isfinite(value):
        raise refuse("invalid_json", "a number is too large")
    return value


def _short(text: str) -> str:
    if len(text) > _LONGEST_NUMBER:
        raise refuse("invalid_json", f"a number has {len(text)} digits; allowed are {_LONGEST_NUMBER}")
    return text
