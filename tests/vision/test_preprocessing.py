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
def test_a_square_is_one_however_others_are_fitted(fit: Fit) -> None:
    image, made = from_pil(Pictures.fromarray(_edges((123, 123)))), Preprocessing(28, fit)
    values = preprocessing.pixels_on(torch.device("cpu"), image, made)
    assert values is not None
    assert torch.equal(values, preprocessing.pixels([preprocessing.shown(image, made)], made))


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ((90, 60), Preprocessing(28, "crop")),
        ((90, 60), Preprocessing(28, "stretch")),
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
