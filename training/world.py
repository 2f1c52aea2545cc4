"""What the drawn world is made of: emoji, shapes, colours, regions, words, and what is held out of training."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SIDE = 224  # of every picture, in pixels


class Emoji(NamedTuple):
    """A drawn thing: ``category`` is ``unknown`` for one that is never named, ``unseen`` for one never trained."""

    char: str
    name: str
    category: str
    colour: str | None


def _emoji() -> tuple[Emoji, ...]:
    lines = (HERE / "emoji.txt").read_text("utf-8").splitlines()
    rows = (line.split("|") for line in lines if not line.startswith("# "))
    return tuple(Emoji(char, name, category, colour or None) for char, name, category, colour in rows)


EMOJI = _emoji()
NAMED = sum(emoji.category not in ("unknown", "unseen") for emoji in EMOJI)
UNKNOWN = sum(emoji.category == "unknown" for emoji in EMOJI)
UNSEEN = sum(emoji.category == "unseen" for emoji in EMOJI)
NAMES = [emoji.name for emoji in EMOJI[:NAMED]]

SHAPES = [
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "rectangle",
    "diamond",
    "pentagon",
    "hexagon",
    "cross",
    "donut_shape",
    "arrow",
    "oval",
    "crescent",
]
SHAPES = [shape.replace("_", " ") for shape in SHAPES]

COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"]
RGB = {
    "red": (218, 36, 36),
    "orange": (245, 138, 28),
    "yellow": (250, 218, 48),
    "green": (50, 160, 68),
    "blue": (45, 95, 220),
    "purple": (135, 58, 180),
    "pink": (250, 140, 188),
    "brown": (125, 78, 42),
    "black": (20, 20, 20),
    "white": (248, 248, 248),
    "gray": (135, 135, 135),
    "light blue": (170, 215, 245),
    "light green": (175, 235, 180),
    "dark blue": (20, 35, 95),
    "dark green": (15, 72, 38),
    "beige": (236, 222, 192),
}
BACKGROUNDS = list(RGB)

# singular and plural of what a category is called; a fruit, a vegetable and a dish are all food
CATEGORIES = {
    "animal": ("animal", "animals"),
    "fruit": ("fruit", "fruits"),
    "vegetable": ("vegetable", "vegetables"),
    "vehicle": ("vehicle", "vehicles"),
    "building": ("building", "buildings"),
    "plant": ("plant", "plants"),
    "face": ("face", "faces"),
    "instrument": ("musical instrument", "musical instruments"),
    "tool": ("tool", "tools"),
    "drink": ("drink", "drinks"),
    "clothing": ("piece of clothing", "pieces of clothing"),
    "any food": ("piece of food", "pieces of food"),
    "shape": ("shape", "shapes"),
}
FOOD = {"fruit", "vegetable", "food"}

# a picture is three by three regions, row by row; a centre within 6 pixels of a border is never drawn
BORDERS = (75, 149)
REGIONS = [
    "in the top left",
    "at the top",
    "in the top right",
    "on the left",
    "in the center",
    "on the right",
    "in the bottom left",
    "at the bottom",
    "in the bottom right",
]


def _corner(high: str, upper: str, side: str) -> list[str]:
    return [
        f"in the {high} {side} corner",
        f"in the {high} {side}",
        f"in the {upper} {side}",
        f"{high} {side}",
        f"at the {high} {side}",
        f"in the {upper} {side} corner",
        *([f"in the {upper}-{side} corner"] if (upper, side) == ("upper", "left") else []),
        f"in the {high}-{side} corner",
        f"on the {high} {side}",
    ]


def _edge(side: str) -> list[str]:
    return [
        f"on the {side} side",
        f"on the {side}",
        f"at the {side} edge",
        f"at the {side}",
        f"in the middle {side}",
        f"on the {side} in the middle",
        f"to the {side}",
    ]


def _band(high: str, upper: str) -> list[str]:
    return [
        f"at the {high}",
        f"at the {high} center",
        f"in the {upper} part, in the middle",
        f"at the {high} middle",
        f"in the {high} center",
        f"in the {upper} middle",
    ]


# how a question may name a region
REGION_WORDINGS = [
    _corner("top", "upper", "left"),
    [*_band("top", "upper"), "on top"],
    _corner("top", "upper", "right"),
    _edge("left"),
    [
        "in the center",
        "in the middle",
        "at the center",
        "in the centre",
        "in the very center",
        "in the middle of everything",
    ],
    _edge("right"),
    _corner("bottom", "lower", "left"),
    _band("bottom", "lower"),
    _corner("bottom", "lower", "right"),
]

WORDS = (HERE / "words.txt").read_text("utf-8").split()
UNSEEN_WORDS = [word for index, word in enumerate(WORDS) if index % 9 == 4]
TRAINED_WORDS = [word for index, word in enumerate(WORDS) if index % 9 != 4]

SHAPE_COLOURS_HELD_OUT = {
    (shape, colour)
    for shape in range(len(SHAPES))
    for colour in range(len(COLOURS))
    if (shape * 7 + colour * 3) % 11 == 0
}


def place_held_out(emoji: int, region: int) -> bool:
    """Whether that emoji is never trained in that region."""
    return (emoji * 5 + region * 3) % 13 == 0


def pair_held_out(one: int, other: int) -> bool:
    """Whether these two emoji are never trained in one picture."""
    return (one * 31 + other * 31 + one * other) % 17 == 3
