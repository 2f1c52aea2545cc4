"""The bundled model really sees: its score on held-out scenes may not fall, and its files are ordinary ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import trifocal
from logits import logits_of
from seeing import prompt_of
from trifocal.checkpoints import from_folder
from trifocal.messages import Message, Sampling
from trifocal.model.llava import Llava

DATA = Path(__file__).parents[1] / "data" / "thimble"
ROOT = Path(__file__).parents[2]
QUESTIONS = json.loads((DATA / "questions.json").read_text("utf-8"))
FLOOR = {"seen": 0.96, "unseen": 0.83}  # share of answers right to the letter; every kind of question counts alike
EACH = (
    1 if os.environ.get("TRIFOCAL_FULL") == "1" else 3
)  # every third question in each run, all by `make test-hostile`


@pytest.fixture(scope="module")
def llava() -> Iterator[Llava]:
    with trifocal.load() as loaded:
        yield loaded


@pytest.mark.parametrize("wording", FLOOR)
def test_answers_about_scenes_that_no_training_saw(llava: Llava, wording: str) -> None:
    asked = [item for item in QUESTIONS if item["wording"] == wording][::EACH]
    pictures = {item["image"]: trifocal.open_image(DATA / item["image"]) for item in asked}

    def answer(item: dict[str, str]) -> str:
        question = llava.question(item["question"], [pictures[item["image"]]])
        return llava.complete([question], Sampling(max_tokens=120)).text.strip()

    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(answer, asked))
    wrong = [
        (item["question"], item["answer"], text)
        for item, text in zip(asked, said, strict=True)
        if text != item["answer"]
    ]
    assert len(asked) > 160 // EACH
    assert 1 - len(wrong) / len(asked) >= FLOOR[wording], wrong


def test_it_answers_about_the_picture_of_the_readme(llava: Llava) -> None:
    picture = trifocal.open_image(ROOT / "docs" / "example.png")
    readme = (ROOT / "README.md").read_text("utf-8")
    for question in ("What is in this picture?", "What is to the left of the dog?"):
        assert question in readme
        assert llava.complete([llava.question(question, [picture])]).text.strip() in readme


def test_it_follows_up_says_what_is_not_there_and_knows_that_it_is_tiny(llava: Llava) -> None:
    turn = llava.question("Is there a dog?", [trifocal.open_image(ROOT / "docs" / "example.png")])
    first = llava.complete([turn]).text
    assert first == "Yes, there is a dog in the bottom right."
    talk = [turn, Message("assistant", first), llava.question("Where is the banana?")]
    assert "bottom left" in llava.complete(talk).text
    assert llava.complete([*talk[:2], llava.question("Is there a cat?")]).text.startswith("No")
    assert "small model" in llava.complete([llava.question("What is the capital of France?")]).text


def test_two_pictures_and_a_placed_one(llava: Llava) -> None:
    one, two = (trifocal.open_image(DATA / QUESTIONS[at]["image"]) for at in (0, -1))
    assert "same" in llava.complete([llava.question("Are the two pictures the same?", [one, one])]).text
    assert "different" in llava.complete([llava.question("Are the two pictures the same?", [one, two])]).text
    dog = trifocal.open_image(ROOT / "docs" / "example.png")
    placed = llava.complete([llava.question("<image>\nWhat color is the square?", [dog])])
    assert placed.text == "The square is green."


def test_it_opens_in_stock_transformers_and_says_the_same(llava: Llava) -> None:
    from transformers import LlavaForConditionalGeneration

    folder = from_folder(llava.checkpoint.language.source).language.source
    stock = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    picture = trifocal.open_image(ROOT / "docs" / "example.png")
    parts = llava.template.render([llava.question("What is in this picture?", [picture])])
    prompt = prompt_of(llava.composer, parts)
    ids = torch.tensor([prompt.ids(stock.config.image_token_index)])
    values = llava.gallery.vision.pixels(*llava.gallery.looks([picture]))
    with torch.no_grad():
        theirs = stock(input_ids=ids, pixel_values=values).logits[0]
        ours = logits_of(llava.engine, prompt)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_the_package_stays_small() -> None:
    folder = Path(trifocal.__file__).parent / "thimble"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 32 << 20
