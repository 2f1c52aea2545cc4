"""An outline: a prompt before anything is seen, its text as ids and its pictures as looks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trifocal.prompt import TokenSpan
from trifocal.vision import Look

__all__ = ["Outline", "Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """``count`` rows of look number ``look`` of the outline, from ``start`` on."""

    look: int
    start: int
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True, slots=True)
class Outline:
    """``(TokenSpan | Rows)*`` with the looks that the rows are of. Its length is the request's, in positions."""

    spans: tuple[TokenSpan | Rows, ...]
    looks: tuple[Look, ...]

    def __init__(self, spans: Iterable[TokenSpan | Rows], looks: Iterable[Look]) -> None:
        object.__setattr__(self, "spans", tuple(spans))
        object.__setattr__(self, "looks", tuple(looks))

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def image_positions(self) -> int:
        """How many positions are pictures."""
        return sum(look.rows for look in self.looks)

    @property
    def text_positions(self) -> int:
        """How many positions are text, the tokens around pictures among them."""
        return len(self) - self.image_positions
