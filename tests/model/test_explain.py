"""Where it looked: the attention is the model's own, the words the answer's, the patches where they should be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import trifocal
from seeing import prompt_of
from trifocal.engines.echo import Bytes, Echo
from trifocal.engines.transformers import Transformers, looking
from trifocal.errors import BadMessages, EngineError, PromptTooLong, UsageError
from trifocal.messages import Message, Sampling
from trifocal.model.explaining import Explanation, explanation_of
from trifocal.model.llava import Llava
from trifocal.prompt import ImageSpan, Prompt, TokenSpan
from trifocal.vision import PatchGrid

DATA = Path(__file__).parents[1] / "data" / "overlay"
EXAMPLE = Path(__file__).parents[2] / "docs" / "example.png"
WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def llava() -> Iterator[Llava]:
    with trifocal.load(engine="transformers") as loaded:
        yield loaded


@pytest.fixture
def talk(llava: Llava) -> list[Message]:
    """A question about the example and thimble's own answer."""
    turn = llava.question("What is in this picture?", [trifocal.open_image(EXAMPLE)])
    return [turn, Message("assistant", llava.complete([turn]).text)]


def spans(llava: Llava, talk: Sequence[Message]) -> tuple[Prompt, list[int]]:
    prompt = prompt_of(llava.composer, llava.template.render(talk[:-1]))
    return prompt, llava.engine.tokenizer.encode(talk[-1].text, start=False)


def test_the_attention_is_the_models_own(llava: Llava, talk: list[Message]) -> None:
    """Held against one pass of transformers over prompt and answer, without any cache."""
    prompt, ids = spans(llava, talk)
    engine = llava.engine
    assert isinstance(engine, Transformers)
    told = engine.attention(prompt, ids)
    assert told.shape == (len(ids), len(prompt))
    assert told.dtype == torch.float32
    model = engine.model
    with torch.inference_mode():
        rows = torch.cat([prompt.splice(engine.embed), engine.embed(torch.tensor(ids))])
        model.set_attn_implementation("eager")
        try:
            layers = model(inputs_embeds=rows[None], output_attentions=True, use_cache=False).attentions
        finally:
            model.set_attn_implementation("sdpa")
    upper = torch.stack([layer[0].mean(0) for layer in layers[len(layers) // 2 :]]).mean(0)
    expected = upper[len(prompt) - 1 : -1, : len(prompt)]  # an id is told from the position before it
    assert torch.allclose(told, expected, atol=1e-5)
    assert (told.sum(1) <= 1 + 1e-5).all()


def test_looking_changes_nothing(llava: Llava, talk: list[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, ids = spans(llava, talk)
    engine = llava.engine
    assert isinstance(engine, Transformers)
    list(engine.stream(prompt, Sampling(max_tokens=8)))
    held = engine.state().free
    whole = engine.attention(prompt, ids)
    assert engine.model.config._attn_implementation == "sdpa"
    assert engine.state().free == held
    monkeypatch.setattr(looking, "HELD_BYTES", 1)  # one id at a time
    assert torch.allclose(engine.attention(prompt, ids), whole, atol=1e-5)
    assert llava.complete(talk[:-1]).text == talk[-1].text


def test_what_cannot_be_looked_at_is_refused(llava: Llava, talk: list[Message]) -> None:
    prompt, ids = spans(llava, talk)
    engine = llava.engine
    assert isinstance(engine, Transformers)
    with pytest.raises(PromptTooLong):
        engine.attention(prompt, ids * 1000)
    with pytest.raises(EngineError, match="no answer"):
        engine.attention(prompt, [])
    with pytest.raises(BadMessages, match="assistant's answer"):
        llava.explain(talk[:1])
    with pytest.raises(UsageError, match="1024"):
        llava.explain([talk[0], Message("assistant", "dog " * 1100)])
    assert llava.explains_not is None


def test_an_engine_that_does_not_know_says_so(llava: Llava, talk: list[Message]) -> None:
    echo = Echo(hidden=llava.engine.hidden)
    blind = Llava(llava.checkpoint, llava.composer, echo, llava.template)
    assert blind.explains_not is not None
    with pytest.raises(UsageError, match="echo can't tell where it looks"):
        blind.explain(talk)


def test_words_are_those_of_the_answer(llava: Llava, talk: list[Message]) -> None:
    told = llava.explain(talk)
    assert [word.text for word in told.words] == re.findall(r"\w+", talk[-1].text)
    assert all(told.answer[word.start : word.end] == word.text for word in told.words)
    (picture,) = told.pictures
    assert (picture.rows, picture.columns) == (16, 16)
    assert picture.box == pytest.approx((0, -0.1, 1, 1.2))  # 480 x 400, padded above and below
    values = [value for word in told.words for row in word.heatmaps[0].grid for value in row]
    assert max(values) == 1
    assert min(values) == 0
    assert all(word.heatmaps[0].share == pytest.approx(1) for word in told.words)
    named = [told.words[word].text for word, _ in picture.words]
    assert len(named) == 8
    assert {"red", "banana", "dog", "square"} <= set(named)
    weights = [weight for _, weight in picture.words]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 1


def hottest(told: Explanation, span: tuple[int, int], picture: int = 0) -> tuple[float, float]:
    """The middle of the hottest patch for some words, in shares of the picture's sides."""
    look = told.pictures[picture]
    words = [word for word in told.words if word.start < span[1] and word.end > span[0]]
    grid = torch.tensor([word.heatmaps[picture].grid for word in words]).sum(0)
    row, column = divmod(int(grid.argmax()), look.columns)
    left, top, width, height = look.box
    return left + (column + 0.5) / look.columns * width, top + (row + 0.5) / look.rows * height


def test_it_looked_at_what_it_named(llava: Llava) -> None:
    """On pictures of one object, the hottest patch for its name is on it (see benchmarks/overlay.py)."""
    listed = json.loads((DATA / "objects.json").read_text("utf-8"))
    asked, hits, chance = 0, 0, 0.0
    images = [trifocal.open_image(DATA / item["image"]) for item in listed]
    turns = [llava.question("What is in this picture?", [image]) for image in images]
    with ThreadPoolExecutor(8) as threads:  # together they cost a third less
        answers = [reply.text for reply in threads.map(lambda turn: llava.complete([turn]), turns)]
    for item, image, turn, answer in zip(listed, images, turns, answers, strict=True):
        named = re.search(rf"\b{item['name']}\b", answer)
        if named:
            x, y = hottest(llava.explain([turn, Message("assistant", answer)]), named.span())
            left, top, right, bottom = item["box"]
            asked += 1
            hits += left <= x * image.width < right and top <= y * image.height < bottom
            chance += (right - left) * (bottom - top) / (image.width * image.height)
    assert asked >= 20
    assert chance / asked < 0.15
    assert hits / asked >= 0.95, (hits, asked)


def test_of_two_pictures_the_one_that_was_named_drew_its_words(llava: Llava) -> None:
    listed = {item["name"]: item["image"] for item in json.loads((DATA / "objects.json").read_text("utf-8"))}
    pictures = [trifocal.open_image(DATA / listed[name]) for name in ("black diamond", "white heart")]
    turn = llava.question("What is in the second picture?", pictures)
    answer = llava.complete([turn]).text
    told = llava.explain([turn, Message("assistant", answer)])
    (heart,) = [word for word in told.words if word.text == "heart"]
    assert [look.image for look in heart.heatmaps] == [0, 1]
    assert heart.heatmaps[1].share > 0.8
    assert sum(look.share for look in heart.heatmaps) == pytest.approx(1)


def test_only_pictures_that_stay_are_told_of(llava: Llava, talk: list[Message]) -> None:
    second = [*talk, llava.question("Is there a dog?"), Message("assistant", "Yes.")]
    assert len(llava.explain(second).pictures) == 1
    told = llava.explain(second, images=0)
    assert told.pictures == ()
    assert [(word.text, word.heatmaps) for word in told.words] == [("Yes", ())]


GRID = PatchGrid(0, 2, 2, 2, WHOLE)


def explained(
    answer: str, weights: Sequence[Sequence[float]], grids: Sequence[PatchGrid] = (GRID,), positions: int = 4
) -> Explanation:
    """What is made of weights for each byte of an answer, over a prompt of one id, a picture and one more id."""
    prompt = Prompt([TokenSpan((5,)), ImageSpan(torch.zeros(positions, 2), "picture"), TokenSpan((6,))])
    ids = Bytes().encode(answer, start=False)
    rows = torch.tensor([[0.9, *row, 0.9] for row in weights])
    return explanation_of(answer, ids, rows, prompt, [grids], Bytes())


def test_a_word_is_the_mean_of_its_ids_less_that_of_the_others() -> None:
    told = explained("ab c", [[0.4, 0.1, 0, 0], [0.2, 0.1, 0, 0], [0.3, 0.1, 0, 0], [0.3, 0.1, 0.1, 0]])
    first, second = told.words
    assert (first.start, first.end, second.start, second.end) == (0, 2, 3, 4)
    assert first.heatmaps[0].grid == ((0, 0), (0, 0))  # 0.3 as everywhere
    assert second.heatmaps[0].grid == ((0, 0), (1, 0))  # what all look at alike is taken off
    assert told.pictures[0].words == ((1, 1.0), (0, 0.0))


def test_an_answer_of_one_word_has_nothing_to_be_held_against() -> None:
    told = explained("ab", [[0.4, 0.1, 0, 0], [0.4, 0.3, 0, 0]])
    assert told.words[0].heatmaps[0].grid == ((1, 0.5), (0, 0))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("It's a T-shirt, isn’t it?", ["It's", "a", "T-shirt", "isn’t", "it"]),
        ("naïve café 42", ["naïve", "café", "42"]),
        ("一匹のcat", ["一", "匹", "の", "cat"]),
        ("... !", []),
    ],
)
def test_words_of_all_scripts(answer: str, words: list[str]) -> None:
    """An id here is a byte, so that a sign takes three; all three are its own."""
    size = len(answer.encode())
    told = explained(answer, [[at / size, 0, 0, 0] for at in range(size)])
    assert [word.text for word in told.words] == words
    assert all(answer[word.start : word.end] == word.text for word in told.words)


def test_all_ids_of_a_character_are_its_own() -> None:
    told = explained("a 一", [[0, 0, 0, 0], [0, 0, 0, 0], [0.3, 0, 0, 0], [0, 0.6, 0, 0], [0, 0, 0.9, 0]])
    assert told.words[1].heatmaps[0].grid == ((0.3333, 0.6667), (1, 0))


def test_a_coarse_grid_is_spread_over_a_fine_one() -> None:
    """The whole picture in one patch, then its tiles as a grid of 2 x 2 with a row that belongs to no patch between."""
    grids = [PatchGrid(0, 1, 1, 1, WHOLE), PatchGrid(1, 2, 2, 3, WHOLE)]
    told = explained("a", [[0.4, 0.1, 0, 0.9, 0.7, 0.3]], grids, positions=6)
    assert told.pictures[0].box == WHOLE
    assert (told.pictures[0].rows, told.pictures[0].columns) == (2, 2)
    assert told.words[0].heatmaps[0].grid == ((0.25, 0.125), (1, 0.5))


def test_a_grid_of_a_part_lies_where_it_belongs() -> None:
    halves = [PatchGrid(0, 1, 1, 1, (0.0, 0.0, 0.5, 1.0)), PatchGrid(1, 2, 1, 1, (0.5, 0.0, 0.5, 1.0))]
    told = explained("a", [[0.4, 0.8, 0]], halves, positions=3)
    assert told.words[0].heatmaps[0].grid == ((0.25, 1), (0.25, 0))
