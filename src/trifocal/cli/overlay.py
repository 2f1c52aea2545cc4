"""Draws where it looked: a panel for each of the answer's main words, the picture lit where the word looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trifocal.errors import UsageError
from trifocal.images import Image
from trifocal.model.explaining import ExplainedWord, Explanation

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["draw_overlay", "main_words", "save_overlay"]

MOST, ACROSS = 6, 3  # panels, and how many of them stand side by side
WIDTH, GAP, LINE = 320, 16, 34  # pixels of a panel, between panels, of its word
PAPER, INK, HEAT, SHADE = (250, 250, 248), (32, 32, 36), (255, 138, 0), (18, 20, 30)


def save_overlay(explanation: Explanation, pictures: Sequence[Image], path: Path) -> None:
    """Writes the panels to a file, of the kind that its name says.

    Raises:
        UsageError: no word looked at a picture, or the file can't be written.
    """
    sheet = draw_overlay(explanation, pictures)
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the picture can't be written there; name a .png in a folder that exists") from error


def draw_overlay(explanation: Explanation, pictures: Sequence[Image]) -> Picture:
    """The panels of the main words in the order of the answer, each on the picture that its word looked at most.

    ``pictures`` are those of the prompt.

    Raises:
        UsageError: no word looked at a picture.
    """
    from PIL import Image as Pictures

    words = main_words(explanation)
    if not words:
        raise UsageError("there is nothing to draw: no word of the answer looked at a picture")
    panels = [_panel(word, explanation, pictures) for word in words]
    rows = [panels[at : at + ACROSS] for at in range(0, len(panels), ACROSS)]
    heights = [max(panel.height for panel in row) for row in rows]
    width = GAP + (WIDTH + GAP) * len(rows[0])
    sheet = Pictures.new("RGB", (width, GAP + sum(heights) + GAP * len(rows)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for at, panel in enumerate(row):
            sheet.paste(panel, (GAP + at * (WIDTH + GAP), top))
        top += height + GAP
    return sheet


def main_words(explanation: Explanation) -> list[ExplainedWord]:
    """The words of three letters and more that looked at pictures most, in the order of the answer."""
    weights: dict[int, float] = {}
    for picture in explanation.pictures:
        for word, weight in picture.words:
            if weight and len(explanation.words[word].text) > 2:
                weights[word] = max(weight, weights.get(word, 0.0))
    best = sorted(weights, key=lambda word: -weights[word])[:MOST]
    return [explanation.words[word] for word in sorted(best)]


def _panel(word: ExplainedWord, explanation: Explanation, pictures: Sequence[Image]) -> Picture:
    """One word under the picture that it looked at most: dark, and lit where the word looked."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    look = max(word.heatmaps, key=lambda each: each.share)
    image = pictures[look.image].on(PAPER)
    size = WIDTH, max(1, round(image.height * WIDTH / image.width))
    picture = image.resize(size, Pictures.Resampling.LANCZOS)
    light = _light(look.grid, explanation.pictures[look.image].box, size)
    dark = Pictures.blend(picture, Pictures.new("RGB", size, SHADE), 0.55)
    lit = Pictures.blend(picture, Pictures.new("RGB", size, HEAT), 0.28)
    panel = Pictures.new("RGB", (WIDTH, size[1] + LINE), PAPER)
    panel.paste(Pictures.composite(lit, dark, light))
    pen = ImageDraw.Draw(panel)
    pen.text((WIDTH / 2, size[1] + LINE / 2), word.text, fill=INK, anchor="mm", font=ImageFont.load_default(20))
    return panel


def _light(grid: Sequence[Sequence[float]], box: Sequence[float], size: tuple[int, int]) -> Picture:
    """A grid as a smooth mask over the picture; its hottest patch is fully lit."""
    from PIL import Image as Pictures

    most = max(max(row) for row in grid) or 1.0
    values = bytes(round(255 * (value / most) ** 0.7) for row in grid for value in row)
    small = Pictures.frombytes("L", (len(grid[0]), len(grid)), values)
    left, top, width, height = (
        round(share * side) for share, side in zip(box, (size[0], size[1], size[0], size[1]), strict=True)
    )
    mask = Pictures.new("L", size)
    mask.paste(small.resize((max(1, width), max(1, height)), Pictures.Resampling.BICUBIC), (left, top))
    return mask
