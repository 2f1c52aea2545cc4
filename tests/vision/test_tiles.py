"""Tiles: the worked examples of the original code and of transformers, and what unpadding keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image as Pictures
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from trifocal.checkpoints import Frames, Tiling
from trifocal.vision.frames import frame_side, pack_frames
from trifocal.vision.tiles import canvas_of, grid_of, pack, positions, tiles_of

ORIGINAL = Tiling(((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)))
HF = replace(ORIGINAL, pinpoints=tuple((high, wide) for wide, high in ORIGINAL.pinpoints), digits=7)
ONEVISION = Tiling(tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7)), most=9, digits=7, alone=True)

# picture, canvas, resized, at, kept columns x rows, positions
NEXT = [
    ((672, 672), (672, 672), (672, 672), (0, 0), (48, 48), 2928),
    ((640, 480), (672, 672), (672, 504), (0, 84), (48, 36), 2340),
    ((480, 640), (672, 672), (504, 672), (84, 0), (36, 48), 2352),
    ((336, 1344), (336, 1008), (252, 1008), (42, 0), (18, 72), 1944),
    ((1344, 336), (1008, 336), (1008, 252), (0, 42), (72, 18), 1890),
    ((1024, 1024), (672, 672), (672, 672), (0, 0), (48, 48), 2928),
    ((1024, 899), (672, 672), (672, 590), (0, 41), (48, 42), 2634),
    ((1920, 1080), (672, 672), (672, 378), (0, 147), (48, 28), 1948),
    ((1080, 1920), (672, 672), (378, 672), (147, 0), (28, 48), 1968),
    ((800, 600), (672, 672), (672, 504), (0, 84), (48, 36), 2340),
    ((640, 427), (672, 672), (672, 449), (0, 111), (48, 32), 2144),
    ((500, 300), (672, 336), (560, 336), (56, 0), (40, 24), 1560),
    ((672, 336), (672, 336), (672, 336), (0, 0), (48, 24), 1752),
    ((336, 672), (336, 672), (336, 672), (0, 0), (24, 48), 1776),
    ((1008, 336), (1008, 336), (1008, 336), (0, 0), (72, 24), 2328),
    ((336, 1008), (336, 1008), (336, 1008), (0, 0), (24, 72), 2376),
    ((336, 336), (336, 672), (336, 336), (0, 168), (24, 24), 1176),
    ((224, 224), (336, 672), (336, 336), (0, 168), (24, 24), 1176),
    ((100, 80), (336, 672), (336, 269), (0, 201), (24, 20), 1076),
    ((2000, 200), (1008, 336), (1008, 101), (0, 117), (72, 8), 1160),
]
# picture, canvas, kept columns x rows, columns x rows under the bound, positions
ONEVISION_TABLE = [
    ((384, 384), (384, 384), (27, 27), (27, 27), 1485),
    ((100, 100), (384, 384), (27, 27), (27, 27), 1485),
    ((640, 480), (768, 768), (54, 40), (54, 40), 2929),
    ((672, 672), (768, 768), (54, 54), (54, 54), 3699),
    ((336, 1344), (384, 1536), (27, 108), (27, 108), 3753),
    ((1024, 899), (1152, 1152), (81, 71), (81, 71), 6551),
    ((1024, 1024), (1152, 1152), (81, 81), (81, 81), 7371),
    ((1920, 1080), (1920, 1152), (135, 75), (108, 60), 7269),
    ((1080, 1920), (1152, 1920), (75, 135), (60, 108), 7317),
    ((3000, 2000), (2304, 1536), (162, 108), (99, 66), 7329),
    ((4000, 1000), (2304, 768), (162, 40), (162, 40), 7249),
]


@pytest.mark.parametrize(("size", "wanted", "resized", "at", "kept", "rows"), NEXT)
def test_the_examples_of_1_6(
    size: tuple[int, int],
    wanted: tuple[int, int],
    resized: tuple[int, int],
    at: tuple[int, int],
    kept: tuple[int, int],
    rows: int,
) -> None:
    canvas, grid = canvas_of(size, ORIGINAL), grid_of(size, 336, 24, ORIGINAL)
    assert (canvas.size, canvas.picture, canvas.at) == (wanted, resized, at)
    assert (grid.size, positions(grid, 24, ORIGINAL)) == (kept, rows)


@given(st.integers(1, 3000), st.integers(1, 3000))
@example(100, 80)
@example(328, 205)
@example(352, 748)
def test_the_rows_of_transformers(width: int, height: int) -> None:
    pinpoints = [list(pair) for pair in ORIGINAL.pinpoints]
    down, across = get_anyres_image_grid_shape((height, width), pinpoints, 336)
    kept = unpad_image(torch.zeros(1, down * 24, across * 24), torch.tensor((height, width)))
    grid = grid_of((width, height), 336, 24, HF)
    assert (*grid.tiles, grid.size[1], grid.size[0]) == (across, down, *kept.shape[1:])


@pytest.mark.parametrize(("size", "wanted", "kept", "capped", "rows"), ONEVISION_TABLE)
def test_the_examples_of_onevision(
    size: tuple[int, int], wanted: tuple[int, int], kept: tuple[int, int], capped: tuple[int, int], rows: int
) -> None:
    grid = grid_of(size, 384, 27, ONEVISION)
    assert canvas_of(size, ONEVISION).size == wanted
    assert (grid.columns[1] - grid.columns[0], grid.rows[1] - grid.rows[0]) == kept
    assert (grid.size, positions(grid, 27, ONEVISION)) == (capped, rows)


@pytest.mark.parametrize(
    ("size", "original", "rounded"), [((328, 205), (24, 14), (24, 16)), ((352, 748), (24, 50), (24, 52))]
)
def test_the_original_cuts_off_what_transformers_rounds(
    size: tuple[int, int], original: tuple[int, int], rounded: tuple[int, int]
) -> None:
    """Five of 188,000 sizes differ between the two; these are two of them."""
    assert grid_of(size, 336, 24, ORIGINAL).size == original
    assert grid_of(size, 336, 24, replace(ORIGINAL, digits=7)).size == rounded


def test_equal_canvases_are_chosen_in_the_order_of_the_reader() -> None:
    assert canvas_of((300, 300), ORIGINAL).size == (336, 672)
    assert canvas_of((300, 300), HF).size == (672, 336)


def test_the_whole_comes_first_and_the_rest_of_the_canvas_is_black() -> None:
    picture = Pictures.new("RGB", (1344, 336), (200, 100, 50))
    whole, *tiles = tiles_of(picture, 336, ORIGINAL, 3)
    assert whole.getcolors() == [(336 * 336, (200, 100, 50))]
    assert len(tiles) == 3
    for tile in tiles:
        assert tile.getpixel((0, 41)) == (0, 0, 0)
        assert tile.getpixel((0, 42)) == (200, 100, 50)


def test_tiles_run_row_by_row() -> None:
    picture = Pictures.new("RGB", (672, 672))
    for at, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]):
        picture.paste(colour, (at % 2 * 336, at // 2 * 336, at % 2 * 336 + 336, at // 2 * 336 + 336))
    assert [tile.getpixel((9, 9)) for tile in tiles_of(picture, 336, ORIGINAL, 3)[1:]] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
    ]


@given(
    st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([ORIGINAL, HF, ONEVISION]),
)  # fmt: skip
def test_what_is_counted_is_what_is_packed(width: int, height: int, tiling: Tiling) -> None:
    tile, patches = (384, 27) if tiling is ONEVISION else (336, 24)
    grid = grid_of((width, height), tile, patches, tiling)
    rows = torch.zeros(1 + math.prod(grid.tiles), patches**2, 1)
    assert len(pack(rows, grid, tiling, torch.ones(1))) == positions(grid, patches, tiling)


@pytest.mark.parametrize(("merge", "count"), [("flat", 5 * 16), ("spatial", 16 + 64), ("spatial_unpad", 16 + 8 * 9)])
def test_the_ways_of_merging(merge: str, count: int) -> None:
    tiling = Tiling(((112, 112),), merge=merge, newline=merge == "spatial_unpad")  # type: ignore[arg-type]
    grid = grid_of((100, 100), 56, 4, tiling)
    rows = torch.arange(5 * 16.0).view(5, 16, 1)
    packed = pack(rows, grid, tiling, torch.tensor([-1.0]) if tiling.newline else None)
    assert len(packed) == positions(grid, 4, tiling) == count
    first_row = packed[16 : 16 + 8, 0].tolist()
    assert first_row == ([*range(16, 20), *range(32, 36)] if merge != "flat" else [*range(16, 24)])
    assert ((packed == -1).nonzero()[:, 0].tolist() if tiling.newline else []) == (
        [16 + 9 * at + 8 for at in range(8)] if tiling.newline else []
    )


def test_frames_are_halved_and_end_with_one_newline() -> None:
    packed = pack_frames(torch.ones(3, 27 * 27, 5), Frames(), torch.full((5,), 7.0))
    assert packed.shape == (3 * 196 + 1, 5)
    assert (frame_side(27, Frames()), frame_side(27, Frames("max"))) == (14, 13)
    assert packed[-1].tolist() == [7.0] * 5
    torch.testing.assert_close(packed[:-1], torch.ones(3 * 196, 5))
