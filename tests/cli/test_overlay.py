"""The drawing of where it looked: lit where the word looked, and refused where there is nothing to draw."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image as Pictures

from trifocal.cli.ask import ask
from trifocal.cli.overlay import draw_overlay, main_words
from trifocal.errors import UsageError
from trifocal.images import from_pil
from trifocal.model.explaining import ExplainedPicture, ExplainedWord, Explanation, Heatmap

EXAMPLE = str(Path(__file__).parents[2] / "docs" / "example.png")
DARK, LIT = ((0.0, 0.0), (0.0, 0.0)), ((0.0, 0.0), (0.0, 1.0))
WHITE = from_pil(Pictures.new("RGB", (64, 32), "white"))


def told(*weights: float, pictures: int = 1, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Explanation:
    """An answer of numbered words that look at the lower right of the last picture, as much as is said."""
    words = []
    for at in range(len(weights)):
        looks = [
            Heatmap(each, float(each == pictures - 1), LIT if each == pictures - 1 else DARK)
            for each in range(pictures)
        ]
        words.append(ExplainedWord(f"word{at}", 0, 5, tuple(looks)))
    drawn = tuple(sorted(enumerate(weights), key=lambda pair: -pair[1]))[:8]
    grids = [ExplainedPicture(each, 2, 2, box, drawn if each == pictures - 1 else ()) for each in range(pictures)]
    return Explanation("", tuple(words), tuple(grids))


def test_the_main_words_are_those_that_looked_most_in_the_order_of_the_answer() -> None:
    words = main_words(told(0.1, 0.9, 0.0, 0.2, 0.8, 0.3, 0.4, 0.5))
    assert [word.text for word in words] == ["word1", "word3", "word4", "word5", "word6", "word7"]


def brightness(sheet: Pictures.Image, x: float, y: float) -> int:
    """Of a point of the first panel, in shares of a picture of 2 : 1."""
    pixel = sheet.convert("L").getpixel((16 + round(x * 319), 16 + round(y * 159)))
    assert isinstance(pixel, int)
    return pixel


def test_it_is_light_where_the_word_looked_and_dark_elsewhere() -> None:
    sheet = draw_overlay(told(1.0, 0.5), [WHITE])
    assert sheet.size == (16 + 2 * 336, 16 + 160 + 34 + 16)
    assert brightness(sheet, 0.9, 0.9) > 200
    assert brightness(sheet, 0.1, 0.1) < 140


def test_a_grid_beyond_the_picture_is_cut_where_the_picture_ends() -> None:
    """The grid of a padded picture is twice as high: its lower half begins in the middle of what is shown."""
    sheet = draw_overlay(told(1.0, box=(0, -0.5, 1, 2)), [WHITE])
    assert brightness(sheet, 0.9, 0.95) > 180
    assert brightness(sheet, 0.9, 0.05) < brightness(sheet, 0.9, 0.95) - 40


def test_each_word_is_shown_on_the_picture_that_it_looked_at() -> None:
    black = from_pil(Pictures.new("RGB", (64, 32), "black"))
    assert brightness(draw_overlay(told(1.0, pictures=2), [black, WHITE]), 0.9, 0.9) > 200
    assert brightness(draw_overlay(told(1.0, pictures=2), [WHITE, black]), 0.1, 0.1) < 40


def test_where_no_word_looked_there_is_nothing_to_draw() -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        draw_overlay(told(0.0), [WHITE])


def test_ask_draws_where_it_looked(tmp_path: Path) -> None:
    file = tmp_path / "looked.png"
    shown = CliRunner().invoke(ask, [EXAMPLE, "What is this?", "--explain", str(file)], catch_exceptions=False)
    assert shown.stdout.endswith(".\n")
    assert str(file) in shown.stderr
    with Pictures.open(file) as drawn:
        assert drawn.width == 16 + 3 * 336


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    runner, words = CliRunner(), [EXAMPLE, "What is this?"]
    with pytest.raises(UsageError, match="echo can't tell where it looks"):
        runner.invoke(ask, [*words, "--engine", "echo", "--explain", str(tmp_path / "x.png")], catch_exceptions=False)
    for name, told in (("missing/x.png", "there is no folder"), ("x.nothing", r"name a \.png")):
        with pytest.raises(UsageError, match=told):
            runner.invoke(ask, [*words, "--explain", str(tmp_path / name)], catch_exceptions=False)
