"""From a picture to what the model is shown of it, and to pixel values."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image as Pictures

from trifocal.checkpoints import Preprocessing
from trifocal.images import Image

__all__ = ["pixels", "shown"]


def shown(image: Image, preprocessing: Preprocessing) -> Pictures.Image:
    """What the model is shown of a picture: ``size`` x ``size`` RGB, after padding, resizing and cropping.

    Bicubic on 8-bit values and truncated sizes, as CLIP's own processor does it; the padding is that
    of LLaVA 1.5 (``expand2square``).
    """
    picture = image.on(preprocessing.background)
    if preprocessing.fit == "pad":
        picture = _padded(picture, preprocessing.pad_colour)
    size, (width, height) = preprocessing.size, picture.size
    short = min(width, height)
    wide, high = (size, size * height // width) if width == short else (size * width // height, size)
    resized = picture.resize((wide, high), Pictures.Resampling(preprocessing.resample))
    left, top = (wide - size) // 2, (high - size) // 2
    return resized.crop((left, top, left + size, top + size))


def pixels(image: Image, preprocessing: Preprocessing) -> torch.Tensor:
    """The pixel values of a picture, ``[3, size, size]`` in float32."""
    values = np.asarray(shown(image, preprocessing), dtype=np.float32) * np.float32(preprocessing.rescale)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return torch.from_numpy(((values - mean) / std).transpose(2, 0, 1).copy())


def _padded(picture: Pictures.Image, colour: tuple[int, int, int]) -> Pictures.Image:
    width, height = picture.size
    side = max(width, height)
    if width == height:
        return picture
    canvas = Pictures.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas
