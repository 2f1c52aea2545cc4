"""Measures thimble on the CPU, on pictures and wordings that no training saw.

``python -m training.evaluate --rows 384`` prints accuracy by kind of question for every held-out set;
``--asked 200`` has the package itself answer so many questions, each in a conversation of its own.
An answer is right if every token of it is: answers are functions of scene and question, so that being likeliest
at every place is the same as being generated greedily.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from training.model import Thimble, load_hub, star_mask
from training.packing import MODEL, Encoder, Span, make_batch
from training.render import Renderer, normalised, paint, weathered
from training.scenes import Split

SEED = 10**9 + 7  # training's seeds are all below ten million
STEP = 24  # rows at a time: 20 with one picture, 4 with two


@dataclass(frozen=True)
class Held:
    """A held-out set: which scenes, and whether the wordings are held out, too."""

    name: str
    split: Split
    wording: bool
    about: str


SETS = (
    Held("scenes", "train", False, "new scenes, trained wordings"),
    Held("wordings", "train", True, "new scenes, wordings never trained"),
    Held("combinations", "combo", False, "pairs of shape and colour, emoji and region, and words never trained"),
    Held("fonts", "font", False, "fonts and words never trained"),
    Held("unseen emoji", "unseen", False, "half of the emoji never trained: to be called unknown"),
)


@dataclass
class Score:
    """Right answers by kind of question."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, right: bool) -> None:
        """Counts one answer."""
        self.asked[kind] += 1
        self.right[kind] += right

    def share(self, kinds: Iterable[str]) -> tuple[float, int]:
        """The share of right answers among these kinds, and of how many."""
        kinds = list(kinds)
        asked = sum(self.asked[kind] for kind in kinds)
        return sum(self.right[kind] for kind in kinds) / max(1, asked), asked

    def pair(self, two: bool) -> tuple[float, int]:
        """The share over all questions about one picture, or about two."""
        return self.share(kind for kind in self.asked if kind.startswith(("2:", "two_")) == two)


# how the many kinds are shown in a table
GROUPS = {
    "caption": ("caption",),
    "detail: what is where": ("detail",),
    "list of objects": ("list",),
    "is there, yes": ("exist_yes",),
    "is there, no": ("exist_no",),
    "count one kind": ("count",),
    "count all": ("count_total",),
    "where is": ("where", "f_where", "f_wheres", "f_and"),
    "is it there, yes or no": ("where_yes", "where_no"),
    "what is in a region": ("at",),
    "relation, yes or no": ("rel_yes", "rel_no"),
    "relative position": ("rel_where", "rel_choice"),
    "what is left of, above...": ("dir_list",),
    "what is next to": ("nearest", "f_next"),
    "leftmost, topmost...": ("extreme",),
    "colour of a shape": ("color_shape",),
    "colour of a thing": ("color_emoji",),
    "is it red, yes or no": ("color_yes", "color_no"),
    "which shape is red": ("shape_of",),
    "background": ("bg", "bg_yes", "bg_no"),
    "size": ("size", "f_size"),
    "bigger, largest": ("bigger", "largest", "bigger_yes", "bigger_no"),
    "more of these or of those": ("more",),
    "animals, vehicles...": ("cat_exist", "cat_list", "cat_count"),
    "read text": ("ocr",),
    "no text there": ("ocr_none",),
    "colour, place of text": ("text_color", "text_where"),
    "things that are not there": ("false_premise",),
    "no picture yet": ("noimg",),
    "small talk": ("chat",),
    "out of domain": ("chat_ood",),
    "nonsense": ("not_understood",),
}


@torch.inference_mode()
def measure(model: Thimble, held: Held, rows: int, renderer: Renderer, encode: Encoder) -> Score:
    """Scores the model on a held-out set, pictures weathered as in training."""
    rng, score = random.Random(SEED), Score()
    torch.manual_seed(SEED)
    for _ in range(max(1, rows // STEP)):
        batch, spans = make_batch(rng, encode, STEP - STEP // 6, STEP // 6, split=held.split, held_out=held.wording)
        tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
        pictures = normalised(weathered(renderer(tensors["slots"], tensors["backgrounds"])))
        ids = tensors["ids"].long()
        hidden = model.read(
            ids,
            tensors["features"].long(),
            tensors["positions"].long(),
            star_mask(tensors["conversations"].int()),
            model.see(pictures),
        )
        _, right = model.judge(hidden, tensors["targets"].long(), ids)
        count(score, batch["targets"].tolist(), right.tolist(), spans)
    return score


def count(score: Score, targets: list[list[int]], right: list[list[bool]], spans: list[list[Span]]) -> None:
    """Adds to a score which answers of a batch are right in every token."""
    for places, marks, row in zip(targets, right, spans, strict=True):
        at = {place: mark for place, mark in zip(places, marks, strict=True) if place >= 0}
        for span in row:
            score.add(span.kind, all(at[place] for place in range(span.first, span.last)))


def ask_package(count: int) -> tuple[Score, Counter[tuple[str, str]], list[tuple[str, str, str, str]]]:
    """Has ``trifocal`` answer questions about freshly painted pictures, each in a conversation of its own.

    Returns:
        the score; which single word of a wrong answer stood for which, where they differ in one; and the wrong answers
        as kind, question, right answer, answer given.
    """
    from io import BytesIO

    import trifocal
    from training.asking import Asker
    from training.questions import ask
    from training.scenes import make_scene
    from trifocal.messages import Sampling

    rng = random.Random(SEED + 1)
    score, confusions, wrong = Score(), Counter[tuple[str, str]](), list[tuple[str, str, str, str]]()
    with trifocal.load() as llava:
        while score.asked.total() < count:
            scene = make_scene(rng)
            file = BytesIO()
            paint(scene, rng.randrange(10**6)).save(file, "PNG")
            picture = trifocal.open_image(file.getvalue())
            for _ in range(4):
                turn = ask(scene, Asker(rng))[0]
                reply = llava.complete([llava.question(turn.question, [picture])], Sampling(max_tokens=120))
                told = reply.text.strip()
                score.add(turn.kind, told == turn.answer)
                if told != turn.answer:
                    wrong.append((*turn, told))
                    confusions.update(_confused(turn.answer, told))
    return score, confusions, wrong


def _confused(right: str, told: str) -> list[tuple[str, str]]:
    words, other = right.split(), told.split()
    if len(words) != len(other):
        return []
    differing = [(a, b) for a, b in zip(words, other, strict=True) if a != b]
    return differing if len(differing) == 1 else []


def table(scores: dict[str, Score]) -> str:
    """The accuracies as Markdown."""
    lines = ["| question | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]

    def row(name: str, shares: list[tuple[float, int]]) -> str:
        return f"| {name} | " + " | ".join(f"{share:.3f} ({asked})" if asked else "-" for share, asked in shares) + " |"

    lines.append(row("**one picture, all**", [score.pair(False) for score in scores.values()]))
    lines.append(row("**two pictures, all**", [score.pair(True) for score in scores.values()]))
    for name, kinds in GROUPS.items():
        every = [*kinds, *(kind + "_short" for kind in kinds)]
        lines.append(row(name, [score.share(every) for score in scores.values()]))
    return "\n".join(lines)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=384, help="rows of about ten questions in each set")
    parser.add_argument("--asked", type=int, default=0, help="questions for the package itself")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--sets", nargs="*", default=[held.name for held in SETS])
    parser.add_argument("--json", type=Path, help="where to write all figures")
    given = parser.parse_args()
    figures: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
    scores = {}
    if given.rows:
        model, renderer, encode = load_hub(given.model).eval(), Renderer("cpu"), Encoder(given.model / "tokenizer.json")
        for held in SETS:
            if held.name in given.sets:
                scores[held.name] = measure(model, held, given.rows, renderer, encode)
    if given.asked:
        scores["asked of the package"], confusions, wrong = ask_package(given.asked)
        for line in wrong:
            print(*line, sep="\n    ")
        print("confusions:", ", ".join(f"{a} -> {b}" for (a, b), _ in confusions.most_common(20)))
    print(table(scores))
    for name, score in scores.items():
        figures[name] = {"ALL": score.pair(False), "TWO": score.pair(True)}
        figures[name] |= {kind: score.share([kind]) for kind in sorted(score.asked)}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
