"""What of a picture the model is shown, and where each of a picture's rows looks.

Boxes are ``(x, y, width, height)`` in shares of the original's sides: ``(0, 0, 1, 1)`` is all of it. A box goes beyond
that where there is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trifocal.checkpoints import Preprocessing, Tower
from trifocal.images import Image
from trifocal.vision.preprocessing import is_tiled, views
from trifocal.vision.tiles import canvas_of, frame_rows, frame_side, grid_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from trifocal.checkpoints import Fit, Frames, Tiling

__all__ = ["Box", "PatchGrid", "Showing", "View", "patch_grids", "shown_views"]

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

    def views(self, image: Image, among: int = 1) -> list[View]:
        """All squares that the tower sees of a picture in a prompt with ``among`` of them."""
        ...

    def grids(self, image: Image, among: int = 1) -> list[PatchGrid]:
        """Which row of a picture looks where. Rows that belong to no patch are in none."""
        ...


def shown_views(image: Image, preprocessing: Preprocessing, among: int = 1) -> list[View]:
    """The squares that the tower sees, each with its name and its part of the original.

    Raises:
        BadImage: a video for a model that was not made for them.
    """
    pictures = views(image, preprocessing, among)
    size, tiling = (image.width, image.height), preprocessing.tiles
    if image.frames and preprocessing.video is not None:
        box = _square_box(size, preprocessing, preprocessing.video.fit)
        return [View(each, f"frame {at}", box) for at, each in enumerate(pictures, 1)]
    if tiling is None or not is_tiled(preprocessing, among):
        return [View(pictures[0], "whole", _square_box(size, preprocessing, preprocessing.fit))]
    across = canvas_of(size, tiling).size[0] // preprocessing.size
    tiles = [
        View(
            each,
            f"tile {at // across + 1},{at % across + 1}",
            _canvas_box(size, tiling, (at % across, at // across), (1, 1), preprocessing.size),
        )
        for at, each in enumerate(pictures[1:])
    ]
    return [View(pictures[0], "whole", WHOLE), *tiles]


def patch_grids(image: Image, tower: Tower, preprocessing: Preprocessing, among: int = 1) -> list[PatchGrid]:
    """Which row of a picture looks where, coarse grids before fine ones."""
    side, size = tower.side, (image.width, image.height)
    first = tower.patches - side**2  # a class token that is kept is no patch
    seen = side * tower.patch_size / tower.image_size  # a rest narrower than a patch is not looked at
    tiling = preprocessing.tiles
    if image.frames and preprocessing.video is not None:
        return _frame_grids(image, side, seen, preprocessing, preprocessing.video)
    if tiling is None or not is_tiled(preprocessing, among):
        return [PatchGrid(first, side, side, side, _part(_square_box(size, preprocessing, preprocessing.fit), seen))]
    whole = PatchGrid(first, side, side, side, _part(WHOLE, seen))
    grid = grid_of(size, tower.image_size, side, tiling)
    if tiling.merge == "flat":
        boxes = [
            _canvas_box(size, tiling, (x, y), (1, 1), preprocessing.size)
            for y in range(grid.tiles[1])
            for x in range(grid.tiles[0])
        ]
        starts = range(tower.patches + first, tower.patches * (len(boxes) + 1), tower.patches)
        tiles = [PatchGrid(at, side, side, side, _part(box, seen)) for at, box in zip(starts, boxes, strict=True)]
        return [whole, *tiles]
    patch = preprocessing.size / side
    kept = grid.columns[1] - grid.columns[0], grid.rows[1] - grid.rows[0]
    box = _canvas_box(size, tiling, (grid.columns[0], grid.rows[0]), kept, patch)
    columns, rows = grid.size
    fine = PatchGrid(tower.patches * tiling.base, rows, columns, columns + tiling.newline, box)
    return [whole, fine] if tiling.base else [fine]


def _frame_grids(image: Image, side: int, seen: float, preprocessing: Preprocessing, video: Frames) -> list[PatchGrid]:
    """Which row of a video looks where in its frames; pooling leaves away what is no whole stride."""
    small, step = frame_side(side, video), frame_rows(side, video)
    if video.pool != "bilinear":
        seen *= small * video.stride / side
    box = _part(_square_box((image.width, image.height), preprocessing, video.fit), seen)
    across = small + (video.newline == "grid")
    return [PatchGrid(at * step, small, small, across, box) for at in range(len(image.frames))]


def _square_box(size: tuple[int, int], preprocessing: Preprocessing, fit: Fit) -> Box:
    """Which part of the original one square shows."""
    width, height = size
    kept = preprocessing.size / (preprocessing.resized or preprocessing.size)  # the middle of what is resized
    if fit == "stretch":
        across, down = kept, kept
    else:
        side = kept * (max(width, height) if fit == "pad" else min(width, height))
        across, down = side / width, side / height
    if fit == "pad" and kept == 1:
        return -((side - width) // 2) / width, -((side - height) // 2) / height, across, down
    return (1 - across) / 2, (1 - down) / 2, across, down


def _canvas_box(size: tuple[int, int], tiling: Tiling, at: tuple[int, int], count: tuple[int, int], unit: float) -> Box:
    """Which part of the original some units of its canvas show."""
    canvas = canvas_of(size, tiling)
    wide, high = canvas.picture
    left, top = at[0] * unit - canvas.at[0], at[1] * unit - canvas.at[1]
    return left / wide, top / high, count[0] * unit / wide, count[1] * unit / high


def _part(box: Box, share: float) -> Box:
    """The upper left of a box."""
    return box[0], box[1], box[2] * share, box[3] * share
