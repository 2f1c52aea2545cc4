"""How a conversation is written for a server that writes it down itself: not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trifocal.conversation.templates import IMAGE_MARK, Piece
from trifocal.errors import NotSupported
from trifocal.images import Image
from trifocal.messages import Message, Tool

__all__ = ["Passed"]


@dataclass(frozen=True, slots=True)
class Passed:
    """Stands where a conversation template stands: every turn is there as it was sent."""

    name: str = "its server's own"
    system: str = ""
    pictures: Literal["first", "last"] = "first"
    stop: tuple[str, ...] = ()
    system_inside: bool = True
    has_tools: bool = True
    alternates: bool = False

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Piece, ...]:
        """Its server does that."""
        raise NotSupported("this conversation is written down by another server")

    def question(self, text: str, images: Sequence[Image] = ()) -> Message:
        """A user's turn: the pictures before the text, unless ``<image>`` says in the text where they go."""
        if not text or IMAGE_MARK not in text:
            return Message("user", (*images, text) if text else tuple(images))
        return Message("user", (text, *images))
