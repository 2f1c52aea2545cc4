"""Prompts as the host hands them over: text, and pictures that nobody has decoded yet."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trifocal.conversation.markup import Tag, stray, tags
from trifocal.conversation.templates import IMAGE_MARK, TEMPLATES
from trifocal.errors import BadImage, BadMarkup
from trifocal.images import Image, from_data_uri, from_pil
from trifocal.messages import Part

__all__ = [
    "MEDIA_MARK",
    "Held",
    "Turn",
    "half_counted",
    "newest",
    "ours",
    "outside",
    "placed",
    "read",
    "stand_in",
    "tagged",
    "to_words",
]

MEDIA_MARK = "<__media__>"  # the host's own mark for a picture of its chat box or API, from v3.6 on
_MARKS = re.compile(f"({re.escape(MEDIA_MARK)}|{re.escape(IMAGE_MARK)})")
_MEDIA = re.compile(f"({re.escape(MEDIA_MARK)})")
_GROUP = re.compile(f"((?:{re.escape(MEDIA_MARK)})+)\n\n")
_HALF = re.compile(r"""<img\b[^>]*?\bdata:[^\s"'<>]*["']?""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Held:
    """A picture as it came: ``read`` decodes it, or fetches it first, and raises BadImage where it is none."""

    read: Callable[[], Image]


@dataclass(frozen=True, slots=True)
class Turn:
    """What is being answered: the texts of all users' messages, and how many pictures the newest of them brings."""

    texts: tuple[str, ...]
    pictures: int

    @classmethod
    def of(cls, text: str, history: Mapping[str, Any], *, goes_on: bool = False) -> Turn:
        """From a message and the rows before it; ``goes_on``: the message is the last of the rows."""
        said = [str(row[0]) for row in history.get("internal") or ()]
        newest = len(said) - 1 if goes_on else len(said)
        text = said[-1] if goes_on and said else text
        beside = (history.get("metadata") or {}).get(f"user_{newest}") or {}
        attachments = sum(one.get("type") == "image" for one in beside.get("attachments") or ())
        return cls((*said, text), attachments + text.count(MEDIA_MARK) + sum(1 for _ in ours(text)))


def ours(text: str) -> Iterator[Tag]:
    """Tags whose source is data; one that names an address is a text about web pages, and none of ours."""
    return (tag for tag in tags(text) if tag.holds_data)


def outside(text: str) -> int | None:
    """Where a picture's base64 stands in a text without a tag of its own; None where it does not."""
    at = 0
    for start, end in [*((tag.start, tag.end) for tag in ours(text)), (len(text), 0)]:
        found = stray(text[at:start])
        if found is not None:
            return at + found
        at = end
    return None


def tagged(prompt: str) -> list[str | Held]:
    """The texts and the pictures in ``<img src="data:...">`` tags, in order; every other tag is text.

    Raises:
        BadMarkup: a tag that is not closed.
    """
    parts: list[str | Held] = []
    at = 0
    for number, tag in enumerate(ours(prompt), start=1):
        if tag.source is None:
            raise BadMarkup('it is not closed; <img src="data:image/...;base64,..."> is expected', tag.start)
        held = Held(functools.partial(_named, tag.source, f"the picture of <img> tag {number}"))
        parts += [prompt[at : tag.start], held]
        at = tag.end
    return [part for part in (*parts, prompt[at:]) if part != ""]


def half_counted(prompt: str) -> list[str | Held]:
    """As `tagged`, for counting: the host cuts a message anywhere, and asks how long what is left of it is.

    Half a tag takes what the whole one would. So a message's length grows with its letters, as the host's search for
    the longest one that fits takes for granted.
    """
    parts: list[str | Held] = []
    at = 0
    for tag in ours(prompt):
        half = _HALF.match(prompt, tag.start) if tag.source is None else None
        read = stand_in if tag.source is None else functools.partial(_decoded, tag.source)
        parts += [prompt[at : tag.start], Held(read)]
        at = half.end() if half else tag.end
    return [part for part in (*parts, prompt[at:]) if part != ""]


def to_words(prompt: str, texts: Sequence[str]) -> str:
    """A chat prompt whose attached pictures stand where their message says ``<image>``.

    The host writes the marks of a message's attachments in front of it. They go to the places that the message names,
    the last picture to the last of them; those for which it names none stay in front. ``texts`` tell where a message
    ends; ``<image>`` in any other is letters.
    """
    known = sorted({_GROUP.sub("", text.strip(), count=1) for text in texts}, key=len, reverse=True)
    written, at = "", 0
    for group in _GROUP.finditer(prompt):
        words = next((text for text in known if prompt.startswith(text, group.end())), "")
        pictures = group[1].count(MEDIA_MARK)
        named = min(pictures, words.count(IMAGE_MARK))
        front = f"{MEDIA_MARK * (pictures - named)}\n\n" if pictures > named else ""
        written += prompt[at : group.start()] + front + words.replace(IMAGE_MARK, MEDIA_MARK, named)
        at = group.end() + len(words)
    return written + prompt[at:]


def newest(parts: Sequence[str | Held]) -> int:
    """How many pictures of a prompt that is no chat's belong to its last question, as far as its words tell.

    Those behind which no user's turn begins, by the marks of all families.
    """
    found, behind = 0, ""
    for part in reversed(parts):
        if isinstance(part, str):
            behind = part + behind
        elif any(mark in behind for mark in _user_marks()):
            break
        else:
            found += 1
    return found


@functools.cache
def _user_marks() -> frozenset[str]:
    known = (template.user_before.strip() for template in TEMPLATES.values())
    return frozenset(mark for mark in known if mark) | {"### Instruction:"}  # Alpaca's, which the hosts fall back to


def placed(parts: Iterable[str | Held], pictures: Sequence[Held], *, both: bool = False) -> list[str | Held]:
    """The parts with pictures where ``<__media__>`` stands; with ``both`` where ``<image>`` does too.

    They are matched from the end: old turns are the first to go. A mark that no picture is left for stays as it is;
    with ``both``, pictures that no mark is left for stand in front.
    """
    left, backwards = [*pictures], list[str | Held]()
    for part in reversed([*parts]):
        if isinstance(part, Held):
            backwards.append(part)
            continue
        for piece in reversed((_MARKS if both else _MEDIA).split(part)):
            is_mark = piece == MEDIA_MARK or (both and piece == IMAGE_MARK)
            backwards.append(left.pop() if is_mark and left else piece)
    front = [part for picture in left for part in (picture, "\n")] if both else []
    return [*front, *(part for part in reversed(backwards) if part != "")]


def read(
    parts: Sequence[str | Held], *, every: bool, turn: Turn | None, look: Callable[[Image], object]
) -> tuple[list[Part], list[str]]:
    """The parts with the pictures that are shown, decoded: all, or the last one; and what was left out, in words.

    A picture that is not shown is not decoded and takes no position. One of an earlier turn that is no picture is left
    out; else it would block its chat for good. ``look`` raises BadImage where the model can't see it.

    Raises:
        BadImage: a picture of the message that is to be answered, or of a prompt that is no chat's.
    """
    at_pictures = [at for at, part in enumerate(parts) if isinstance(part, Held)]
    newest = at_pictures[max(0, len(at_pictures) - turn.pictures) :] if turn else at_pictures
    shown: dict[int, Image] = {}
    left_out: list[str] = []
    for at in reversed(at_pictures):
        if shown and not every:
            break
        held = parts[at]
        try:
            image = held.read() if isinstance(held, Held) else stand_in()
            look(image)
        except BadImage as error:
            if at in newest:
                raise
            left_out.append(str(error))
            continue
        shown[at] = image
    kept = [part if isinstance(part, str) else shown.get(at) for at, part in enumerate(parts)]
    return [part for part in kept if part is not None], left_out


@functools.cache
def stand_in() -> Image:
    """A square picture, for counting one that can't be looked at yet."""
    import PIL.Image

    return from_pil(PIL.Image.new("RGB", (336, 336)))


def _named(source: str, name: str) -> Image:
    try:
        return replace(_decoded(source), name=name)
    except BadImage as error:
        raise error.named(name) from error


@functools.lru_cache(maxsize=4)  # the host asks for a prompt's length over and over before it generates
def _decoded(source: str) -> Image:
    return from_data_uri(source)
