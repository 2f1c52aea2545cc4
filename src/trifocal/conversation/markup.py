"""``<img src="data:...">`` in a raw prompt: one pass from text to parts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trifocal.errors import BadImage, BadMarkup
from trifocal.images import LIMITS, Image, Limits, from_data_uri
from trifocal.messages import Part

__all__ = ["parse"]

# an <img with an attribute src, quoted either way or not at all; "the <img> tag" in a sentence is none
_INSIDE = r"""(?:[^<>"']|"[^"<>]*"|'[^'<>]*')*"""
_TAG = re.compile(rf"<img\b(?={_INSIDE}?\bsrc\s*=)", re.IGNORECASE)
_SRC = re.compile(
    rf"<img\b{_INSIDE}?\bsrc\s*="
    r"""\s*(?:"(?P<double>[^"<>]*)"|'(?P<single>[^'<>]*)'|(?P<bare>[^\s"'<>]+))"""
    rf"{_INSIDE}>",
    re.IGNORECASE,
)
_STRAY = re.compile(r"data:\s*image/[^;,\s]{0,40}(?:;[^;,\s]{0,40}){0,4},\s*[A-Za-z0-9+/_=-]{512}", re.IGNORECASE)


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
    return tuple(part for part in _parts(prompt, limits) if part != "")


def _parts(prompt: str, limits: Limits) -> Iterator[Part]:
    at = 0
    for number, tag in enumerate(_TAG.finditer(prompt), start=1):
        if tag.start() < at:
            continue
        whole = _SRC.match(prompt, tag.start())
        if not whole:
            raise BadMarkup('it is not closed; <img src="data:image/...;base64,..."> is expected', tag.start())
        yield _text(prompt, at, tag.start())
        yield _picture(whole["double"] or whole["single"] or whole["bare"] or "", number, tag.start(), limits)
        at = whole.end()
    yield _text(prompt, at, len(prompt))


def _picture(source: str, number: int, at: int, limits: Limits) -> Image:
    if not source.lstrip().lower().startswith("data:"):
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
