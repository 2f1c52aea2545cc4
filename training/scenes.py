"""Scenes: what stands where in a drawn picture, sampled so that every question about it has one answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from training.sprites import CHARACTERS, EMS, FIRST_SHAPE, SIZES, TRAINED_FONTS, UNSEEN_FONTS, glyph_id, glyph_metrics
from training.words import article
from training.world import (
    BACKGROUNDS,
    BORDERS,
    COLOURS,
    EMOJI,
    NAMED,
    RGB,
    SHAPE_COLOURS_HELD_OUT,
    SHAPES,
    TRAINED_WORDS,
    UNKNOWN,
    UNSEEN,
    UNSEEN_WORDS,
    pair_held_out,
    place_held_out,
)

Split = Literal["train", "combo", "font", "unseen", "shapes"]
"""``train``; ``combo``: held-out pairs of shape and colour, emoji and region, and held-out words; ``font``: held-out
fonts and words; ``unseen``: emoji never trained, to be called unknown; ``shapes``: no font is needed."""

Colour = tuple[float, float, float]
MOST_SPRITES = 16

# what the tower's extra head tells apart: each named emoji, unknown ones, shapes, letters and digits
CLASS_UNKNOWN = NAMED
FIRST_CLASS_SHAPE = NAMED + 1
FIRST_CLASS_CHARACTER = FIRST_CLASS_SHAPE + len(SHAPES)
CLASSES = FIRST_CLASS_CHARACTER + 36

PLAIN, FADING, GRAINY, UNRECOGNISABLE = range(4)  # backgrounds


class Slot(NamedTuple):
    """One sprite on the picture: its left and top corner, size and tint, its class, its colour or -1."""

    sprite: int
    left: int
    top: int
    width: int
    height: int
    red: float
    green: float
    blue: float
    label: int
    colour: int


@dataclass(eq=False)
class Thing:
    """Something that can be asked about; ``x`` and ``y`` are its centre."""

    kind: Literal["emoji", "shape", "unknown", "text"]
    index: int
    name: str
    colour: str | None
    x: float
    y: float
    width: float
    height: float
    region: int
    label: int
    size: str = ""
    phrase: str = ""  # of text: the word "HELLO"

    @property
    def called(self) -> str:
        """Its full name, as an answer gives it."""
        if self.kind == "text":
            return self.phrase
        return f"{self.colour} {self.name}" if self.kind == "shape" else self.name

    @property
    def some(self) -> str:
        """The name with ``a``."""
        return self.phrase if self.kind == "text" else article(self.called)


@dataclass
class Scene:
    """A picture before it is drawn."""

    kind: str
    style: int
    background: str
    colour: Colour
    colour_to: Colour
    background_to: str | None = None
    across: int = 0
    slots: list[Slot] = field(default_factory=list)
    objects: list[Thing] = field(default_factory=list)
    text: Thing | None = None
    letters: str = ""
    unrecognisable: bool = False  # mere noise

    @property
    def everything(self) -> list[Thing]:
        """The objects, and the text."""
        return self.objects + ([self.text] if self.text else [])

    def groups(self) -> dict[str, list[Thing]]:
        """The objects by name."""
        return grouped(self.objects)

    def unique(self, kinds: Sequence[str] = ("emoji", "shape")) -> list[Thing]:
        """The objects whose name is theirs alone."""
        return [group[0] for group in self.groups().values() if len(group) == 1 and group[0].kind in kinds]


def grouped(things: Sequence[Thing]) -> dict[str, list[Thing]]:
    """The things by name, in order."""
    groups: dict[str, list[Thing]] = {}
    for thing in things:
        groups.setdefault(thing.called, []).append(thing)
    return groups


def varied(rng: random.Random, colour: str, amount: float = 16) -> Colour:
    """A colour near the one of that name."""
    shift = rng.uniform(-amount, amount)
    red, green, blue = (min(255, max(0, value + shift + rng.uniform(-5, 5))) for value in RGB[colour])
    return red, green, blue


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """How far two colours are apart."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def region(x: float, y: float) -> int:
    """Which of the nine regions a point is in."""
    column, row = (sum(value >= border for border in BORDERS) for value in (x, y))
    return row * 3 + column


Box = tuple[float, float, float, float]


def _free_place(rng: random.Random, width: float, height: float, taken: list[Box]) -> tuple[float, float] | None:
    """A centre where the box overlaps nothing and is clearly within a region."""
    for _ in range(25):
        x = rng.uniform(width / 2 + 1, 223 - width / 2)
        y = rng.uniform(height / 2 + 1, 223 - height / 2)
        if any(abs(value - border) <= 6 for value in (x, y) for border in BORDERS):
            continue
        if not any(abs(x - a) < (width + c) / 2 + 2 and abs(y - b) < (height + d) / 2 + 2 for a, b, c, d in taken):
            return x, y
    return None


_KINDS = ((0.46, "mixed"), (0.66, "count"), (0.82, "text"), (0.94, "single"), (0.965, "empty"), (1.1, "noise"))


def make_scene(rng: random.Random, split: Split = "train", kind: str | None = None) -> Scene:
    """Samples a scene.

    Args:
        kind: mixed, count, text, single, empty or noise; one of them at random where None.
    """
    drawn = rng.random()
    kind = kind or next(name for limit, name in _KINDS if drawn < limit)
    if split in ("combo", "unseen", "shapes") and kind in ("empty", "noise", "text"):
        kind = "mixed"
    scene = _background(rng, kind)
    if kind in ("empty", "noise"):
        return scene
    taken: list[Box] = []
    if split != "shapes" and (kind == "text" or (kind == "mixed" and rng.random() < 0.3)):
        _write(rng, scene, taken, split)
    plan = _plan(rng, kind, split)[: min(MOST_SPRITES - len(scene.slots), 9)]
    _draw(rng, scene, taken, plan, split)
    scene.objects.sort(key=lambda thing: (thing.region, thing.x + thing.y))
    return scene


def _background(rng: random.Random, kind: str) -> Scene:
    drawn = rng.random()
    style = PLAIN if drawn < 0.72 else (FADING if drawn < 0.84 else GRAINY)
    if kind == "noise":
        style = UNRECOGNISABLE
    name = rng.choice(BACKGROUNDS) if rng.random() > 0.25 else "white"
    colour = varied(rng, name, 12 if name not in ("white", "black") else 6)
    scene = Scene(kind, style, name, colour, colour, unrecognisable=kind == "noise")
    if style == FADING:
        while True:
            scene.background_to = rng.choice(BACKGROUNDS)
            scene.colour_to = varied(rng, scene.background_to, 10)
            if difference(scene.colour, scene.colour_to) > 200:
                break
        scene.across = rng.randrange(2)
    return scene


def _stands_out(scene: Scene, colour: Sequence[float], threshold: float = 130) -> bool:
    return all(difference(colour, behind) > threshold for behind in (scene.colour, scene.colour_to))


def _word(rng: random.Random, drawn: float, split: Split) -> tuple[str, bool]:
    """Something to write, and whether it is a number."""
    if drawn < 0.42:
        word = rng.choice(UNSEEN_WORDS if split in ("font", "combo") else TRAINED_WORDS)
    elif drawn < 0.72:
        word = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(1, 6)))
    else:
        return str(rng.randrange(10 ** rng.randint(1, 4))), True
    case = rng.random()
    return word.upper() if case < 0.6 or drawn >= 0.42 else (word.title() if case < 0.8 else word.lower()), False


def _ink(rng: random.Random, scene: Scene) -> tuple[str, Colour] | None:
    """A colour that can be read on the background."""
    for _ in range(20):
        name = rng.choice(COLOURS)
        colour = varied(rng, name, 10)
        if _stands_out(scene, colour, 170):
            return name, colour
    return None


def _write(rng: random.Random, scene: Scene, taken: list[Box], split: Split) -> None:
    """Puts a word, some letters or a number on the scene, if they find room within eight tries."""
    metrics, trained = glyph_metrics(), len(TRAINED_FONTS)
    for _ in range(8):
        drawn = rng.random()
        font = rng.randrange(trained, trained + len(UNSEEN_FONTS)) if split == "font" else rng.randrange(trained)
        word, number = _word(rng, drawn, split)
        em = rng.randrange(len(EMS)) if scene.kind != "text" or rng.random() < 0.5 else rng.randrange(2, len(EMS))
        characters = [CHARACTERS.index(character) for character in word]
        gap = rng.choice([0, 0, 0, 1, 2])
        width = sum(metrics[font, em, each][4] for each in characters) + gap * (len(word) - 1)
        height = EMS[em]
        place = _free_place(rng, width, height, taken) if width <= 210 else None
        ink = _ink(rng, scene) if place else None
        if not place or not ink:
            continue
        colour, tint = ink
        scene.letters = word.upper()
        name = "number" if number else ("letter" if len(word) == 1 else "word")
        phrase = f'the {name} "{scene.letters}"'
        scene.text = Thing("text", 0, name, colour, *place, width, height, region(*place), -1, phrase=phrase)
        taken.append((*place, width, height))
        left, top = place[0] - width / 2, place[1] - height * 0.62
        for each in characters:
            wide, high, offset, rise, advance, _ = metrics[font, em, each]
            label = FIRST_CLASS_CHARACTER + CHARACTERS.index(CHARACTERS[each].upper())
            corner = (round(left + offset), round(top + rise))
            slot = Slot(glyph_id(font, em, each), *corner, wide, high, *tint, label, COLOURS.index(colour))
            scene.slots.append(slot)
            left += advance + gap
        return


Kind = Literal["emoji", "shape", "unknown"]
Planned = tuple[Kind, int]


def _something(rng: random.Random, split: Split) -> Planned:
    """Which emoji or shape to draw."""
    if split == "shapes":
        return "shape", rng.randrange(len(SHAPES))
    drawn = rng.random()
    if split == "unseen" and drawn < 0.5:
        return "unknown", NAMED + UNKNOWN + rng.randrange(UNSEEN)
    if drawn < 0.62:
        return "emoji", rng.randrange(NAMED)
    if drawn < 0.93:
        return "shape", rng.randrange(len(SHAPES))
    return "unknown", NAMED + rng.randrange(UNKNOWN)


def _plan(rng: random.Random, kind: str, split: Split) -> list[Planned]:
    """What to draw, in the order of drawing."""
    if kind == "single":
        return [_something(rng, split)]
    if kind == "text":
        return [_something(rng, split) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    if kind == "count":
        return _plan_count(rng, split)
    count = rng.choice([2, 2, 3, 3, 3, 4, 4, 5, 6])
    plan = [_something(rng, split) for _ in range(count)]
    if rng.random() < 0.2 and count > 2:
        plan[1] = plan[0]
    return plan


def _plan_count(rng: random.Random, split: Split) -> list[Planned]:
    first = _something(rng, split)
    count = rng.randint(1, 8)
    plan = [first] * count
    if rng.random() < 0.6:
        second = _something(rng, split)
        if rng.random() < 0.35 and first[0] == "shape":
            second = first  # the same shape, perhaps in another colour
        plan += [second] * rng.randint(1, max(1, min(4, 9 - count)))
    if rng.random() < 0.3 and len(plan) < 8:
        plan.append(_something(rng, split))
    return plan


def _size(rng: random.Random, count: int) -> int:
    if count == 1:
        return rng.choice([3, 5, 6, 7, 8, 9, 10, 11, 12, 12])
    return rng.randrange(len(SIZES) if count <= 3 else (11 if count <= 5 else 8))


def _draw(rng: random.Random, scene: Scene, taken: list[Box], plan: list[Planned], split: Split) -> None:
    """Gives each planned thing a size, a colour and a place; what finds none is left out."""
    colours: dict[tuple[object, ...], str] = {}
    seen: list[int] = []
    for order, (kind, index) in enumerate(plan):
        size = _size(rng, len(plan))
        if kind == "emoji" and split == "train" and any(pair_held_out(index, each) for each in seen if each != index):
            continue
        colour: str | None = None
        tint: Colour = (255, 255, 255)
        if kind == "shape":
            key = (kind, index, 0 if rng.random() < 0.85 else 1) if scene.kind == "count" else (order,)
            painted = _paint(rng, scene, index, colours.get(key), split)
            if not painted:
                continue
            colour, tint = painted
            colours[key] = colour
        settled = _settle(rng, taken, kind, index, size, len(plan), split)
        if settled:
            if kind == "emoji":
                seen.append(index)
            _add(scene, taken, kind, index, *settled, colour, tint)


def _paint(rng: random.Random, scene: Scene, shape: int, before: str | None, split: Split) -> tuple[str, Colour] | None:
    """A colour for a shape: that of its like before, or a new one that stands out."""
    if before:
        tint = varied(rng, before)
        if _stands_out(scene, tint):
            return before, tint
    for _ in range(20):
        index = rng.randrange(len(COLOURS))
        if ((shape, index) in SHAPE_COLOURS_HELD_OUT) != (split == "combo"):
            continue
        tint = varied(rng, COLOURS[index])
        if _stands_out(scene, tint):
            return COLOURS[index], tint
    return None


def _settle(
    rng: random.Random, taken: list[Box], kind: Kind, index: int, size: int, count: int, split: Split
) -> tuple[int, tuple[float, float]] | None:
    """The index of a size, and a place where it fits."""
    for _ in range(3 if count < 6 else 2):
        place = _free_place(rng, SIZES[size], SIZES[size], taken)
        if place and kind == "emoji" and place_held_out(index, region(*place)) != (split == "combo"):
            continue
        if place:
            return size, place
        size = max(0, size - 2)
    return None


def _add(
    scene: Scene,
    taken: list[Box],
    kind: Kind,
    index: int,
    size: int,
    place: tuple[float, float],
    colour: str | None,
    tint: Colour,
) -> None:
    side = SIZES[size]
    sprite = index * len(SIZES) + size
    if kind == "shape":
        name, label, sprite = SHAPES[index], FIRST_CLASS_SHAPE + index, sprite + FIRST_SHAPE
    elif kind == "emoji":
        name, label, colour = EMOJI[index].name, index, EMOJI[index].colour
    else:
        name, label = "unknown object", CLASS_UNKNOWN
    word = "small" if side <= 40 else ("medium" if side <= 66 else "large")
    taken.append((*place, side, side))
    scene.objects.append(Thing(kind, index, name, colour, *place, side, side, region(*place), label, word))
    left, top = round(place[0] - side / 2), round(place[1] - side / 2)
    painted = COLOURS.index(colour) if kind == "shape" and colour else -1
    scene.slots.append(Slot(sprite, left, top, side, side, *tint, label, painted))


def pack(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What the renderer needs: slots ``[16, 10]``, the sprite -1 where there is none, and background ``[9]``."""
    slots = np.zeros((MOST_SPRITES, 10), np.float32)
    slots[:, 0] = -1
    if scene.slots:
        slots[: len(scene.slots)] = np.array(scene.slots, np.float32)
    behind = (scene.style, *scene.colour, *scene.colour_to, scene.across, BACKGROUNDS.index(scene.background))
    return slots, np.array(behind, np.float32)
