"""Sprites: emoji, shapes and letters as small pictures, drawn from the system's fonts and kept in a file.

Debian's packages fonts-noto-color-emoji fonts-lato fonts-open-sans fonts-roboto fonts-liberation
fonts-crosextra-carlito fonts-hack fonts-comic-neue fonts-dejavu fonts-quicksand hold the fonts. Shapes need none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.world import EMOJI, SHAPES

SIZES = (24, 28, 32, 36, 40, 48, 54, 60, 66, 76, 88, 100, 112)  # of emoji and shapes, in pixels
EMS = (22, 26, 30, 36, 44, 54)  # of letters
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz"
BASE = 128  # the side at which emoji and shapes are kept

FONTS_FOLDER = Path("/usr/share/fonts")
EMOJI_FONT = FONTS_FOLDER / "truetype/noto/NotoColorEmoji.ttf"
TRAINED_FONTS = [
    "Lato-Bold",
    "Lato-Regular",
    "OpenSans-Regular",
    "OpenSans-Bold",
    "Roboto-Regular",
    "Roboto-Black",
    "LiberationSans-Regular",
    "LiberationSans-Bold",
    "LiberationSerif-Regular",
    "LiberationSerif-Bold",
    "LiberationMono-Bold",
    "Carlito-Bold",
    "Hack-Bold",
    "ComicNeue-Bold",
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif-Bold",
]
UNSEEN_FONTS = ["Quicksand-Bold", "DejaVuSansCondensed-Bold"]

FIRST_SHAPE = len(EMOJI) * len(SIZES)
FIRST_GLYPH = FIRST_SHAPE + len(SHAPES) * len(SIZES)

ATLAS = Path(__file__).parent / ".atlas" / "atlas.npz"


def glyph_id(font: int, em: int, character: int) -> int:
    """The sprite of a letter."""
    return FIRST_GLYPH + (font * len(EMS) + em) * len(CHARACTERS) + character


@dataclass(frozen=True, eq=False)
class Sprites:
    """What pictures are put together from.

    ``emoji`` are ``[emoji, 128, 128, 4]``, premultiplied; ``shapes`` ``[shapes, 128, 128]``; ``glyphs`` all letters'
    pixels in one row; ``metrics`` ``[glyphs, 9]``: font, em, character, width, height, left, top, advance, ascent.
    Without fonts there are only shapes.
    """

    emoji: np.ndarray | None
    shapes: np.ndarray
    glyphs: np.ndarray
    metrics: np.ndarray


@cache
def sprites() -> Sprites:
    """All sprites, drawn once and kept in ``.atlas/``."""
    if not ATLAS.is_file():
        drawn = draw_all()
        assert drawn.emoji is not None
        ATLAS.parent.mkdir(exist_ok=True)
        np.savez_compressed(ATLAS, emoji=drawn.emoji, shapes=drawn.shapes, glyphs=drawn.glyphs, metrics=drawn.metrics)
    with np.load(ATLAS) as kept:
        return Sprites(kept["emoji"], kept["shapes"], kept["glyphs"], kept["metrics"])


@cache
def shapes_alone() -> Sprites:
    """The sprites that need no font."""
    shapes = np.stack([_shape(name) for name in SHAPES])
    return Sprites(None, shapes, np.zeros(0, np.uint8), np.zeros((0, 9), np.int32))


@cache
def glyph_metrics() -> dict[tuple[int, int, int], tuple[int, int, int, int, int, int]]:
    """By font, em and character: width, height, left, top, advance and ascent in pixels."""
    return {tuple(row[:3]): tuple(row[3:]) for row in sprites().metrics.tolist()}


def draw_all() -> Sprites:
    """Draws every sprite.

    Raises:
        FileNotFoundError: a font is not installed.
    """
    emoji = np.stack([_emoji(each.char) for each in EMOJI])
    glyphs, metrics = _glyphs([*TRAINED_FONTS, *UNSEEN_FONTS])
    return Sprites(emoji, shapes_alone().shapes, glyphs, metrics)


def _emoji(char: str) -> np.ndarray:
    """The emoji within 128 x 128, premultiplied RGBA."""
    if not EMOJI_FONT.is_file():
        raise FileNotFoundError(f"{EMOJI_FONT} is missing: install fonts-noto-color-emoji")
    font = ImageFont.truetype(EMOJI_FONT, 109)  # the one size that the font has
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), char, font=font, embedded_color=True)
    cut = canvas.crop(canvas.getbbox())
    scale = BASE / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    pixels = np.asarray(cut).astype(np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    planes = [Image.fromarray(pixels[..., plane]).resize(size, Image.Resampling.LANCZOS) for plane in range(4)]
    resized = np.stack([np.asarray(plane) for plane in planes], -1).clip(0, 1)
    framed = np.zeros((BASE, BASE, 4), np.float32)
    top, left = (BASE - size[1]) // 2, (BASE - size[0]) // 2
    framed[top : top + size[1], left : left + size[0]] = resized
    return (framed * 255 + 0.5).astype(np.uint8)


def _polygon(corners: int, turn: float = -90, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star whose inner radius is given, within 512 x 512."""
    count = corners * (2 if inner else 1)
    points = []
    for index in range(count):
        radius = inner if inner and index % 2 else 254.0
        angle = math.radians(turn + 360 * index / count)
        points.append((256 + radius * math.cos(angle), 256 + radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for index in range(400):
        t = 2 * math.pi * index / 400
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((256 + x * 512 / 34, 256 - 20 - y * 512 / 34))
    return points


_ARROW = [(2, 184.32), (281.6, 184.32), (281.6, 61.44), (510, 256), (281.6, 450.56), (281.6, 327.68), (2, 327.68)]
# a shape is polygons, boxes and ellipses, the last ellipse of some cut out; coordinates within 512 x 512
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "triangle": [(256, 20), (510, 472), (2, 472)],
    "star": _polygon(5, inner=102.4),
    "heart": _heart(),
    "diamond": [(256, 2), (419.84, 256), (256, 510), (92.16, 256)],
    "pentagon": _polygon(5),
    "hexagon": _polygon(6, 0),
    "arrow": _ARROW,
}
_BOXES: dict[str, list[tuple[float, float, float, float]]] = {
    "square": [(40, 40, 472, 472)],
    "rectangle": [(2, 128, 510, 384)],
    "cross": [(179.2, 2, 332.8, 510), (2, 179.2, 510, 332.8)],
}
_ELLIPSES = {
    "circle": (2, 2, 510, 510),
    "donut shape": (2, 2, 510, 510),
    "oval": (2, 112.64, 510, 399.36),
    "crescent": (2, 2, 510, 510),
}
_HOLES = {"donut shape": (143.36, 143.36, 368.64, 368.64), "crescent": (143.36, -25.6, 614.4, 445.44)}


def _shape(name: str) -> np.ndarray:
    """The shape's coverage, ``[128, 128]``, drawn four times larger."""
    canvas = Image.new("L", (512, 512), 0)
    pen = ImageDraw.Draw(canvas)
    if name in _POLYGONS:
        pen.polygon(_POLYGONS[name], fill=255)
    for box in _BOXES.get(name, []):
        pen.rectangle(box, fill=255)
    if name in _ELLIPSES:
        pen.ellipse(_ELLIPSES[name], fill=255)
    if name in _HOLES:
        pen.ellipse(_HOLES[name], fill=0)
    return np.asarray(canvas.resize((BASE, BASE), Image.Resampling.LANCZOS))


def _font_file(name: str) -> Path:
    found = [path for end in ("ttf", "otf") for path in FONTS_FOLDER.rglob(f"{name}.{end}")]
    plain = [path for path in found if "/hinted/" not in str(path)]  # of Roboto there are two
    if not plain:
        raise FileNotFoundError(f"no font {name} under {FONTS_FOLDER}: install the packages that sprites.py names")
    return plain[0]


def _glyphs(fonts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every letter of every font at every em: pixels in one row, and metrics."""
    pixels, metrics = [], []
    for font_index, name in enumerate(fonts):
        path = _font_file(name)
        for em_index, em in enumerate(EMS):
            font = ImageFont.truetype(path, em)
            ascent = font.getmetrics()[0]
            for index, character in enumerate(CHARACTERS):
                left, top, right, bottom = font.getbbox(character)
                canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 0)
                ImageDraw.Draw(canvas).text((1 - left, 1 - top), character, font=font, fill=255)
                pixels.append(np.asarray(canvas).ravel())
                advance = round(font.getlength(character))
                place = (canvas.width, canvas.height, left - 1, top - 1, advance, ascent)
                metrics.append((font_index, em_index, index, *place))
    return np.concatenate(pixels), np.array(metrics, np.int32)
