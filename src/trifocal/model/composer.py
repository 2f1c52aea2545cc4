"""From parts in prompt order to a `Prompt`: tokenise the text, see the pictures, keep the order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trifocal.conversation.templates import Control, Piece
from trifocal.engines.base import Tokenizer
from trifocal.errors import UsageError
from trifocal.images import Image
from trifocal.prompt import ImageSpan, Prompt, Span, TokenSpan
from trifocal.timing import Timings
from trifocal.vision import Framing, Vision

if TYPE_CHECKING:
    import torch

__all__ = ["Composer"]


class Composer:
    """Makes prompts out of parts; needs a tokenizer and a vision, but no engine.

    ``image_start`` and ``image_end`` name the control tokens around every picture, where the
    checkpoint was trained with them. ``strip_around_images`` takes white space beside pictures away,
    as the tokenizer of LLaVA v0's day did.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vision: Vision,
        *,
        image_start: str = "",
        image_end: str = "",
        strip_around_images: bool = False,
    ) -> None:
        self._tokenizer, self.vision = tokenizer, vision
        self._frame = (image_start, image_end)
        for name in self._frame:
            self._control(name)
        self._strip = strip_around_images

    def prompt(self, parts: Sequence[Piece], timings: Timings | None = None) -> Prompt:
        """The prompt of these parts; pictures that are not in the cache are looked at.

        Raises:
            UsageError: a control token that this tokenizer does not have.
        """
        layout = list(self._layout(parts))
        images = [item.image for item in layout if isinstance(item, _Rows) and item.start == 0]
        seen = iter(self.vision.encode(images, timings) if images else [])
        spans: list[Span] = []
        rows: torch.Tensor | None = None
        for item in layout:
            if isinstance(item, TokenSpan):
                spans.append(item)
                continue
            rows = next(seen) if item.start == 0 else rows
            assert rows is not None
            spans.append(self._span(item, rows))
        return Prompt(spans)

    def count(self, parts: Sequence[Piece]) -> int:
        """How many positions the prompt of these parts will take; no picture is looked at."""
        return sum(item.count if isinstance(item, _Rows) else len(item) for item in self._layout(parts))

    def _span(self, item: _Rows, rows: torch.Tensor) -> ImageSpan:
        """A picture's span, or one of them; how many rows it has tells apart the ways in which a vision may see it."""
        part = rows[item.start : item.start + item.count]
        return ImageSpan(part, f"{item.image.digest}:{self.vision.identity}:{len(rows)}:{item.start}")

    def _layout(self, parts: Sequence[Piece]) -> Iterator[TokenSpan | _Rows]:
        """Token spans and pictures in prompt order. A run of text between others is tokenised whole."""
        runs = list(_runs(self._placed(list(self._known(parts)))))
        for at, part in enumerate(runs):
            before, after = runs[at - 1] if at else None, runs[at + 1] if at + 1 < len(runs) else None
            if at == 0 and not isinstance(part, str):
                yield TokenSpan(tuple(self._tokenizer.encode("", start=True)))
            if isinstance(part, str):
                text = self._stripped(part, self._is_mark(before), self._is_mark(after))
                if text or at == 0:
                    yield TokenSpan(tuple(self._tokenizer.encode(text, start=at == 0)))
            elif isinstance(part, Control):
                yield TokenSpan(self._control(part.name))
            else:
                yield part
        if not runs:
            yield TokenSpan(tuple(self._tokenizer.encode("", start=True)))

    def _placed(self, parts: Sequence[Piece]) -> Iterator[str | Control | _Rows]:
        """The parts with every picture as its rows, and with the tokens that stand around and between them."""
        among = sum(isinstance(part, Image) for part in parts)
        for part in parts:
            if not isinstance(part, Image):
                yield part
                continue
            start = 0
            yield from (Control(name) for name in self._frame[:1] if name)
            for item in self._laid_out(part, among):
                if isinstance(item, int):
                    yield _Rows(part, start, item)
                    start += item
                else:
                    yield item
            yield from (Control(name) for name in self._frame[1:] if name)

    def _laid_out(self, image: Image, among: int) -> Sequence[str | Control | int]:
        if isinstance(self.vision, Framing):
            return self.vision.layout(image, among)
        return (self.vision.positions(image, among),)

    def _is_mark(self, part: object) -> bool:
        """Whether this is where a picture begins or ends: its rows, or the mark beside them."""
        return isinstance(part, _Rows) or (isinstance(part, Control) and part.name in self._frame)

    def _known(self, parts: Sequence[Piece]) -> Iterator[Piece]:
        """The parts, with tokens that may be text as text, and without a beginning that the tokenizer puts itself."""
        beginning = self._tokenizer.encode("", start=True)
        begun = False
        for part in parts:
            if isinstance(part, Control):
                if not begun and beginning and self._tokenizer.token(part.name) == beginning[-1]:
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


@dataclass(frozen=True, slots=True)
class _Rows:
    """``count`` rows of a picture, from ``start`` on."""

    image: Image
    start: int
    count: int


def _runs(parts: Iterable[str | Control | _Rows]) -> Iterator[str | Control | _Rows]:
    """The parts with neighbouring texts joined and empty ones gone."""
    run = ""
    for part in parts:
        if isinstance(part, str):
            run += part
            continue
        if run:
            yield run
            run = ""
        yield part
    if run:
        yield run
