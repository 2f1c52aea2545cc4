"""The three ways in which LLaVA sees a picture, which have one shape, and which of them it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trifocal.checkpoints import Preprocessing, Tower
from trifocal.errors import BadImage
from trifocal.images import Image
from trifocal.vision.frames import InFrames
from trifocal.vision.showing import Box, PatchGrid
from trifocal.vision.tiles import InTiles
from trifocal.vision.whole import OneSquare

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

__all__ = ["Way", "way_of"]


@runtime_checkable
class Way(Protocol):
    """How a picture of some size is seen: which squares the tower gets, and what becomes of their rows.

    Two of them are equal where one preprocessing and one tower make the same of the same picture.
    """

    def __hash__(self) -> int: ...

    @property
    def preprocessing(self) -> Preprocessing:
        """From its squares to pixel values."""
        ...

    @property
    def rows(self) -> int:
        """How many rows `block` will make."""
        ...

    def squares(self, image: Image) -> list[Picture]:
        """All squares that the tower sees of the picture, in order."""
        ...

    def boxes(self) -> list[tuple[str, Box]]:
        """The name of each square, and which part of the picture it shows."""
        ...

    def grids(self) -> list[PatchGrid]:
        """Which row looks where, coarse grids before fine ones."""
        ...

    def block(self, features: torch.Tensor, newline: torch.Tensor | None) -> torch.Tensor:
        """The rows ``[rows, hidden]`` of the squares' projected features ``[squares, patches, hidden]``.

        ``newline`` is the learned row ``[hidden]``, where the checkpoint has one.
        """
        ...


def way_of(image: Image, preprocessing: Preprocessing, tower: Tower, *, alone: bool = True) -> Way:
    """How a picture is seen that is the only one of its prompt, or not.

    Raises:
        BadImage: a video for a model that was not made for them.
    """
    size, tiling = (image.width, image.height), preprocessing.tiles
    if image.frames:
        if preprocessing.video is None:
            raise BadImage("is_a_video", "this model takes pictures, not videos", image.name)
        return InFrames(len(image.frames), size, preprocessing.of_frames, tower)
    if tiling is None or (tiling.alone and not alone):
        return OneSquare(size, preprocessing, tower)
    return InTiles(size, preprocessing, tower)
