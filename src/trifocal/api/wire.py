"""What the dialects have in common on the wire: strict models, pictures as they were sent, and JSON out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from fastapi.responses import Response
from pydantic import AliasChoices, BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from trifocal.api.errors import Refusal, refuse
from trifocal.api.parameters import BOUNDS, ECHOED, HINTS, NEUTRAL, UNTOLD, is_neutral, is_off
from trifocal.conversation.markup import letters, places, reading, stray, tags
from trifocal.embedded import Embedded
from trifocal.embedded import from_base64 as embeddings_from
from trifocal.encoded import unpacked
from trifocal.errors import BadImage
from trifocal.images import Image, Limits, from_bytes, from_data_uri
from trifocal.messages import Call, Message, Role

__all__ = [
    "Draft",
    "Echoed",
    "Json",
    "Picture",
    "Rows",
    "Tagged",
    "Wire",
    "check_names",
    "check_signs",
    "check_text",
    "check_values",
    "decode",
    "dump",
    "from_base64",
    "hasty",
    "invalid",
    "notes_header",
    "notes_of",
    "octets",
    "once",
    "one_request",
    "picture",
    "too_long",
    "user_text",
]

_BARE = re.compile(r"\s*[A-Za-z0-9+/_-]{64}")
LONGEST_TEXT = 768 << 10  # bytes of all texts of a request: a tokenizer takes up to 350 for each; settings may say less
_MOST_SIGNS = 10_000  # letters "<" of a longer text, in which pictures are looked for
_MOST_VALUES = 50_000  # of JSON inside texts
# one without an end goes on to the text's: else each mark that is escaped in it would begin another search
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_MOST_TAGS = 5000  # of a request that seem to hold a picture and hold none


def hasty(schema: CoreSchema) -> CoreSchema:
    """Pydantic's rules with every list read up to its first bad member: 50,000 of them would take most of a second."""
    _stop_early(schema)
    return schema


def _stop_early(schema: Any) -> None:
    if isinstance(schema, dict) and schema.get("type") == "list":
        schema["fail_fast"] = True
    inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ()
    for each in inside:
        _stop_early(each)


class Wire(BaseModel):
    """A request body or a part of one: every name known, every value of its type, and null as if it were not there.

    What is no field is looked up in the tables of `trifocal.api.parameters`.
    """

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())
    untold: ClassVar[frozenset[str]] = UNTOLD
    lenient: ClassVar[bool] = False  # whether an unknown name is told rather than refused

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return once(cls.model_fields, {name: value for name, value in given.items() if value is not None})

    @model_validator(mode="after")
    def _all_known(self) -> Self:
        check_names(self.model_extra or {}, self.untold, lenient=self.lenient)
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """In words, which parameters have no effect here though somebody may have hoped for one."""
        return notes_of(self.model_extra or {}, self.untold)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The rules, in which a list is read up to its first bad member."""
        return hasty(handler(source))

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema without the names that are taken for nothing: docs/api.md lists them."""
        found = handler(core)
        handler.resolve_ref_schema(found)["additionalProperties"] = False
        return found


def check_names(extra: Mapping[str, Any], untold: Set[str] = UNTOLD, *, lenient: bool = False) -> None:
    """Looks up what is no field of a body; of names that are `lenient`ly taken, those that would change an answer.

    Raises:
        PydanticCustomError: a name that nobody knows, or a value that would change the answer and can't be done.
    """
    for name, value in extra.items():
        if name in untold or name in HINTS or (lenient and name not in NEUTRAL):
            continue
        facts = {"param": name}
        if name not in NEUTRAL:
            raise PydanticCustomError("extra_forbidden", "there is no such parameter", facts)
        if not is_neutral(name, value):
            raise PydanticCustomError("unsupported_parameter", "it is not supported: leave it out", facts)


def notes_of(extra: Mapping[str, Any], untold: Set[str] = UNTOLD) -> tuple[str, ...]:
    """In words, which of these names have no effect here."""
    known = untold | NEUTRAL.keys()
    told = [name for name, value in sorted(extra.items()) if (name in HINTS or name not in known) and not is_off(value)]
    return tuple(f"{name} has no effect here" for name in told)


def once(fields: Mapping[str, FieldInfo], given: dict[str, Any]) -> dict[str, Any]:
    """What is given, without what is said a second time in other words.

    Raises:
        PydanticCustomError: two names of one thing contradict each other.
    """
    for name, field in fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            _say_once([str(each) for each in field.validation_alias.choices if each in given], given, name)
    return given


def _say_once(names: Sequence[str], given: dict[str, Any], what: str) -> None:
    """Of several names for one thing the first stays, as some clients say it in every server's words at once.

    Of bounds the smallest holds.

    Raises:
        PydanticCustomError: they contradict each other.
    """
    for other in names[1:]:
        value = given.pop(other)
        if what in BOUNDS and all(type(each) is int and each > 0 for each in (value, given[names[0]])):
            given[names[0]] = min(value, given[names[0]])
        elif value != given[names[0]]:
            words = "it contradicts {first}, which means the same"
            raise PydanticCustomError("invalid_value", words, {"param": other, "first": names[0]})


class Echoed(Wire):
    """A message or a part of one, which may be an answer that is sent back as it came."""

    untold = ECHOED


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it was sent: a data URI, a URL, or encoded bytes. ``name`` says where it stood."""

    source: str | bytes
    name: str

    @property
    def is_url(self) -> bool:
        """Whether it must be fetched."""
        return isinstance(self.source, str) and self.source.lstrip()[:5].lower() != "data:"


@dataclass(frozen=True, slots=True)
class Rows(Picture):
    """A picture as embeddings in base64; ``name`` says where it stood."""

    @property
    def is_url(self) -> bool:
        """It came whole."""
        return False


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text in which pictures stand as ``<img src="data:...">``, not read yet."""

    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A message whose pictures are not decoded yet; see `Message`."""

    role: Role
    parts: tuple[str | Picture | Tagged, ...]
    calls: tuple[Call, ...] = ()
    answers: str = ""
    name: str = ""

    @property
    def pictures(self) -> list[Picture]:
        """What is still to be decoded."""
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def octets(self) -> int:
        """The bytes of whatever a template may write of it, without its pictures and tagged texts."""
        called = [text for call in self.calls for text in (call.name, call.arguments, call.id)]
        written = (*called, self.answers, self.name, *(part for part in self.parts if isinstance(part, str)))
        return sum(map(octets, written))


def notes_header(notes: Sequence[str]) -> dict[str, str]:
    """The header that tells what was done otherwise than asked, where a dialect's clients read no more of the body."""
    text = "; ".join(notes)[:1024].encode("ascii", "replace").decode()
    return {"x-trifocal-notes": "".join(letter if letter.isprintable() else "?" for letter in text)} if text else {}


class Json(Response):
    """A JSON answer, written compactly and without ASCII escapes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return dump(content).encode("utf-8")


def dump(content: Any) -> str:
    """Compact JSON; a NaN is our bug and raises."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(slots=True, eq=False)
class _Looked:
    """What of one request's texts was looked through."""

    letters: int = 0
    tags: int = 0
    values: int = 0


_looked: ContextVar[_Looked | None] = ContextVar("trifocal_looked", default=None)


@contextmanager
def one_request() -> Iterator[None]:
    """The texts that are looked through within are one request's: together they may be no longer than one alone."""
    token = _looked.set(_Looked())
    try:
        yield
    finally:
        _looked.reset(token)


def user_text(text: str, param: str) -> str | Tagged:
    """A user's text; ``<img src="data:...">`` inside it will be a picture, as old clients send it.

    Raises:
        Refusal: it is too long, or has base64 in it, which would be read as a hundred thousand words.
    """
    check_signs(text, param)
    looked = _looked.get() or _Looked()
    for place in places(text):
        if any(tag.holds_data for tag in tags(place)):
            return Tagged(text)
        looked.tags += 1
        if looked.tags > _MOST_TAGS:
            words = f"over {_MOST_TAGS} <img> tags seem to hold pictures and hold none"
            raise refuse("invalid_value", words, param)
    check_text(text, param)
    return text


def check_signs(text: str, param: str) -> None:
    """Refuses a long text in which the search for pictures alone would take too long."""
    if len(text) > LONGEST_TEXT and text.count("<") > _MOST_SIGNS:
        raise too_long(LONGEST_TEXT, param)


def too_long(most: int, param: str) -> Refusal:
    """The refusal of a request whose texts have more than ``most`` bytes."""
    return refuse("invalid_value", f"the texts of a request may have {most} bytes together", param)


def octets(text: str) -> int:
    """How many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def check_text(text: str, param: str) -> None:
    """Refuses text that is too long, or a picture in disguise; other base64, as in a Secret of Kubernetes, is text."""
    check_length(text, param)
    if stray(text) is not None:
        raise refuse("invalid_value", "a picture's base64 is inside a text; send the picture as an image part", param)


def check_length(text: str, param: str) -> None:
    """Refuses text that is too long with what came before it in the same request."""
    looked = _looked.get() or _Looked()
    looked.letters += len(text)
    if looked.letters > LONGEST_TEXT:
        raise too_long(LONGEST_TEXT, param)


def check_values(text: str, param: str) -> None:
    """Refuses JSON inside a text before it is read, by its length and by how many values it and others before it have.

    A body's own bounds see no more of it than one string.
    """
    check_length(text, param)
    looked = _looked.get() or _Looked()
    looked.values += _signs(text)
    if looked.values > _MOST_VALUES:
        raise refuse("invalid_value", f"the JSON in a request's texts may have {_MOST_VALUES} values together", param)


def _signs(text: str) -> int:
    """How many values JSON may have; commas and brackets in its strings, as programs have them, are none."""
    bare = _STRING.sub("", text)
    return sum(map(bare.count, ",[{"))


def picture(source: str, name: str) -> Picture:
    """A picture by its address, a data URI or a URL.

    Raises:
        Refusal: it is neither, but base64 alone, or nothing.
    """
    if not source.strip():
        raise refuse("invalid_image_url", "there is no address of a picture: it is empty", name)
    if _BARE.match(source):
        words = "this is base64 without the beginning of a data URI: put data:image/png;base64, in front of it"
        raise refuse("invalid_image_url", words, name)
    return Picture(source, name)


def from_base64(text: str, name: str) -> bytes:
    """The bytes of plain base64, padded or not, of either alphabet; a data URI's own is taken, too.

    Raises:
        Refusal: it is none.
    """
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        return unpacked(text)
    except ValueError as error:
        raise refuse("invalid_image", f"{name}: the base64 is broken", name) from error


def decode(drafts: Sequence[Draft], limits: Limits, most: int, total: int, longest: int) -> list[Message]:
    """The messages with their pictures decoded: ``most`` of them, of ``total`` bytes of pixels at most.

    Raises:
        Refusal: the texts have more than ``longest`` bytes without their pictures.
        BadImage: a picture is refused, or all together are too many or too large.
        BadMarkup: a tag that holds no picture.
        BadMessages: a role that can't have pictures has one.
    """
    tagged = [part.text for draft in drafts for part in draft.parts if isinstance(part, Tagged)]
    if sum(map(letters, tagged)) + sum(draft.octets for draft in drafts) > longest:
        raise too_long(longest, "messages")
    left, pixels = most, total // 3
    messages = []

    def taking(size: int) -> None:
        """Told the bytes of a picture, at four a pixel, before it is decoded."""
        if size > 4 * pixels:
            raise _too_many_pixels(total // 3)
        if limits.taking:
            limits.taking(size)

    counted = replace(limits, taking=taking)
    for draft in drafts:
        parts: list[str | Image] = []
        for part in draft.parts:
            for read in reading(part.text, limits=counted) if isinstance(part, Tagged) else [part]:
                parts.append(_decode(read, counted) if isinstance(read, Picture) else read)
                if isinstance(parts[-1], Image):
                    left, pixels = left - 1, pixels - _pixels(parts[-1])
                    _check_room(left, pixels, most, total // 3, parts[-1].name)
        messages.append(Message(draft.role, parts, calls=draft.calls, answers=draft.answers, name=draft.name))
    return messages


def _check_room(left: int, pixels: int, most: int, most_pixels: int, name: str) -> None:
    if left < 0:
        raise BadImage("too_many_images", f"allowed are {most} pictures in a request", name)
    if pixels < 0:
        raise _too_many_pixels(most_pixels).named(name)


def _too_many_pixels(most: int) -> BadImage:
    return BadImage("too_many_pixels", f"all pictures together may have {most} pixels")


def _pixels(image: Image) -> int:
    """How many pixels it holds, at three bytes; of embeddings, how many their bytes would be."""
    return image.rows.nbytes // 3 if isinstance(image, Embedded) else image.width * image.height


def _decode(picture: Picture, limits: Limits) -> Image:
    try:
        if isinstance(picture, Rows):
            assert isinstance(picture.source, str)
            return embeddings_from(picture.source, name=picture.name, limits=limits)
        if isinstance(picture.source, bytes):
            return from_bytes(picture.source, name=picture.name, limits=limits)
        return from_data_uri(picture.source, name=picture.name, limits=limits)
    except BadImage as error:
        if error.name == picture.name:
            raise
        raise error.named(picture.name) from error


def invalid(errors: Sequence[Any], body: Any) -> Refusal:
    """The most precise thing that is wrong with a body, with its place, and how many more there are.

    ``errors`` are pydantic's for ``body``.
    """
    codes = {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
        "unsupported_parameter": "unsupported_parameter",
    }
    words = {
        "extra_forbidden": "there is no such parameter",
        "missing": "it is required",
        "union_tag_not_found": "its type is required",
    }
    placed = [(error, _steps(error, body)) for error in errors]
    first, steps = max(placed, key=lambda pair: len(pair[1]))
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")[:200]
    kind = str(first["type"])
    code = codes.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    if kind == "union_tag_invalid":
        words[kind] = f"there is no type {str(first['ctx']['tag'])[:80]!r:.80}; known: {first['ctx']['expected_tags']}"
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return refuse(code, f"{place or 'body'}: {words.get(kind, str(first['msg']))[:200]}{more}", place or None)


def _steps(error: Any, body: Any) -> list[str | int]:
    """An error's way through the body; the names of the types that were tried on it are no steps."""
    found: list[str | int] = []
    value = body
    way = (*error["loc"], *filter(None, [error.get("ctx", {}).get("param")]))
    for at, step in enumerate(way):
        if _is_tag(way[at:], value):
            continue
        inside = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if inside or (isinstance(value, dict) and step in value):
            found.append(step)
            value = value[step]
        elif error["type"] == "missing" and at == len(way) - 1:
            found.append(step)
    return found


def _is_tag(way: Sequence[Any], value: Any) -> bool:
    """Whether a step is the name of a type although the value has a field of that name: its next step is no part of it.

    In ``{"type": "text", "text": "x", "more": 1}`` the way to the fault is ``text``, ``more``.
    """
    if not isinstance(value, dict) or value.get("type") != way[0] or way[0] not in value or len(way) == 1:
        return False
    return way[1] == way[0] or way[1] in value or not isinstance(value[way[0]], dict | list)
