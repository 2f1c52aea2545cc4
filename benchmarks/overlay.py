"""How true "where it looked" is: how often the hottest patch for an object's name falls on that object.

    PYTHONPATH=src:. python benchmarks/overlay.py [--scenes 200]
    PYTHONPATH=src:. python benchmarks/overlay.py --write tests/data/overlay    the pictures of the test

Scenes are freshly drawn by the training's renderer from a seed that no training used, with pairs of shape and colour
and of thing and place that training never had (they need the fonts that training/README.md names). thimble is asked
what is in the picture, and each object whose name stands in its answer counts once. A patch is on an object when its
middle is in the object's box; chance is the share of all patches that are.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image as Pictures
from training.evaluate import SEED
from training.render import paint
from training.scenes import PLAIN, Scene, make_scene

import trifocal
from trifocal import Explanation, Image, Llava, Message

QUESTION = "What is in this picture?"
WIDE = 112  # pixels of background added on the right, so that the picture is padded


@dataclass(frozen=True)
class Case:
    """Pictures, a question, and which named things are where in which of the pictures: left, top, right, bottom."""

    pictures: list[Image]
    question: str
    things: list[tuple[str, int, tuple[float, float, float, float]]]


@dataclass
class Score:
    """How often the hottest patch was on the thing, how much of the map was, and what chance would give."""

    asked: int = 0
    hits: int = 0
    mass: float = 0.0
    chance: float = 0.0

    def row(self, name: str) -> str:
        """A row of a table."""
        shares = [self.hits, self.mass, self.chance]
        told = " | ".join(f"{100 * share / max(self.asked, 1):.1f} %" for share in shares)
        return f"| {name} | {self.asked} | {told} |"


def one_object(rng: random.Random) -> Iterator[Case]:
    """One object on a square picture."""
    while True:
        scene = _scene(rng, 1)
        yield Case([_drawn(scene)], QUESTION, _things(scene))


def several_objects(rng: random.Random) -> Iterator[Case]:
    """Two to six objects of different names."""
    while True:
        scene = _scene(rng, rng.randint(2, 6))
        yield Case([_drawn(scene)], QUESTION, _things(scene))


def wide_picture(rng: random.Random) -> Iterator[Case]:
    """One object, on a picture that has to be padded."""
    while True:
        scene = _scene(rng, 1)
        if scene.style == PLAIN:
            yield Case([_drawn(scene, WIDE)], QUESTION, _things(scene))


def two_pictures(rng: random.Random) -> Iterator[Case]:
    """One object on each of two pictures, the second of which is asked about."""
    while True:
        scenes = [_scene(rng, 1), _scene(rng, 1)]
        yield Case([_drawn(scene) for scene in scenes], "What is in the second picture?", _things(scenes[1], 1))


SETS = {
    "one object": one_object,
    "two to six objects": several_objects,
    "one object, picture not square": wide_picture,
    "two pictures, the second asked about": two_pictures,
}


def _scene(rng: random.Random, count: int) -> Scene:
    """A scene with so many objects of different names and nothing else."""
    while True:
        scene = make_scene(rng, "combo", "single" if count == 1 else "mixed")
        if len(scene.objects) == count == len(scene.unique()) and not scene.text:
            return scene


def _drawn(scene: Scene, wider: int = 0) -> Image:
    picture = paint(scene)
    canvas = Pictures.new("RGB", (picture.width + wider, picture.height), picture.getpixel((0, 0)))
    canvas.paste(picture)
    file = BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return trifocal.open_image(file.getvalue())


def _things(scene: Scene, at: int = 0) -> list[tuple[str, int, tuple[float, float, float, float]]]:
    return [
        (
            each.called,
            at,
            (each.x - each.width / 2, each.y - each.height / 2, each.x + each.width / 2, each.y + each.height / 2),
        )
        for each in scene.unique()
    ]


def measure(llava: Llava, cases: Iterator[Case], count: int) -> Score:
    """Asks about so many cases and looks where it looked."""
    score = Score()
    for _, case in zip(range(count), cases, strict=False):
        turn = llava.question(case.question, case.pictures)
        answer = llava.complete([turn]).text
        explained = llava.explain([turn, Message("assistant", answer)])
        for name, at, box in case.things:
            named = re.search(rf"\b{re.escape(name)}\b", answer)
            if named:
                _add(score, case, explained, named.span(), at, box)
    return score


def _add(
    score: Score,
    case: Case,
    explained: Explanation,
    span: tuple[int, int],
    at: int,
    box: tuple[float, float, float, float],
) -> None:
    """Adds what the words of a name looked at; patches of all pictures compete."""
    words = [word for word in explained.words if word.start < span[1] and word.end > span[0]]
    heat = torch.cat(
        [sum(torch.tensor(word.looks[each].grid) for word in words).flatten() for each in range(len(case.pictures))]
    )
    on = torch.cat(
        [_on(explained, each, case.pictures[each], box if each == at else None) for each in range(len(case.pictures))]
    )
    score.asked += 1
    score.hits += bool(on[heat.argmax()])
    score.mass += float(heat[on].sum() / heat.sum())
    score.chance += float(on.float().mean())


def _on(explained: Explanation, at: int, picture: Image, box: tuple[float, float, float, float] | None) -> torch.Tensor:
    """Which patches of a picture have their middle in a box of pixels."""
    look = explained.pictures[at]
    if box is None:
        return torch.zeros(look.rows * look.columns, dtype=torch.bool)
    x = (look.box[0] + (torch.arange(look.columns) + 0.5) / look.columns * look.box[2]) * picture.width
    y = (look.box[1] + (torch.arange(look.rows) + 0.5) / look.rows * look.box[3]) * picture.height
    return (((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]).flatten()


def write(folder: Path, count: int = 24) -> None:
    """Writes pictures of one object, of which every third is not square, and where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, listed = random.Random(SEED + 21), []
    while len(listed) < count:
        scene, wider = _scene(rng, 1), WIDE * (len(listed) % 3 == 2)
        if scene.style != PLAIN or scene.objects[0].width < 36:  # smaller ones may hold no patch's middle
            continue
        file = folder / f"one{len(listed):02}.png"
        _drawn(scene, wider).pixels.save(file, optimize=True)
        ((name, _, box),) = _things(scene)
        listed.append({"image": file.name, "name": name, "box": [round(value, 1) for value in box]})
    (folder / "objects.json").write_text("[\n" + ",\n".join(map(json.dumps, listed)) + "\n]\n", "utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200, help="of each set")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the test's pictures there instead")
    given = parser.parse_args()
    if given.write:
        write(given.write)
        return
    print("| pictures | names | hottest patch on the object | of the map on it | chance |\n|---|---|---|---|---|")
    with trifocal.load() as llava:
        for number, (name, cases) in enumerate(SETS.items()):
            print(measure(llava, cases(random.Random(SEED + 31 + number)), given.scenes).row(name), flush=True)


if __name__ == "__main__":
    main()
