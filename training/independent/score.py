"""Asks a model the independent questions about the drawn scenes and prints its accuracy per kind of question."""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from draw import draw, load_scenes, save_all
from PIL import Image

HERE = Path(__file__).parent

Item = dict[str, Any]
Turns = list[tuple[str, str | None]]
Ask = Callable[[Image.Image, Turns], str]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "beige")
SPELLINGS = {"grey": "gray", "violet": "purple", "navy": "blue", "centre": "center", "middle": "center"} | {
    str(value): word for value, word in enumerate(NUMBERS)
}
SIDES = {
    "top": ("top", "upper", "uppermost"),
    "bottom": ("bottom", "lower", "lowermost"),
    "left": ("left", "leftmost"),
    "right": ("right", "rightmost"),
    "center": ("center",),
}
NEGATIONS = ("no", "not", "none", "nothing", "nobody", "never", "neither", "without", "empty", "cannot")
AFFIRMATIONS = r"there (?:is|are|appears?|seems?)|there's|it (?:is|does|shows|has|contains)|it's|i (?:can |do )?see|"
AFFIRMATIONS += r"they are|correct|indeed|certainly|the picture (?:shows|has|contains)"
UNDECIDED = (
    "don't know",
    "do not know",
    "don't understand",
    "do not understand",
    "can't tell",
    "cannot tell",
    "not sure",
)
DECLINING = (
    *("tiny", "small model", "little model", "only", "sorry", "unable"),
    *("can't", "cannot", "can not", "not able", "not sure", "don't know", "do not know"),
    *("don't understand", "do not understand"),
)

SEED_CONTEXT = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language. "
    "Follow the instructions carefully and explain your answers in detail.\n"
    "### Human: \nHi!\n### Assistant: \nHi there! How can I help you today?\n"
)
MAX_TOKENS = 160


def load_questions(file: Path = HERE / "questions.json") -> list[Item]:
    """The questions, in the order of the file."""
    items: list[Item] = json.loads(file.read_text(encoding="utf-8"))
    return items


def questions_of(item: Item) -> list[str]:
    """What the user says, turn by turn; the answer to the last is the one that counts."""
    return list(item["turns"]) if "turns" in item else [item["q"]]


def score(answer: str, item: Item) -> bool:
    """Whether an answer means what the item accepts: every condition that the item states must hold."""
    text = normalised(answer)
    checks: dict[str, Callable[[str, Any], bool]] = {
        "all_of": lambda text, groups: all(mentions_any(text, group) for group in groups),
        "none_of": lambda text, words: not mentions_any(text, words),
        "yes": lambda text, expected: polarity(text) is expected,
        "number": says_number,
        "colour": says_colour,
        "place": says_place,
        "declines": lambda text, expected: mentions_any(text, DECLINING) is expected,
    }
    return all(check(text, item[name]) for name, check in checks.items() if name in item)


def normalised(text: str) -> str:
    """Lower-case words with single spaces between: digits as words, one spelling, spelled-out words joined."""
    lower = text.lower().replace("’", "'")
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", lower)
    joined = " ".join(SPELLINGS.get(word, word) for word in words)
    return re.sub(r"\b[a-z](?: [a-z]){2,}\b", lambda letters: letters[0].replace(" ", ""), joined)


def mentions(text: str, phrase: str) -> bool:
    """Whether normalised text has a word or phrase, in the singular or a regular plural."""
    return re.search(rf"(?<!\w){re.escape(normalised(phrase))}(?:s|es)?(?!\w)", text) is not None


def mentions_any(text: str, phrases: Iterable[str]) -> bool:
    return any(mentions(text, phrase) for phrase in phrases)


def polarity(text: str) -> bool | None:
    """True for yes, False for no, None for neither; the first word decides, then a negation anywhere."""
    first = text.split(" ", 1)[0]
    if first in ("yes", "yeah", "yep"):
        return True
    if first in ("no", "nope"):
        return False
    if mentions_any(text, UNDECIDED):
        return None
    if mentions_any(text, NEGATIONS) or re.search(r"n't\b", text):
        return False
    return True if mentions(text, "yes") or re.search(rf"\b(?:{AFFIRMATIONS})\b", text) else None


def says_number(text: str, number: int) -> bool:
    """Whether the one number in the text is this one; "a single X" is one, and "no X" none."""
    found = {word for word in text.split() if word in NUMBERS}
    if not found and number == 1:
        return (
            re.search(r"\b(?:is|see|only|just|a single) (?:an? )?\w", text) is not None and polarity(text) is not False
        )
    if not found and number == 0:
        return polarity(text) is False
    return found == {NUMBERS[number]}


def says_colour(text: str, colour: str) -> bool:
    """Whether the text names this colour and no other; light and dark are as good as plain."""
    return {word for word in text.split() if word in COLOURS} == {colour}


def says_place(text: str, place: str) -> bool:
    """Whether the text names a place's sides and none that contradict: "top" is neither left nor right."""
    wanted = set(place.split())
    named = {side for side, words in SIDES.items() if mentions_any(text, words)}
    return named == wanted or (wanted != {"center"} and named == wanted | {"center"} and len(wanted) == 1)


def evaluate(ask: Ask, items: Sequence[Item]) -> list[tuple[Item, str, bool]]:
    """Every item with the model's last answer and whether it is right.

    A follow-up is asked after the model's own answers to the turns before it.
    """
    scenes, results = load_scenes(), []
    for item in items:
        picture = draw(scenes[item["scene"]])
        turns: Turns = []
        answer = ""
        for question in questions_of(item):
            answer = ask(picture, [*turns, (question, None)])
            turns.append((question, answer))
        results.append((item, answer, score(answer, item)))
    return results


def report(results: Sequence[tuple[Item, str, bool]]) -> str:
    """Accuracy per kind, then over all questions, as lines of text."""
    kinds: dict[str, list[bool]] = defaultdict(list)
    for item, _, right in results:
        kinds[item["kind"]].append(right)
    kinds["ALL"] = [right for _, _, right in results]
    return "\n".join(
        f"{kind:<12} {sum(rights):>3} / {len(rights):<3} {sum(rights) / max(1, len(rights)):6.1%}"
        for kind, rights in kinds.items()
    )


def ask_trifocal(checkpoint: str | None) -> Ask:
    """A model loaded by Trifocal; without a checkpoint the bundled one."""
    import trifocal
    from trifocal import Message, Sampling
    from trifocal.images import from_pil

    llava = trifocal.load(checkpoint=checkpoint) if checkpoint else trifocal.load()

    def ask(picture: Image.Image, turns: Turns) -> str:
        messages = []
        for i, (question, answer) in enumerate(turns):
            messages.append(Message("user", question if i else (from_pil(picture), question)))
            if answer is not None:
                messages.append(Message("assistant", answer))
        return str(llava.complete(messages, Sampling(temperature=0, max_tokens=MAX_TOKENS)).text).strip()

    return ask


def seed_prompt(turns: Turns, image_tokens: int) -> str:
    """The conversation as the seed's web UI writes it, the picture before the first question."""
    image = "<im_start>" + "<im_patch>" * image_tokens + "<im_end>\n"
    lines = [SEED_CONTEXT]
    for i, (question, answer) in enumerate(turns):
        lines.append(f"### Human: \n{'' if i else image}{question}\n### Assistant: \n")
        if answer is not None:
            lines.append(f"{answer}\n")
    return "".join(lines)


def ask_transformers(folder: str) -> Ask:
    """A folder loaded by transformers' own LLaVA, decoded greedily."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    vision = model.config.vision_config
    image_tokens = (vision.image_size // vision.patch_size) ** 2

    def written(ids: Any, inputs: Any) -> str:
        return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def ask(picture: Image.Image, turns: Turns) -> str:
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        inputs = tokenizer(seed_prompt(turns, image_tokens), return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=pixels,
                do_sample=False,
                max_new_tokens=MAX_TOKENS,
                stopping_criteria=[lambda ids, *_, **__: torch.tensor(["###" in written(ids, inputs)])],
            )
        return written(ids, inputs).split("###", 1)[0].strip()

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="a checkpoint for Trifocal instead of the bundled model")
    parser.add_argument("--transformers", metavar="FOLDER", help="load this folder with transformers alone")
    parser.add_argument("--pictures", type=Path, default=Path("build/independent"), help="where the drawings go")
    parser.add_argument("--kind", action="append", help="only questions of this kind; may be given again")
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every answer there")
    options = parser.parse_args()

    save_all(options.pictures)
    ask = ask_transformers(options.transformers) if options.transformers else ask_trifocal(options.checkpoint)
    items = [item for item in load_questions() if not options.kind or item["kind"] in options.kind]
    results = evaluate(ask, items)
    if options.wrong:
        for item, answer, right in results:
            if not right:
                print(f"{item['id']} {item['scene']} {item['kind']}: {' / '.join(questions_of(item))} -> {answer}")
    if options.json:
        rows = [{**item, "answer": answer, "right": right} for item, answer, right in results]
        options.json.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main()
