"""Paints sample pictures for the model's card, asks the package about them, and prints what it says.

``python -m training.samples docs/thimble`` writes eight pictures of scenes that no training saw. None is chosen by its
answer: they are the first of their kinds.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from training.asking import Asker
from training.evaluate import SEED
from training.questions import ask
from training.render import paint
from training.scenes import FADING, PLAIN, Scene, make_scene

KINDS = ("single", "mixed", "mixed", "count", "count", "text", "text", "noise")


def scenes() -> list[Scene]:
    """One scene for each of the kinds; not grainy, so that the files stay small."""
    rng, found = random.Random(SEED + 2), list[Scene]()
    for kind in KINDS:
        scene = make_scene(rng, kind=kind)
        while kind != "noise" and (scene.style not in (PLAIN, FADING) or not scene.everything):
            scene = make_scene(rng, kind=kind)
        found.append(scene)
    return found


def main(folder: Path) -> None:
    """Writes the pictures, and prints rows of a table: picture, question, answer, whether it is right."""
    import trifocal

    folder.mkdir(parents=True, exist_ok=True)
    asker = Asker(random.Random(SEED + 3))
    with trifocal.load() as llava:
        for number, scene in enumerate(scenes(), 1):
            file = folder / f"sample{number}.png"
            paint(scene, number).resize((112, 112) if scene.unrecognisable else (224, 224)).save(file, optimize=True)
            picture = trifocal.open_image(file)
            for turn in (ask(scene, asker)[0], ask(scene, asker)[0]):
                told = llava.complete([llava.question(turn.question, [picture])]).text.strip()
                mark = "right" if told == turn.answer else f"wrong: {turn.answer}"
                print(f"| {file.name} | {turn.question} | {told} | {mark} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
