"""What of a picture the model is shown, and where each of a picture's rows looks.

Boxes are ``(x, y, width, height)`` in shares of the original's sides: ``(0, 0, 1, 1)`` is all of it. A box goes beyond
that where there is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trifocal.vision.base import Look

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["WHOLE", "Box", "PatchGrid", "Showing", "View", "upper_left"]

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A square that the tower sees, its name, and which part of the original it shows."""

    picture: Picture
    title: str
    box: Box


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Some of a picture's rows as a grid over it.

    Row ``r`` and column ``c`` of the grid is row ``start + r * step + c`` of the picture's block.
    """

    start: int
    rows: int
    columns: int
    step: int
    box: Box


@runtime_checkable
class Showing(Protocol):
    """What a vision has besides when it can tell what it shows of a picture."""

    def views(self, look: Look) -> list[View]:
        """All squares that the tower sees of a picture."""
        ...

    def grids(self, look: Look) -> list[PatchGrid]:
        """Which row of a picture looks where. Rows that belong to no patch are in none."""
        ...


def upper_left(box: Box, share: float) -> Box:
    """The upper left of a box: a rest narrower than a patch is not looked at."""
    return box[0], box[1], box[2] * share, box[3] * share
