"""PIL's resizing of 8-bit pictures as products of whole numbers: the same pixels on every device, and fast on cards.

PIL weighs each pixel with an integer of 22 binary places, adds a half and cuts off, in one direction, then in another.
Each sum is a whole number below 2**31, so float64 holds it exactly, in whichever order a product adds it up. Which
direction comes first changes the levels and depends on PIL's version, see `rows_first`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
import torch
from PIL.Image import Resampling

__all__ = ["KNOWN", "Axis", "on_canvas", "rows_first"]

_PLACES = 22
_VERSION = int(PIL.__version__.split(".")[0])
_AT_ONCE = 1 << 22  # values that are multiplied together
_Values = np.ndarray[Any, np.dtype[np.float64]]


def _triangle(x: _Values) -> _Values:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: _Values) -> _Values:
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS: dict[Resampling, tuple[Callable[[_Values], _Values], float]] = {
    Resampling.BILINEAR: (_triangle, 1.0),
    Resampling.BICUBIC: (_cubic, 2.0),
}
KNOWN = frozenset(_FILTERS)


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction: ``size`` pixels that stand behind ``before`` others on a canvas of ``canvas``.

    The canvas is resized to ``to`` pixels, of which ``kept`` from ``first`` on are wanted.
    """

    size: int
    canvas: int
    before: int
    to: int
    first: int
    kept: int


def rows_first(across: Axis, down: Axis) -> bool | None:
    """Whether the installed PIL shortens rows before it shortens columns; None where its version is not known.

    Up to 12 it always did. 13 begins with the columns where they lose more than twice as many pixels as the rows, and
    did so in each of 683 resizings around that border.
    """
    if _VERSION <= 12 or (across.canvas, across.to) == (down.canvas, down.to):
        return True
    fewer = down.canvas - down.to
    return not (fewer > 0 and fewer > 2 * (across.canvas - across.to)) if _VERSION == 13 else None


def on_canvas(
    levels: torch.Tensor,
    across: Axis,
    down: Axis,
    how: Resampling,
    colour: tuple[int, int, int],
    *,
    rows_first: bool = True,
) -> torch.Tensor:
    """A picture ``[3, height, width]`` of uint8, on a canvas of a colour, as PIL would resize it: uint8, its device."""
    if not rows_first:
        return on_canvas(levels.transpose(1, 2), down, across, how, colour).transpose(1, 2)
    device = levels.device
    around = torch.tensor(colour, dtype=torch.float64, device=device)[:, None, None]
    own, rest = _there(across, how, device)  # [width, kept], [kept]
    rows = max(1, _AT_ONCE // (3 * across.size))
    narrow = torch.cat([part.double() @ own + around * rest for part in torch.split(levels, rows, 1)], 1)
    own, rest = _there(down, how, device)
    return _cut(own.T @ _cut(narrow) + around * rest[:, None]).byte()


def _cut(sums: torch.Tensor) -> torch.Tensor:
    """From sums to levels, as PIL rounds and clips them."""
    return ((sums + (1 << _PLACES - 1)) * 2.0**-_PLACES).floor_().clamp_(0, 255)


def _there(axis: Axis, how: Resampling, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`_weights`, whose memory stays theirs until this stream has read them: another vision may have made them."""
    told = _weights(axis, how, device)
    if device.type == "cuda":
        for each in told:
            each.record_stream(torch.cuda.current_stream(device))
    return told


@functools.lru_cache(maxsize=4)  # those of two pictures; a large one's are some 10 MB
def _weights(axis: Axis, how: Resampling, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What each pixel weighs in each that is wanted, ``[size, kept]``, and the canvas around them, ``[kept]``."""
    shape, support = _FILTERS[how]
    scale = axis.canvas / axis.to
    wide = max(scale, 1.0)
    reach = support * wide
    whole = np.zeros((axis.canvas, axis.kept))
    centres = (np.arange(axis.first, axis.first + axis.kept) + 0.5) * scale
    lowest = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    highest = np.minimum((centres + reach + 0.5).astype(np.int64), axis.canvas)
    offsets = np.arange(math.ceil(reach) * 2 + 1)[:, None]
    at = lowest + offsets  # [places, kept]
    values = np.where(at < highest, shape((at - centres + 0.5) * (1.0 / wide)), 0.0)
    sums = np.zeros(axis.kept)
    for row in values:  # one by one, as PIL adds them up
        sums += row
    values = np.where(sums != 0.0, values / np.where(sums != 0.0, sums, 1.0), values) * (1 << _PLACES)
    places = np.minimum(at, axis.canvas - 1), np.broadcast_to(np.arange(axis.kept), at.shape)
    np.add.at(whole, places, np.trunc(values + np.copysign(0.5, values)))
    own = whole[axis.before : axis.before + axis.size]
    rest = whole.sum(0) - own.sum(0)
    return torch.from_numpy(own.copy()).to(device), torch.from_numpy(rest).to(device)
