"""Padding a few rows at a time gives the very pixels of padding the whole square."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pictures

from trifocal.vision import preprocessing


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
