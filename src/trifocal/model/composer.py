"""From parts in prompt order to an `Outline`, and from an outline and its rows to a `Prompt`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from trifocal.conversation.templates import ChatTemplate, Control, Piece
from trifocal.engines.base import Tokenizer
from trifocal.errors import UsageError
from trifocal.images import Image
from trifocal.messages import Message, Tool
from trifocal.model.outline import Outline, Rows
from trifocal.prompt import ImageSpan, Prompt, Scope, TokenSpan
from trifocal.timing import Timings
from trifocal.vision import Gallery, Look, check_rows

if TYPE_CHECKING:
    import torch

__all__ = ["Composer", "Outlines"]


class Composer:
    """Makes prompts out of parts; needs a tokenizer and a gallery, but no engine.

    ``image_start`` and ``image_end`` name the control tokens around every picture, where the
    checkpoint was trained with them. ``strip_around_images`` takes white space beside pictures away,
    as the tokenizer of LLaVA v0's day did.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        gallery: Gallery,
        *,
        image_start: str = "",
        image_end: str = "",
        strip_around_images: bool = False,
    ) -> None:
        self._tokenizer: Tokenizer = tokenizer
        self.gallery = gallery
        self._frame = (image_start, image_end)
        for name in self._frame:
            self._control(name)
        self._strip = strip_around_images

    def once(self) -> Composer:
        """The same composer, which remembers what it tokenised: for the outlines of one request."""
        mine = copy.copy(self)
        mine._tokenizer = _Remembering(self._tokenizer)
        return mine

    def outline(self, parts: Sequence[Piece]) -> Outline:
        """The text of these parts as ids, and how each picture will be seen; no picture is looked at.

        Raises:
            UsageError: a control token that this tokenizer does not have.
            BadImage: a picture that this vision can't see at all.
        """
        looks = self.gallery.looks([part for part in parts if isinstance(part, Image)])
        return Outline(self._spans(parts, looks), looks)

    def prompt(self, outline: Outline, rows: Sequence[torch.Tensor], *, scope: Scope = "") -> Prompt:
        """The prompt of an outline and the rows of each of its looks, ``[look.rows, hidden]``.

        Raises:
            UsageError: they are not the rows that the looks promised.
        """
        vision = self.gallery.vision
        if len(rows) != len(outline.looks):
            raise UsageError(f"{len(rows)} pictures have rows, the outline has {len(outline.looks)}")
        for look, each in zip(outline.looks, rows, strict=True):
            check_rows(look, each, vision.hidden)
        digests = [f"{look.digest}:{vision.identity}" for look in outline.looks]
        spans = (
            span
            if isinstance(span, TokenSpan)
            else ImageSpan(rows[span.look][span.start : span.start + span.count], f"{digests[span.look]}:{span.start}")
            for span in outline.spans
        )
        return Prompt(spans, scope)

    def seen(self, outline: Outline, timings: Timings | None = None, *, scope: Scope = "") -> Prompt:
        """The prompt of an outline; pictures that are not known are looked at, see `Gallery.rows`.

        Neither pictures nor what an engine keeps of the prompt are known in another ``scope``.
        """
        return self.prompt(outline, self.gallery.rows(outline.looks, timings, scope=scope), scope=scope)

    def _spans(self, parts: Sequence[Piece], looks: Sequence[Look]) -> Iterator[TokenSpan | Rows]:
        """Token spans and rows in prompt order. A run of text between others is tokenised whole.

        The tokenizer is asked at every border, even where no text stands: some have a token for that.
        """
        run = ""
        last: Control | Rows | None = None
        for part in (*self._placed(self._known(parts), looks), None):
            if isinstance(part, str):
                run += part
                continue
            text = self._stripped(run, self._is_mark(last), self._is_mark(part))
            ids = self._tokenizer.encode(text, start=last is None, after=_name(last), before=_name(part))
            if ids:
                yield TokenSpan(tuple(ids))
            if isinstance(part, Control):
                yield TokenSpan(self._control(part.name))
            elif part is not None:
                yield part
            run, last = "", part

    def _placed(self, parts: Iterable[Piece], looks: Sequence[Look]) -> Iterator[str | Control | Rows]:
        """The parts with every picture as its rows, and with the tokens that stand around and between them."""
        numbered = iter(enumerate(looks))
        for part in parts:
            if not isinstance(part, Image):
                yield part
                continue
            number, look = next(numbered)
            start = 0
            yield from (Control(name) for name in self._frame[:1] if name)
            for item in look.layout:
                if isinstance(item, int):
                    yield Rows(number, start, item)
                    start += item
                else:
                    yield item
            yield from (Control(name) for name in self._frame[1:] if name)

    def _is_mark(self, part: object) -> bool:
        """Whether this is where a picture begins or ends: its rows, or the mark beside them."""
        return isinstance(part, Rows) or (isinstance(part, Control) and part.name in self._frame)

    def _known(self, parts: Sequence[Piece]) -> Iterator[Piece]:
        """The parts, with tokens that may be text as text, and without a beginning that the tokenizer puts itself."""
        beginning = self._tokenizer.encode("", start=True)  # of several tokens in GLM's family
        begun = False
        for part in parts:
            if isinstance(part, Control):
                if not (begun or part.again) and self._tokenizer.token(part.name) in beginning:
                    continue
                if not part.needed and self._tokenizer.token(part.name) is None:
                    part = part.name
            begun = begun or part != ""
            yield part

    def _stripped(self, text: str, after_image: bool, before_image: bool) -> str:
        if self._strip and after_image:
            text = text.lstrip()
        return text.rstrip() if self._strip and before_image else text

    def _control(self, name: str) -> tuple[int, ...]:
        if not name:
            return ()
        token = self._tokenizer.token(name)
        if token is None:
            raise UsageError(f"the language model's tokenizer has no token {name}; choose another template or model")
        return (token,)


class Outlines:
    """The outlines of one conversation and of parts of it, under one template; each text is tokenised once."""

    def __init__(self, composer: Composer, template: ChatTemplate, tools: Sequence[Tool] = ()) -> None:
        self._composer, self._template, self._tools = composer.once(), template, tools
        self._made: dict[tuple[Message, ...], Outline] = {}

    def of(self, turns: Sequence[Message]) -> Outline:
        """The outline of these turns.

        Raises:
            BadMessages: they can't be rendered.
        """
        key = tuple(turns)
        if key not in self._made:
            self._made[key] = self._composer.outline(self._template.render(turns, self._tools))
        return self._made[key]

    def looks(self, images: Sequence[Image]) -> list[Look]:
        """How these pictures are seen together."""
        return self._composer.gallery.looks(images)

    def text(self, text: str) -> int:
        """How many positions a text takes by itself."""
        return len(self._composer.outline((text,))) - len(self._composer.outline(("",)))


class _Remembering:
    """A tokenizer that encodes each text once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, bool, str | None, str | None], list[int]] = {}
        self.decode, self.token = tokenizer.decode, tokenizer.token

    def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
        key = (text, start, after, before)
        if key not in self._known:
            self._known[key] = self._tokenizer.encode(text, start=start, after=after, before=before)
        return self._known[key]


def _name(part: Control | Rows | None) -> str | None:
    """What a tokenizer is told of the part beside a text: a control token's name."""
    return part.name if isinstance(part, Control) else None
