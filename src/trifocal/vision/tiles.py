"""Pictures in tiles (``anyres``): which canvas, which tiles, and how their rows become one block.

All sizes are ``(width, height)``. The arithmetic is that of LLaVA 1.6 and LLaVA-NeXT (``llava/mm_utils.py``,
``llava/model/llava_arch.py``) and of transformers' ``LlavaNext`` and ``LlavaOnevision``; where the two
differ, `Tiling` says which is meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image as Pictures

from trifocal.checkpoints import Preprocessing, Tiling, Tower
from trifocal.images import Image
from trifocal.vision.preprocessing import square
from trifocal.vision.showing import WHOLE, Box, PatchGrid, upper_left

if TYPE_CHECKING:
    import torch

__all__ = ["Canvas", "Grid", "InTiles", "canvas_of", "grid_of", "pack", "positions", "tiles_of"]

CAP = 1.1  # a grid is made smaller when its side is over the bound by more than this factor


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a picture lies on the canvas that is cut into tiles: all in pixels."""

    size: tuple[int, int]
    picture: tuple[int, int]
    at: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of patches that all tiles of a picture make together.

    ``columns`` and ``rows`` are what is kept of it (first, one past the last); ``size`` is what it is
    made smaller to, where there is a bound, else what is kept.
    """

    tiles: tuple[int, int]
    columns: tuple[int, int]
    rows: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class InTiles:
    """A picture of ``size`` seen whole and in tiles; see `trifocal.vision.ways.Way`."""

    size: tuple[int, int]
    preprocessing: Preprocessing = field(repr=False, compare=False)
    tower: Tower = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        side = self.tower.side
        return positions(self._grid, side, self._tiling, self.tower.patches - side**2)

    def squares(self, image: Image) -> list[Pictures.Image]:
        how, tiling = self.preprocessing, self._tiling
        # the original cuts with PIL's own default, transformers as its image processor is told
        resample = Pictures.Resampling.BICUBIC if tiling.digits is None else how.resample
        tiles = tiles_of(image.on(how.background), how.size, tiling, resample, how.resized)
        return tiles if how.resized is None else [square(tile, how, "crop") for tile in tiles]

    def boxes(self) -> list[tuple[str, Box]]:
        across, down = self._grid.tiles
        tiles = [(f"tile {y + 1},{x + 1}", self._tile(x, y)) for y in range(down) for x in range(across)]
        return [("whole", WHOLE), *tiles]

    def grids(self) -> list[PatchGrid]:
        side, patches, seen = self.tower.side, self.tower.patches, self.tower.looked_at
        first, grid, tiling = patches - side**2, self._grid, self._tiling  # a class token that is kept is no patch
        squares = [
            PatchGrid(at * patches + first, side, side, side, upper_left(box, seen))
            for at, (_, box) in enumerate(self.boxes())
        ]
        if tiling.merge == "flat":
            return squares
        kept = grid.columns[1] - grid.columns[0], grid.rows[1] - grid.rows[0]
        box = _canvas_box(self.size, tiling, (grid.columns[0], grid.rows[0]), kept, self.preprocessing.size / side)
        columns, rows = grid.size
        fine = PatchGrid(patches * tiling.base, rows, columns, columns + tiling.newline, box)
        return [squares[0], fine] if tiling.base else [fine]

    def block(self, features: torch.Tensor, newline: torch.Tensor | None) -> torch.Tensor:
        return pack(features, self._grid, self._tiling, newline if self._tiling.newline else None)

    @property
    def _tiling(self) -> Tiling:
        tiling = self.preprocessing.tiles
        assert tiling is not None
        return tiling

    @property
    def _grid(self) -> Grid:
        return grid_of(self.size, self.tower.image_size, self.tower.side, self._tiling)

    def _tile(self, x: int, y: int) -> Box:
        """Which part of the original a tile shows."""
        return _canvas_box(self.size, self._tiling, (x, y), (1, 1), self.preprocessing.size)


def canvas_of(size: tuple[int, int], tiling: Tiling) -> Canvas:
    """The canvas that shows most of a picture and wastes least, and where the picture lies on it."""
    width, height = size

    def shown(pinpoint: tuple[int, int]) -> tuple[int, int]:
        scale = min(pinpoint[0] / width, pinpoint[1] / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - pinpoint[0] * pinpoint[1]  # the second is what is wasted, negative

    wide, high = max(tiling.pinpoints, key=shown)  # the first of equals
    across, down = wide / width, high / height
    if across < down:
        picture = wide, min(math.ceil(height * across), high)
    else:
        picture = min(math.ceil(width * down), wide), high
    return Canvas((wide, high), picture, ((wide - picture[0]) // 2, (high - picture[1]) // 2))


def tiles_of(
    picture: Pictures.Image, side: int, tiling: Tiling, resample: int, whole: int | None = None
) -> list[Pictures.Image]:
    """The whole picture stretched to a tile, then its tiles row by row; what is left of the canvas is black.

    ``whole`` is the side of the first, where it is not that of a tile.
    """
    how = Pictures.Resampling(resample)
    canvas = canvas_of(picture.size, tiling)
    board = Pictures.new("RGB", canvas.size)
    board.paste(picture.resize(canvas.picture, how), canvas.at)
    wide, high = canvas.size
    boxes = [(x, y, x + side, y + side) for y in range(0, high, side) for x in range(0, wide, side)]
    whole = whole or side
    return [picture.resize((whole, whole), how), *(board.crop(box) for box in boxes)]


def grid_of(size: tuple[int, int], side: int, patches: int, tiling: Tiling) -> Grid:
    """The grid of a picture's tiles, of ``side`` pixels and ``patches`` x ``patches`` rows each."""
    wide, high = canvas_of(size, tiling).size
    tiles = wide // side, high // side
    columns, rows = (0, tiles[0] * patches), (0, tiles[1] * patches)
    if tiling.merge == "spatial_unpad":
        columns, rows = _unpadded(size, columns[1], rows[1], tiling.digits)
    kept = columns[1] - columns[0], rows[1] - rows[0]
    if tiling.merge == "spatial_maxpool2x2":
        return Grid(tiles, columns, rows, (kept[0] // 2, kept[1] // 2))
    if tiling.most is not None and tiling.merge == "spatial_unpad":
        over = math.sqrt(kept[0] * kept[1] / (tiling.most * patches**2))
        kept = (int(kept[0] // over), int(kept[1] // over)) if over > CAP else kept
    return Grid(tiles, columns, rows, kept)


def positions(grid: Grid, patches: int, tiling: Tiling, classes: int = 0) -> int:
    """How many rows `pack` makes of a grid, the whole picture's included where they are kept.

    ``classes`` is how many class tokens are kept before each tile's patches; a grid that is put together has none.
    """
    if tiling.merge == "flat":
        return (classes + patches**2) * (1 + grid.tiles[0] * grid.tiles[1])
    return int(patches**2 * tiling.base + (grid.size[0] + tiling.newline) * grid.size[1])


def pack(rows: torch.Tensor, grid: Grid, tiling: Tiling, newline: torch.Tensor | None) -> torch.Tensor:
    """The rows of a picture's tiles ``[tiles, patches, hidden]`` as one block ``[positions, hidden]``.

    The whole picture's come first, where they are kept; then the tiles' grid, row by row, each row ended by ``newline``
    ``[hidden]`` where there is one.
    """
    import torch
    from torch.nn import functional

    if tiling.merge == "flat":
        return rows.flatten(0, 1)
    patches = math.isqrt(rows.shape[1])
    across, down = grid.tiles
    board = rows[1:].view(down, across, patches, patches, -1).permute(0, 2, 1, 3, 4)
    board = board.reshape(down * patches, across * patches, -1)
    board = board[grid.rows[0] : grid.rows[1], grid.columns[0] : grid.columns[1]]  # [rows, columns, hidden]
    wide, high = grid.size
    channels = board.permute(2, 0, 1)[None]
    if tiling.merge == "spatial_maxpool2x2":
        board = functional.max_pool2d(channels, 2)[0].permute(1, 2, 0)
    elif board.shape[:2] != (high, wide):
        board = functional.interpolate(channels, size=(high, wide), mode="bilinear")[0].permute(1, 2, 0)
    if newline is not None:
        board = torch.cat([board, newline.to(board).expand(high, 1, -1)], dim=1)
    block = board.flatten(0, 1)
    return torch.cat([rows[0], block]) if tiling.base else block


def _unpadded(
    size: tuple[int, int], columns: int, rows: int, digits: int | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Which columns and rows of a grid show the picture and not only what is around it."""
    width, height = size

    def kept(exact: float) -> int:
        return int(exact if digits is None else round(exact, digits))

    if width / height > columns / rows:
        over = (rows - kept(height * (columns / width))) // 2
        return (0, columns), (over, rows - over)
    over = (columns - kept(width * (rows / height))) // 2
    return (over, columns - over), (0, rows)


def _canvas_box(size: tuple[int, int], tiling: Tiling, at: tuple[int, int], count: tuple[int, int], unit: float) -> Box:
    """Which part of the original some units of its canvas show."""
    canvas = canvas_of(size, tiling)
    wide, high = canvas.picture
    left, top = at[0] * unit - canvas.at[0], at[1] * unit - canvas.at[1]
    return left / wide, top / high, count[0] * unit / wide, count[1] * unit / high
