"""``<img src="data:...">`` in a raw prompt: one pass from text to parts, in time that grows with the text's length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trifocal.errors import BadImage, BadMarkup
from trifocal.images import LIMITS, Image, Limits, from_data_uri
from trifocal.messages import Part

__all__ = ["Tag", "letters", "parse", "places", "reading", "stray", "tags"]

# nothing here can be matched in two ways, so nothing is tried twice
_IMG = re.compile(r"<img\b", re.IGNORECASE)
_QUOTE_OR_SRC = re.compile(r"""["']|\bsrc(?=\s*=)""", re.IGNORECASE)
_IS = re.compile(r"""\s*=\s*(["']?)""")
_BARE = re.compile(r"""[^\s"']*""")
_OPENING = re.compile(r"""\s*=\s*["']?\s*(.{0,5})""", re.DOTALL)
_DATA = re.compile(r"""=(?=[\s"'dD])\s*+["']?+\s*+(?i:data:)""")
_QUOTE = re.compile(r"""["']""")
_STRAY = re.compile(r"data:\s*image/[^;,\s]{0,40}(?:;[^;,\s]{0,40}){0,4},\s*[A-Za-z0-9+/_=-]{512}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tag:
    """An ``<img`` with a ``src``, quoted either way or not at all; "the <img> tag" in a sentence is none.

    It stands from ``start`` to ``end``. ``source`` is None where the tag is not closed; ``opening`` is how the source
    begins in any case.
    """

    start: int
    end: int
    source: str | None
    opening: str

    @property
    def holds_data(self) -> bool:
        """Whether it means to hold a picture, and not an address or a path."""
        return self.opening.lower() == "data:"


def tags(text: str) -> Iterator[Tag]:
    """The ``<img`` tags of a text that have a source, in order."""
    for found in _IMG.finditer(text):
        stop = text.find("<", found.end())
        stop = len(text) if stop < 0 else stop
        close = text.find(">", found.end(), stop)
        inside = text[found.end() : stop if close < 0 else close]
        at = _source_at(inside)
        if at is None:
            continue
        opening = _OPENING.match(inside, at)
        source = _source(inside, at) if close >= 0 else None
        end = stop if close < 0 else close + 1
        yield Tag(found.start(), end, source, opening[1] if opening else "")


def places(text: str) -> Iterator[str]:
    """The pieces of a text in which a tag may hold a picture, looked for by what stands in it: often there is none.

    A tag is work of Python's, and nothing to stand still for 70,000 times.
    """
    at = 0
    while found := _DATA.search(text, at):
        stop = text.find("<", found.end())
        stop = len(text) if stop < 0 else stop
        start = text.rfind("<", at, found.start())
        if start >= 0:
            yield text[start:stop]
        at = stop


def _source_at(inside: str) -> int | None:
    """Where the ``=`` of ``src =`` is looked for, in the attributes of a tag and in none of their values."""
    at = 0
    while found := _QUOTE_OR_SRC.search(inside, at):
        if found[0] not in "\"'":
            return found.end()
        at = inside.find(found[0], found.end()) + 1
        if at == 0:
            return None
    return None


def _source(inside: str, at: int) -> str | None:
    """The source whose ``=`` stands there; None where it is empty without quotes, or a quote is not closed."""
    begins = _IS.match(inside, at)
    if begins is None:
        return None
    start, quote = begins.end(), begins[1]
    bare = None if quote else _BARE.match(inside, start)
    end = bare.end() if bare else inside.find(quote, start)
    if end < start + (bare is not None) or not _is_balanced(inside, end + len(quote)):
        return None
    return inside[start:end]


def letters(text: str) -> int:
    """How many bytes of a raw prompt are text, and no picture's."""
    whole = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return whole - sum(len(tag.source or "") for tag in tags(text))


def _is_balanced(inside: str, at: int) -> bool:
    """Whether every quote from there on is closed."""
    while found := _QUOTE.search(inside, at):
        at = inside.find(found[0], found.end()) + 1
        if at == 0:
            return False
    return True


def parse(prompt: str, *, limits: Limits = LIMITS) -> tuple[Part, ...]:
    """The texts and pictures of a raw prompt, in order.

    A tag may use either quote or none, other attributes, line breaks, and any image type. What looks
    like a picture is one or is refused; it never reaches the model as a hundred thousand letters. The
    time is linear in the length of the prompt.

    Raises:
        BadMarkup: a tag that is not closed, one whose ``src`` is no data URI, or a picture's base64
            outside of any tag.
        BadImage: a data URI that holds no picture; its name counts the tags from 1.
    """
    return tuple(reading(prompt, limits=limits))


def reading(prompt: str, *, limits: Limits = LIMITS) -> Iterator[Part]:
    """The same, each when it is asked for: whoever counts what pictures hold can stop before the next is decoded."""
    return (part for part in _parts(prompt, limits) if part != "")


def stray(text: str) -> int | None:
    """Where a picture's base64 stands in a text, or None where it does not."""
    found = _STRAY.search(text)
    return found.start() if found else None


def _parts(prompt: str, limits: Limits) -> Iterator[Part]:
    at = 0
    for number, tag in enumerate(tags(prompt), start=1):
        if tag.source is None:
            raise BadMarkup('it is not closed; <img src="data:image/...;base64,..."> is expected', tag.start)
        yield _text(prompt, at, tag.start)
        yield _picture(tag.source, number, tag.start, limits)
        at = tag.end
    yield _text(prompt, at, len(prompt))


def _picture(source: str, number: int, at: int, limits: Limits) -> Image:
    if source.lstrip()[:5].lower() != "data:":
        raise BadMarkup("only data URIs are taken in a prompt, no addresses and no paths", at)
    try:
        return from_data_uri(source, name=f"image {number}", limits=limits)
    except BadImage as error:
        raise error.named(f"image {number}") from error


def _text(prompt: str, start: int, end: int) -> str:
    stray = _STRAY.search(prompt, start, end)
    if stray:
        raise BadMarkup("a picture's base64 stands outside of an <img> tag", stray.start())
    return prompt[start:end]
