"""From a picture to what the model is shown of it, and to pixel values."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image as Pictures

from trifocal.checkpoints import Preprocessing, Tower
from trifocal.errors import BadImage
from trifocal.images import Image
from trifocal.vision.tiles import frames_rows, grid_of, positions, tiles_of

__all__ = ["count", "is_tiled", "pixels", "shown", "views"]


def shown(image: Image, preprocessing: Preprocessing) -> Pictures.Image:
    """A picture as one square: ``size`` x ``size`` RGB, after padding, resizing and cropping.

    Resized on 8-bit values and to truncated sizes, as CLIP's own processor does it; the padding is that
    of LLaVA 1.5 (``expand2square``).
    """
    return _square(image.on(preprocessing.background), preprocessing, preprocessing.fit)


def views(image: Image, preprocessing: Preprocessing, among: int = 1) -> list[Pictures.Image]:
    """All that the model is shown of a picture: squares of ``size``, in the order in which the tower sees them.

    ``among`` is how many pictures its prompt has. A picture in tiles is the whole first, then its tiles row by
    row; a video is its frames.

    Raises:
        BadImage: a video for a model that was not made for them.
    """
    if image.frames:
        if preprocessing.video is None:
            raise BadImage("is_a_video", "this model takes pictures, not videos", image.name)
        return [_square(frame, preprocessing, preprocessing.video.fit) for frame in image.frames]
    if preprocessing.tiles is None or not is_tiled(preprocessing, among):
        return [shown(image, preprocessing)]
    picture, tiling = image.on(preprocessing.background), preprocessing.tiles
    # the original cuts with PIL's own default, transformers as its image processor is told
    resample = Pictures.Resampling.BICUBIC if tiling.digits is None else preprocessing.resample
    tiles = tiles_of(picture, preprocessing.size, tiling, resample, preprocessing.resized)
    return tiles if preprocessing.resized is None else [_square(tile, preprocessing, "crop") for tile in tiles]


def is_tiled(preprocessing: Preprocessing, among: int) -> bool:
    """Whether a picture is seen in tiles when its prompt has that many."""
    return preprocessing.tiles is not None and (among == 1 or not preprocessing.tiles.alone)


def pixels(image: Image, preprocessing: Preprocessing, among: int = 1) -> torch.Tensor:
    """The pixel values of a picture's `views`, ``[views, 3, size, size]`` in float32."""
    return torch.stack([_values(view, preprocessing) for view in views(image, preprocessing, among)])


def count(image: Image, tower: Tower, preprocessing: Preprocessing, among: int = 1) -> int:
    """How many rows a picture will have in a prompt with ``among`` of them; it is not looked at."""
    tiling = preprocessing.tiles
    if image.frames and preprocessing.video is not None:
        return frames_rows(len(image.frames), tower.side, preprocessing.video)
    if tiling is None or not is_tiled(preprocessing, among):
        return tower.patches + preprocessing.newline
    size = (image.width, image.height)
    return positions(grid_of(size, tower.image_size, tower.side, tiling), tower.side, tiling)


def _values(view: Pictures.Image, preprocessing: Preprocessing) -> torch.Tensor:
    # a product of float64, then rounded, as the image processors of every release's day made it
    values = (np.asarray(view, dtype=np.float64) * preprocessing.rescale).astype(np.float32)
    if preprocessing.normalise:
        mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
        values = (values - mean) / std
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _square(picture: Pictures.Image, preprocessing: Preprocessing, fit: str) -> Pictures.Image:
    size, how = preprocessing.size, Pictures.Resampling(preprocessing.resample)
    to = preprocessing.resized or size
    if fit == "pad":
        picture = _padded(picture, preprocessing.pad_colour)
    width, height = picture.size
    wide, high = (to, to * height // width) if width <= height else (to * width // height, to)
    if fit == "stretch":
        wide, high = to, to
    left, top = (wide - size) // 2, (high - size) // 2  # below 0 where it is enlarged: the rest is black
    return picture.resize((wide, high), how).crop((left, top, left + size, top + size))


def _padded(picture: Pictures.Image, colour: tuple[int, int, int]) -> Pictures.Image:
    width, height = picture.size
    side = max(width, height)
    if width == height:
        return picture
    canvas = Pictures.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas
