"""Shorthands: pictures seen by a vision with no gallery in front of it, and parts made a prompt in one go."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trifocal.conversation.templates import Piece
from trifocal.images import Image
from trifocal.model.composer import Composer
from trifocal.prompt import Prompt
from trifocal.vision import Vision

__all__ = ["count", "prompt_of", "rows_of"]


def rows_of(vision: Vision, images: Sequence[Image]) -> list[torch.Tensor]:
    """The rows of a prompt's pictures."""
    return vision.see(vision.looks(images))


def count(vision: Vision, *images: Image) -> int:
    """How many rows these pictures will have in one prompt."""
    return sum(look.rows for look in vision.looks(images))


def prompt_of(composer: Composer, parts: Sequence[Piece]) -> Prompt:
    """The prompt of parts in prompt order."""
    return composer.seen(composer.outline(parts))
