"""From a picture to squares, and from squares to pixel values."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as Pictures

from trifocal.checkpoints import Fit, Preprocessing
from trifocal.images import Image
from trifocal.vision.resizing import KNOWN, Axis, on_canvas, rows_first
from trifocal.vision.showing import Box

__all__ = ["pixels", "pixels_on", "shown", "square", "square_box"]

_STRIP = 1 << 20  # pixels of a padded picture that are held at a time


def shown(image: Image, preprocessing: Preprocessing) -> Pictures.Image:
    """A picture as one square: ``size`` x ``size`` RGB, after padding, resizing and cropping.

    Resized on 8-bit values and to truncated sizes, as CLIP's own processor does it; the padding is that
    of LLaVA 1.5 (``expand2square``).
    """
    return square(image.on(preprocessing.background), preprocessing, preprocessing.fit)


def pixels(squares: Sequence[Pictures.Image], preprocessing: Preprocessing) -> torch.Tensor:
    """The pixel values of squares, ``[squares, 3, size, size]`` in float32."""
    return torch.stack([_values(each, preprocessing) for each in squares])


def pixels_on(device: torch.device, image: Image, preprocessing: Preprocessing) -> torch.Tensor | None:
    """What `pixels` makes of the one square of `shown`, computed on a device that has float64: the same values there.

    None where that is not known: for pictures that are enlarged, a filter that is not built anew, and a version of PIL
    whose order of directions nobody knows.
    """
    picture, size = image.on(preprocessing.background), preprocessing.size
    how, axes = Pictures.Resampling(preprocessing.resample), _axes(picture.size, preprocessing)
    enlarged = any(axis.to > axis.canvas for axis in axes)
    order = (
        True if preprocessing.fit == "pad" else rows_first(*axes)
    )  # padded squares are resized rows first, see below
    if how not in KNOWN or enlarged or order is None:
        return None
    given = torch.from_numpy(np.array(picture)).to(device).permute(2, 0, 1)  # [3, height, width]
    levels = on_canvas(given, *axes, how, preprocessing.pad_colour, rows_first=order)
    told = (preprocessing.rescale, preprocessing.normalise, tuple(preprocessing.mean), tuple(preprocessing.std))
    table = torch.from_numpy(_table(*told)).to(device)
    return table.gather(1, levels.flatten(1).long()).view(1, 3, size, size)


def _axes(own: tuple[int, int], preprocessing: Preprocessing) -> tuple[Axis, Axis]:
    """How one square comes from a picture of these pixels, across and down."""
    canvas = (max(own), max(own)) if preprocessing.fit == "pad" else own
    wide, high = (
        Axis(pixels, whole, (whole - pixels) // 2, to, (to - preprocessing.size) // 2, preprocessing.size)
        for pixels, whole, to in zip(own, canvas, _resized(canvas, preprocessing, preprocessing.fit), strict=True)
    )
    return wide, high


def _resized(own: tuple[int, int], preprocessing: Preprocessing, fit: Fit) -> tuple[int, int]:
    """The pixels to which a picture, or its padded square, is resized before it is cropped."""
    (width, height), to = own, preprocessing.resized or preprocessing.size
    if fit == "stretch":
        return to, to
    return (to, to * height // width) if width <= height else (to * width // height, to)


def _values(picture: Pictures.Image, preprocessing: Preprocessing) -> torch.Tensor:
    told = (preprocessing.rescale, preprocessing.normalise, tuple(preprocessing.mean), tuple(preprocessing.std))
    levels = np.asarray(picture)  # [height, width, 3]
    values = np.empty((3, *levels.shape[:2]), np.float32)
    for channel, table in enumerate(_table(*told)):
        np.take(table, levels[..., channel], out=values[channel])
    return torch.from_numpy(values)


@functools.lru_cache(maxsize=16)
def _table(
    rescale: float, normalise: bool, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What each of the 256 levels becomes in each channel, ``[3, 256]``."""
    # a product of float64, then rounded, as the image processors of every release's day made it
    values = (np.tile(np.arange(256, dtype=np.float64), (3, 1)) * rescale).astype(np.float32)
    if normalise:
        values = (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return values


def square(picture: Pictures.Image, preprocessing: Preprocessing, fit: Fit) -> Pictures.Image:
    """An RGB picture as one square, as ``fit`` says."""
    size, how = preprocessing.size, Pictures.Resampling(preprocessing.resample)
    if fit == "pad":
        picture = _padded(picture, preprocessing.pad_colour, preprocessing.resized or size, how)
    wide, high = _resized(picture.size, preprocessing, fit)
    left, top = (wide - size) // 2, (high - size) // 2  # below 0 where it is enlarged: the rest is black
    return picture.resize((wide, high), how).crop((left, top, left + size, top + size))


def square_box(size: tuple[int, int], preprocessing: Preprocessing, fit: Fit) -> Box:
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


def _padded(picture: Pictures.Image, colour: tuple[int, int, int], to: int, how: Pictures.Resampling) -> Pictures.Image:
    """The picture in the middle of a square of one colour, resized to ``to`` by ``to``.

    PIL resizes rows first, then columns, and so it is done here, a few rows of the square at a time: the whole square
    of a picture of 16,384 by 82 pixels would take a gigabyte. The pixels are the same.
    """
    width, height = picture.size
    side = max(width, height)
    if width == height:
        return picture
    left, top, step = (side - width) // 2, (side - height) // 2, max(1, _STRIP // side)
    narrow = Pictures.new("RGB", (to, side), colour)
    if width == side:  # its rows are whole rows of the square
        narrow.paste(picture.resize((to, height), how), (0, top))
        return narrow.resize((to, to), how)
    for at in range(top, top + height, step):
        rows = min(step, top + height - at)
        strip = Pictures.new("RGB", (side, rows), colour)
        strip.paste(picture.crop((0, at - top, width, at - top + rows)), (left, 0))
        narrow.paste(strip.resize((to, rows), how), (0, at))
    return narrow.resize((to, to), how)
