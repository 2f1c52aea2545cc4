"""From parts in prompt order to a `Prompt`: tokenise the text, see the pictures, keep the order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trifocal.engines.base import Tokenizer
from trifocal.errors import UsageError
from trifocal.images import Image
from trifocal.prompt import ImageSpan, Prompt, TokenSpan
from trifocal.templates import Control, Piece
from trifocal.timing import Timings
from trifocal.vision import Vision

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
        self._frame = (self._control(image_start), self._control(image_end))
        self._strip = strip_around_images

    def prompt(self, parts: Sequence[Piece], timings: Timings | None = None) -> Prompt:
        """The prompt of these parts; pictures that are not in the cache are looked at.

        Raises:
            UsageError: a control token that this tokenizer does not have.
        """
        layout = list(self._layout(parts))
        images = [item for item in layout if isinstance(item, Image)]
        seen = iter(self.vision.encode(images, timings) if images else [])
        return Prompt(self._span(item, next(seen)) if isinstance(item, Image) else item for item in layout)

    def count(self, parts: Sequence[Piece]) -> int:
        """How many positions the prompt of these parts will take; no picture is looked at."""
        layout = list(self._layout(parts))
        among = sum(isinstance(item, Image) for item in layout)
        return sum(self.vision.positions(item, among) if isinstance(item, Image) else len(item) for item in layout)

    def _span(self, image: Image, rows: torch.Tensor) -> ImageSpan:
        """A picture's span; the number of its rows tells apart the ways in which one vision may see it."""
        return ImageSpan(rows, f"{image.digest}:{self.vision.identity}:{len(rows)}")

    def _layout(self, parts: Sequence[Piece]) -> Iterator[TokenSpan | Image]:
        """Token spans and pictures in prompt order. A run of text between others is tokenised whole."""
        start, end = self._frame
        runs = list(_runs(parts))
        for at, part in enumerate(runs):
            before, after = runs[at - 1] if at else None, runs[at + 1] if at + 1 < len(runs) else None
            if at == 0 and not isinstance(part, str):
                yield TokenSpan(tuple(self._tokenizer.encode("", start=True)))
            if isinstance(part, str):
                text = self._stripped(part, isinstance(before, Image), isinstance(after, Image))
                if text or at == 0:
                    yield TokenSpan(tuple(self._tokenizer.encode(text, start=at == 0)))
            elif isinstance(part, Control):
                yield TokenSpan(self._control(part.name))
            else:
                yield TokenSpan(start)
                yield part
                yield TokenSpan(end)
        if not runs:
            yield TokenSpan(tuple(self._tokenizer.encode("", start=True)))

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


def _runs(parts: Sequence[Piece]) -> Iterator[Piece]:
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
