"""Draws the evaluation's scenes with Pillow: shapes, colour emoji and words on plain backgrounds."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont

HERE = Path(__file__).parent
FONTS = Path(os.environ.get("FONTS", "/usr/share/fonts/truetype"))
EMOJI_FONT = "noto/NotoColorEmoji.ttf"
EMOJI_PIXELS = 109  # the one size at which the font holds its bitmaps
SUPERSAMPLING = 3

COLOURS = {
    "red": (213, 42, 38),
    "orange": (241, 132, 28),
    "yellow": (250, 213, 48),
    "green": (42, 150, 72),
    "blue": (38, 92, 205),
    "purple": (126, 56, 168),
    "pink": (246, 142, 182),
    "brown": (116, 72, 38),
    "black": (18, 18, 18),
    "white": (249, 249, 249),
    "gray": (136, 136, 136),
    "light blue": (172, 212, 242),
    "dark blue": (22, 34, 92),
    "beige": (235, 221, 193),
}

Scene = dict[str, Any]
Point = tuple[float, float]


def load_scenes(file: Path = HERE / "scenes.json") -> dict[str, Scene]:
    """The scenes by id, in the order of the file."""
    return {scene["id"]: scene for scene in json.loads(file.read_text(encoding="utf-8"))}


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene as a reader of its file meets it: a JPEG's losses are in it."""
    with Image.open(BytesIO(encode(scene))) as picture:
        return picture.convert("RGB")


def encode(scene: Scene) -> bytes:
    """The scene's PNG or JPEG file."""
    file = BytesIO()
    options = {"quality": 80} if scene["format"] == "jpeg" else {}
    compose(scene).save(file, scene["format"], **options)
    return file.getvalue()


def compose(scene: Scene) -> Image.Image:
    """The scene before it is encoded.

    An item's ``at`` is its centre in fractions of width and height, its ``size`` the longer side (for
    words the font's size) in fractions of the picture's shorter side.
    """
    width, height = scene["pixels"]
    picture = Image.new("RGB", (width, height), COLOURS[scene["background"]])
    for item in scene["items"]:
        sprite = _sprite(item, round(item["size"] * min(width, height)))
        left = round(item["at"][0] * width - sprite.width / 2)
        top = round(item["at"][1] * height - sprite.height / 2)
        picture.paste(sprite, (left, top), sprite)
    return picture


def _sprite(item: dict[str, Any], size: int) -> Image.Image:
    """An item alone on nothing, RGBA, cut to its own edges."""
    if "emoji" in item:
        glyph = _glyph(item["emoji"])
        return glyph.resize(_fitted(glyph.size, size), Image.Resampling.LANCZOS)
    mask = _shape(item["shape"], size) if "shape" in item else _word(item["text"], item["font"], size)
    sprite = Image.new("RGBA", mask.size, COLOURS[item["colour"]])
    sprite.putalpha(mask)
    return sprite


def _fitted(box: tuple[int, int], size: int) -> tuple[int, int]:
    """A box's sides when its longer one becomes ``size``."""
    scale = size / max(box)
    return max(1, round(box[0] * scale)), max(1, round(box[1] * scale))


@cache
def _glyph(emoji: str) -> Image.Image:
    """An emoji in the font's own size, cut to its edges.

    Drawn on black and on white: what differs is what shows through. Drawing on nothing would darken
    a glow and soft edges, since Pillow blends them with the black of empty pixels.
    """
    font = ImageFont.truetype(FONTS / EMOJI_FONT, EMOJI_PIXELS)
    black, white = (Image.new("RGB", (3 * EMOJI_PIXELS, 3 * EMOJI_PIXELS), shade) for shade in ("black", "white"))
    for canvas in (black, white):
        ImageDraw.Draw(canvas).text((EMOJI_PIXELS, EMOJI_PIXELS), emoji, font=font, embedded_color=True)
    opacity = ImageChops.invert(ImageChops.difference(white, black)).getchannel("R")
    return _trimmed(Image.merge("RGBa", (*black.split(), opacity)).convert("RGBA"))


def _word(text: str, font: str, size: int) -> Image.Image:
    """A printed word's coverage, cut to its edges."""
    family = "dejavu" if font.startswith("DejaVu") else "liberation"
    drawn = ImageFont.truetype(FONTS / family / f"{font}.ttf", size)
    canvas = Image.new("L", (size * (len(text) + 2), size * 3))
    ImageDraw.Draw(canvas).text((size, size), text, font=drawn, fill=255)
    return _trimmed(canvas)


def _trimmed(canvas: Image.Image) -> Image.Image:
    box = canvas.getbbox()
    if box is None:
        raise ValueError("nothing was drawn: the font lacks this character")
    return canvas.crop(box)


def _shape(name: str, size: int) -> Image.Image:
    """A shape's coverage, drawn large and made smaller so that its edges are smooth."""
    side = size * SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)

    def ellipse(left: float, top: float, right: float, bottom: float, fill: int = 255) -> None:
        pen.ellipse([left * side, top * side, right * side - 1, bottom * side - 1], fill=fill)

    if name == "circle":
        ellipse(0, 0, 1, 1)
    elif name == "oval":
        ellipse(0, 0.2, 1, 0.8)
    elif name == "donut":
        ellipse(0, 0, 1, 1)
        ellipse(0.29, 0.29, 0.71, 0.71, fill=0)
    elif name == "crescent":
        ellipse(0, 0, 1, 1)
        ellipse(0.32, 0.02, 1.16, 0.86, fill=0)
    else:
        pen.polygon([(x * side, y * side) for x, y in _outline(name)], fill=255)
    return _trimmed(canvas.resize((size, size), Image.Resampling.LANCZOS))


def _outline(name: str) -> list[Point]:
    """A polygon's corners in the unit square."""
    corners: dict[str, list[Point]] = {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "rectangle": [(0, 0.24), (1, 0.24), (1, 0.76), (0, 0.76)],
        "triangle": [(0.5, 0.06), (1, 0.94), (0, 0.94)],
        "diamond": [(0.5, 0), (0.84, 0.5), (0.5, 1), (0.16, 0.5)],
        "arrow": [(0, 0.36), (0.55, 0.36), (0.55, 0.12), (1, 0.5), (0.55, 0.88), (0.55, 0.64), (0, 0.64)],
        "cross": [
            *[(0.34, 0), (0.66, 0), (0.66, 0.34), (1, 0.34), (1, 0.66), (0.66, 0.66)],
            *[(0.66, 1), (0.34, 1), (0.34, 0.66), (0, 0.66), (0, 0.34), (0.34, 0.34)],
        ],
        "pentagon": _regular([0.5] * 5),
        "hexagon": _regular([0.5] * 6, turned=math.pi / 6),
        "star": _regular([0.5, 0.2] * 5),
        "heart": _heart(),
    }
    return corners[name]


def _regular(radii: list[float], turned: float = 0.0) -> list[Point]:
    """Corners at equal angles around the middle, the first at the top."""
    angles = [turned - math.pi / 2 + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[Point]:
    """The usual heart curve, scaled into the unit square."""
    points = []
    for i in range(120):
        t = 2 * math.pi * i / 120
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 34, 0.46 - y / 34))
    return points


def contact_sheet(scenes: Iterable[Scene], columns: int = 8, cell: int = 200) -> Image.Image:
    """All scenes small on one sheet, each under its id, for looking them over."""
    drawn = list(scenes)
    rows = -(-len(drawn) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + 16)), (60, 60, 60))
    pen = ImageDraw.Draw(sheet)
    for i, scene in enumerate(drawn):
        left, top = i % columns * cell, i // columns * (cell + 16)
        pen.text((left + 4, top + 2), f"{scene['id']} {scene['background']}", fill=(255, 255, 255))
        picture = draw(scene)
        picture.thumbnail((cell - 6, cell - 6))
        sheet.paste(picture, (left + 3, top + 16))
    return sheet


def save_all(folder: Path) -> None:
    """Writes every scene's file and the contact sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = load_scenes()
    for scene in scenes.values():
        suffix = "jpg" if scene["format"] == "jpeg" else scene["format"]
        (folder / f"{scene['id']}.{suffix}").write_bytes(encode(scene))
    contact_sheet(scenes.values()).save(folder / "contact.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    save_all(parser.parse_args().folder)


if __name__ == "__main__":
    main()
