"""A few rows at a time, or products on a device: the very pixels of PIL's resizing of the whole square."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from trifocal.checkpoints import Fit, Preprocessing
from trifocal.images import from_pil
from trifocal.vision import preprocessing, resizing
from trifocal.vision.resizing import KNOWN


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (200, 1), (1, 200), (33, 32), (500, 3), (14, 9), (1001, 997)])
@pytest.mark.parametrize("how", list(Pictures.Resampling))
@pytest.mark.parametrize("strip", [1, 2100, 1 << 20])
def test_it_is_the_square_padded_whole(
    size: tuple[int, int], how: Pictures.Resampling, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocessing, "_STRIP", strip)
    width, height = size
    picture = Pictures.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))
    side, colour = max(size), (12, 34, 56)
    canvas = Pictures.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    whole = canvas.resize((28, 28), how)
    assert preprocessing._padded(picture, colour, 28, how).tobytes() == whole.tobytes()


SHAPES = [(61, 40), (40, 61), (300, 300), (500, 33), (57, 411), (1001, 997), (640, 480), (33, 700)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("to", [None, 32])
def test_products_of_whole_numbers_are_what_pil_makes(size: tuple[int, int], to: int | None) -> None:
    for how in sorted(KNOWN):
        made = Preprocessing(28, "pad", resample=int(how), resized=to)
        for levels in (np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8), _edges(size)):
            image = from_pil(Pictures.fromarray(levels))
            values = preprocessing.pixels_on(torch.device("cpu"), image, made)
            assert values is not None
            assert torch.equal(values, preprocessing.pixels([preprocessing.shown(image, made)], made))


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(123, 123), (90, 60), (60, 90), (64, 300), (28, 40), (300, 31), (97, 42), (96, 180)])
def test_pictures_that_are_not_padded_are_resized_in_the_order_of_pil(size: tuple[int, int], fit: Fit) -> None:
    for to in (None, 32):
        image, made = from_pil(Pictures.fromarray(_edges(size))), Preprocessing(28, fit, resized=to)
        values = preprocessing.pixels_on(torch.device("cpu"), image, made)
        assert (values is None) == (min(size) < (to or 28))
        if values is not None:
            assert torch.equal(values, preprocessing.pixels([preprocessing.shown(image, made)], made))


def test_the_installed_pil_resizes_in_the_order_that_is_told() -> None:
    """Sizes around the border: 100 x 100 whose rows lose 20 pixels and whose columns lose about twice as many."""
    for wide, high in ((80, 59), (80, 60), (80, 61), (99, 97), (99, 98), (101, 99), (101, 100), (101, 101), (40, 10)):
        across, down = resizing.Axis(100, 100, 0, wide, 0, wide), resizing.Axis(100, 100, 0, high, 0, high)
        levels, order = _edges((100, 100)), resizing.rows_first(across, down)
        assert order is not None, "this version of PIL is not known: find its order, and tell it in `rows_first`"
        given, how = torch.from_numpy(levels).permute(2, 0, 1), Pictures.Resampling.BICUBIC
        made = resizing.on_canvas(given, across, down, how, (0, 0, 0), rows_first=order).permute(1, 2, 0)
        assert made.numpy().tobytes() == Pictures.fromarray(levels).resize((wide, high), how).tobytes(), (wide, high)


def test_a_pil_of_another_day_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    image, made = from_pil(Pictures.fromarray(_edges((60, 90)))), Preprocessing(28, "stretch")
    monkeypatch.setattr(resizing, "_VERSION", 14)
    assert preprocessing.pixels_on(torch.device("cpu"), image, made) is None


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ((90, 20), Preprocessing(28, "crop")),
        ((90, 20), Preprocessing(28, "stretch")),
        ((20, 9), Preprocessing(28, "pad")),
        ((90, 60), Preprocessing(28, "pad", resample=1)),
    ],
)
def test_what_is_not_certain_is_left_to_pil(size: tuple[int, int], made: Preprocessing) -> None:
    assert preprocessing.pixels_on(torch.device("cpu"), from_pil(Pictures.new("RGB", size)), made) is None


def test_large_pictures_are_multiplied_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "_AT_ONCE", 5000)
    image, made = from_pil(Pictures.fromarray(_edges((211, 90)))), Preprocessing(28, "pad")
    values = preprocessing.pixels_on(torch.device("cpu"), image, made)
    assert values is not None
    assert torch.equal(values, preprocessing.pixels([preprocessing.shown(image, made)], made))


def _edges(size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Black and white alone: sums that leave the range of levels on both sides."""
    return np.random.default_rng(6).choice(np.array([0, 255], np.uint8), (size[1], size[0], 3))
