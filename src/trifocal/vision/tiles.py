"""Pictures in tiles (``anyres``): which canvas, which tiles, and how their rows become one block.

All sizes are ``(width, height)``. The arithmetic is that of LLaVA 1.6 and LLaVA-NeXT (``llava/mm_utils.py``,
``llava/model/llava_arch.py``) and of transformers' ``LlavaNext`` and ``LlavaOnevision``; where the two
differ, `Tiling` says which is meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image as Pictures

from trifocal.checkpoints import Frames, Tiling

if TYPE_CHECKING:
    import torch

__all__ = [
    "Canvas",
    "Grid",
    "canvas_of",
    "frame_rows",
    "frame_side",
    "frames_rows",
    "grid_of",
    "pack",
    "pack_frames",
    "positions",
    "tiles_of",
]

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


def positions(grid: Grid, patches: int, tiling: Tiling) -> int:
    """How many rows `pack` makes of a grid, the whole picture's included where they are kept."""
    if tiling.merge == "flat":
        return patches**2 * (1 + grid.tiles[0] * grid.tiles[1])
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


def frame_side(patches: int, video: Frames) -> int:
    """Rows along each side of a video's frame that has ``patches`` as a picture."""
    return math.ceil(patches / video.stride) if video.pool == "bilinear" else patches // video.stride


def frame_rows(patches: int, video: Frames) -> int:
    """Rows from the beginning of one frame to that of the next, the learned vectors between them included."""
    side = frame_side(patches, video)
    return side**2 + {"grid": side, "frame": 1}.get(video.newline, 0)


def frames_rows(frames: int, patches: int, video: Frames) -> int:
    """How many rows `pack_frames` makes of a video."""
    return frames * frame_rows(patches, video) + (video.newline == "one_token")


def pack_frames(rows: torch.Tensor, video: Frames, newline: torch.Tensor | None) -> torch.Tensor:
    """The rows of a video's frames ``[frames, patches, hidden]`` as one block ``[positions, hidden]``.

    Each frame's grid is made smaller, and ``newline`` ``[hidden]`` stands where `Frames` says.
    """
    import torch
    from torch.nn import functional

    frames, count, hidden = rows.shape
    patches = math.isqrt(count)
    channels = rows.view(frames, patches, patches, hidden).permute(0, 3, 1, 2)
    side = frame_side(patches, video)
    if video.stride == 1:
        small = channels
    elif video.pool == "bilinear":
        small = functional.interpolate(channels, size=(side, side), mode="bilinear")
    else:
        pool = functional.avg_pool2d if video.pool == "average" else functional.max_pool2d
        small = pool(channels, video.stride)
    block = small.permute(0, 2, 3, 1)  # [frames, rows, columns, hidden]
    if newline is None:
        return block.flatten(0, 2)
    newline = newline.to(block)
    if video.newline == "grid":
        block = torch.cat([block, newline.expand(frames, side, 1, -1)], dim=2)
    by_frame = block.flatten(1, 2)
    if video.newline == "frame":
        by_frame = torch.cat([by_frame, newline.expand(frames, 1, -1)], dim=1)
    ends = [newline[None]] if video.newline == "one_token" else []
    return torch.cat([by_frame.flatten(0, 1), *ends])


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
