"""Draws the page's sample pictures and asks the package about them; a picture whose answer is not true is not written.

``PYTHONPATH=src python -m training.page_samples`` writes them to src/trifocal/web/samples. They are drawn by the
independent set's program, not by the training's renderer.
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from training.independent.draw import compose

FOLDER = Path(__file__).parent.parent / "src" / "trifocal" / "web" / "samples"
PIXELS = [640, 480]
LARGEST = 30_000  # bytes of a file


def emoji(sign: str, x: float, y: float, size: float) -> dict[str, Any]:
    """A drawn thing; centre and size in shares of the picture."""
    return {"emoji": sign, "at": [x, y], "size": size}


def shape(name: str, colour: str, x: float, y: float, size: float) -> dict[str, Any]:
    """A shape in one colour."""
    return {"shape": name, "colour": colour, "at": [x, y], "size": size}


# file, title, background, question, true answer, what is on it
SAMPLES: list[tuple[str, str, str, str, str, list[dict[str, Any]]]] = [
    (
        "garden.png",
        "A garden",
        "light blue",
        "What is in this picture?",
        "The picture shows a butterfly, a tree, and a sunflower on a light blue background.",
        [emoji("🌳", 0.2, 0.4, 0.42), emoji("🌻", 0.53, 0.68, 0.4), emoji("🦋", 0.8, 0.28, 0.3)],
    ),
    (
        "fruit.png",
        "Fruit to count",
        "beige",
        "How many apples are there?",
        "There are four apples.",
        [
            *(emoji("🍎", x, y, 0.26) for x, y in ((0.17, 0.27), (0.42, 0.3), (0.22, 0.7), (0.48, 0.73))),
            emoji("🍌", 0.8, 0.5, 0.36),
        ],
    ),
    (
        "shapes.png",
        "Three shapes",
        "white",
        "What is to the left of the blue square?",
        "A red heart is to the left of the blue square.",
        [
            shape("heart", "red", 0.19, 0.5, 0.34),
            shape("square", "blue", 0.5, 0.5, 0.32),
            shape("star", "yellow", 0.81, 0.5, 0.4),
        ],
    ),
    (
        "hello.png",
        "A word",
        "dark blue",
        "What does the text say?",
        'The text says "HELLO".',
        [
            emoji("🚀", 0.8, 0.3, 0.36),
            {"text": "HELLO", "font": "DejaVuSans-Bold", "colour": "yellow", "at": [0.4, 0.66], "size": 0.22},
        ],
    ),
    (
        "sea.png",
        "At sea",
        "light blue",
        "Where is the whale?",
        "The whale is in the bottom left.",
        [shape("circle", "yellow", 0.17, 0.22, 0.26), emoji("⛵", 0.78, 0.3, 0.4), emoji("🐋", 0.23, 0.73, 0.42)],
    ),
    (
        "party.png",
        "A party",
        "pink",
        "Describe the picture in detail.",
        "There are two balloons, a birthday cake in the center, and a gift in the bottom left. The background is pink.",
        [
            emoji("🎂", 0.5, 0.52, 0.42),
            emoji("🎁", 0.17, 0.76, 0.3),
            emoji("🎈", 0.84, 0.25, 0.32),
            emoji("🎈", 0.16, 0.27, 0.3),
        ],
    ),
]


def main() -> None:
    """Draws, asks, writes."""
    import trifocal

    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    with trifocal.load() as llava:
        for name, title, background, question, answer, items in SAMPLES:
            drawn = compose({"pixels": PIXELS, "background": background, "items": items})
            file = BytesIO()
            drawn.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
            picture = trifocal.open_image(file.getvalue())
            told = llava.complete([llava.question(question, [picture])]).text.strip()
            if told != answer or len(file.getvalue()) > LARGEST:
                sys.exit(f"{name}, {len(file.getvalue())} bytes: {told!r} instead of {answer!r}")
            (FOLDER / name).write_bytes(file.getvalue())
            listed.append({"title": title, "picture": name, "question": question, "answer": answer})
    (FOLDER / "samples.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
