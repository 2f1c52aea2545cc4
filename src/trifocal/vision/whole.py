"""A picture seen as one square."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trifocal.checkpoints import Preprocessing, Tower
from trifocal.images import Image
from trifocal.vision.preprocessing import shown, square_box
from trifocal.vision.showing import Box, PatchGrid, upper_left

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

__all__ = ["OneSquare"]


@dataclass(frozen=True, slots=True)
class OneSquare:
    """A picture of ``size`` seen as one square; see `trifocal.vision.ways.Way`."""

    size: tuple[int, int]
    preprocessing: Preprocessing = field(repr=False, compare=False)
    tower: Tower = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        return self.tower.patches + self.preprocessing.newline

    def squares(self, image: Image) -> list[Picture]:
        return [shown(image, self.preprocessing)]

    def boxes(self) -> list[tuple[str, Box]]:
        return [("whole", self._box())]

    def grids(self) -> list[PatchGrid]:
        side = self.tower.side
        # a class token that is kept is no patch; below 0 the first patch has no row
        first = self.tower.patches - side**2
        return [PatchGrid(first, side, side, side, upper_left(self._box(), self.tower.looked_at))]

    def block(self, features: torch.Tensor, newline: torch.Tensor | None) -> torch.Tensor:
        import torch

        rows = features[0]
        ends = [newline.to(rows)[None]] if self.preprocessing.newline and newline is not None else []
        return torch.cat([rows, *ends])

    def _box(self) -> Box:
        return square_box(self.size, self.preprocessing, self.preprocessing.fit)
