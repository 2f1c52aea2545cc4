"""What is shown of a picture and where each row looks: told by pictures whose colour says where a point is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from trifocal.checkpoints import Frames, Preprocessing, Tiling, Tower
from trifocal.images import Image, from_frames, from_pil
from trifocal.vision import Box, PatchGrid, View, way_of
from trifocal.vision.frames import pack_frames
from trifocal.vision.tiles import grid_of, pack

SIDE, PATCH = 56, 14
TOWER = Tower(Path(), 8, 2, 2, 16, SIDE, PATCH)
PINPOINTS = ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
SIZES = [(200, 200), (300, 200), (120, 290), (97, 61), (56, 400)]


def compass(width: int, height: int) -> Image:
    """A picture whose red is the share from the left and whose green that from the top."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return from_pil(Pictures.fromarray((np.stack([x, y, 0 * x], -1) * 255).round().astype(np.uint8)))


def middle(box: Box, rows: int, columns: int, row: int, column: int) -> tuple[float, float]:
    """Where the middle of a patch lies, in shares of the picture."""
    return box[0] + (column + 0.5) / columns * box[2], box[1] + (row + 0.5) / rows * box[3]


def well_inside(box: Box, rows: int, columns: int, row: int, column: int, slack: float = 0.2) -> bool:
    """Whether a patch, and a share of a patch around it, show nothing but the picture."""
    x, y = middle(box, rows, columns, row, column)
    wide, high = (0.5 + slack) * box[2] / columns, (0.5 + slack) * box[3] / rows
    return wide < x < 1 - wide and high < y < 1 - high


def means(view: View) -> np.ndarray:
    """The mean colour of each patch of a view, ``[rows, columns, 3]`` in 0 to 1."""
    values = np.asarray(view.picture, np.float64) / 255
    count = SIDE // PATCH
    return values.reshape(count, PATCH, count, PATCH, 3).mean((1, 3))


def preprocessing(fit: str, tiles: Tiling | None = None) -> Preprocessing:
    return Preprocessing(SIDE, fit, tiles=tiles)  # type: ignore[arg-type]


TILED = preprocessing("pad", Tiling(PINPOINTS))


def shown_views(image: Image, how: Preprocessing, alone: bool = True) -> list[View]:
    way = way_of(image, how, TOWER, alone=alone)
    return [View(square, *box) for square, box in zip(way.squares(image), way.boxes(), strict=True)]


def patch_grids(image: Image, tower: Tower, how: Preprocessing, alone: bool = True) -> list[PatchGrid]:
    return way_of(image, how, tower, alone=alone).grids()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", [preprocessing("crop"), preprocessing("pad"), preprocessing("stretch"), TILED])
def test_a_view_shows_what_its_box_says(size: tuple[int, int], how: Preprocessing) -> None:
    views = shown_views(compass(*size), how)
    checked = 0
    for view in views:
        seen = means(view)
        for row in range(4):
            for column in range(4):
                x, y = middle(view.box, 4, 4, row, column)
                if well_inside(view.box, 4, 4, row, column):
                    assert seen[row, column, 0] == pytest.approx(x, abs=0.03)
                    assert seen[row, column, 1] == pytest.approx(y, abs=0.03)
                    checked += 1
    assert checked or min(size) < max(size) / 2  # a strip so thin may fill no patch
    assert views[0].title == "whole"
    assert len(views) == (
        1 if how.tiles is None else 1 + len([view for view in views if view.title.startswith("tile ")])
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("merge", ["spatial_unpad", "spatial", "flat"])
@pytest.mark.parametrize("newline", [True, False])
@pytest.mark.parametrize("most", [None, 1])
def test_each_row_looks_where_its_grid_says(size: tuple[int, int], merge: str, newline: bool, most: int | None) -> None:
    """The colours of all tiles' patches go the way of their features; each must land where the grid says."""
    if merge == "flat" and newline:
        newline = False  # flat blocks have none
    tiling = Tiling(PINPOINTS, merge, newline=newline, most=most)  # type: ignore[arg-type]
    how = preprocessing("pad", tiling)
    image = compass(*size)
    features = torch.from_numpy(np.stack([means(view).reshape(16, 3) for view in shown_views(image, how)]))
    grid = grid_of(size, SIDE, 4, tiling)
    rows = pack(features, grid, tiling, torch.full((3,), 9.0) if newline else None)
    grids = patch_grids(image, TOWER, how)
    seen: set[int] = set()
    for each in grids:
        for row in range(each.rows):
            for column in range(each.columns):
                at = each.start + row * each.step + column
                seen.add(at)
                x, y = middle(each.box, each.rows, each.columns, row, column)
                if well_inside(each.box, each.rows, each.columns, row, column, 1.0):
                    assert rows[at, 0] == pytest.approx(x, abs=0.06)
                    assert rows[at, 1] == pytest.approx(y, abs=0.06)
    assert seen == {at for at in range(len(rows)) if rows[at, 0] != 9}


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_class_token_that_is_kept_is_no_patch(fit: str) -> None:
    kept = Tower(Path(), 8, 2, 2, 16, SIDE, PATCH, keep_first=True)
    (grid,) = patch_grids(compass(80, 60), kept, preprocessing(fit))
    assert (grid.start, grid.rows, grid.columns, grid.step) == (1, 4, 4, 4)
    (grid,) = patch_grids(compass(80, 60), TOWER, preprocessing(fit))
    assert grid.start == 0


def test_boxes_of_pictures_that_are_not_square() -> None:
    wide = compass(300, 200)
    assert shown_views(wide, preprocessing("pad"))[0].box == pytest.approx((0, -0.25, 1, 1.5))
    assert shown_views(wide, preprocessing("crop"))[0].box == pytest.approx((1 / 6, 0, 2 / 3, 1))
    assert shown_views(wide, preprocessing("stretch"))[0].box == (0, 0, 1, 1)


def test_what_is_narrower_than_a_patch_is_not_looked_at() -> None:
    """384 pixels are 27 patches of 14, and 6 pixels."""
    siglip = Tower(Path(), 8, 2, 2, 16, 384, 14, kind="siglip", keep_first=True)
    (grid,) = patch_grids(compass(100, 100), siglip, Preprocessing(384, "stretch"))
    assert grid == PatchGrid(0, 27, 27, 27, (0, 0, 378 / 384, 378 / 384))


def test_several_pictures_are_not_cut_where_only_a_lone_one_is() -> None:
    lone = preprocessing("pad", Tiling(PINPOINTS, alone=True))
    image = compass(300, 200)
    assert len(patch_grids(image, TOWER, lone)) == 2
    assert [grid.rows for grid in patch_grids(image, TOWER, lone, alone=False)] == [4]
    assert [view.title for view in shown_views(image, lone, alone=False)] == ["whole"]


def test_a_video_is_its_frames() -> None:
    how = replace(preprocessing("pad"), video=Frames())
    video = from_frames([compass(60, 60).pixels] * 3)
    assert [view.title for view in shown_views(video, how)] == ["frame 1", "frame 2", "frame 3"]
    assert [(grid.start, grid.rows) for grid in patch_grids(video, TOWER, how)] == [(0, 2), (4, 2), (8, 2)]


@pytest.mark.parametrize("newline", ["grid", "frame", "one_token", "no_token"])
@pytest.mark.parametrize("pool", ["bilinear", "average", "max"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_each_row_of_a_video_is_where_its_grid_says(newline: str, pool: str, stride: int) -> None:
    frames = Frames(pool, stride, newline)  # type: ignore[arg-type]
    rows = torch.arange(2 * 16, dtype=torch.float32).view(2, 16, 1)
    block = pack_frames(rows, frames, torch.tensor([-1.0]))[:, 0]
    video = from_frames([compass(60, 60).pixels] * 2)
    grids = patch_grids(video, TOWER, replace(preprocessing("pad"), video=frames))
    told = [grid.start + r * grid.step + c for grid in grids for r in range(grid.rows) for c in range(grid.columns)]
    assert told == [at for at, value in enumerate(block.tolist()) if value >= 0]
    shown = grids[0].rows * stride / 4 if pool != "bilinear" else 1
    assert grids[0].box[2:] == (shown, shown)
