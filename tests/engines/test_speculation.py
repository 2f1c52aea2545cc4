"""Guessing: what is found, when it pays, and that no answer is another one for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from trifocal.checkpoints import from_folder, language_recipe
from trifocal.engines import load_engine
from trifocal.engines.base import Engine, Token
from trifocal.engines.recipe import Recipe
from trifocal.engines.speculation import LONGEST, Costs, Lookup, drafts
from trifocal.messages import Sampling
from trifocal.model.decoding import stream_text
from trifocal.placement import Placement
from trifocal.prompt import Prompt, TokenSpan

CPU = Placement("cpu", "float32")
SCHEMA = json.dumps({"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 6, "maxItems": 6})


def test_what_followed_the_last_two_is_read_on_and_repeated() -> None:
    keys = [1, 2, 3, 4, ("picture", 0), 3, 4]
    lookup = Lookup(keys)
    assert not lookup.found  # a picture is no id
    keys += [9, 1, 2]
    lookup.follow()
    assert lookup.guess(2, ()) == (3, 4)
    assert lookup.guess(9, ()) == (3, 4)
    assert lookup.guess(9, {4}) == (3,)
    keys += [3]
    lookup.follow()
    assert lookup.guess(5, ()) == (4,)
    keys += [7, 7, 7]
    lookup.follow()
    assert lookup.guess(4, ()) == (7, 7, 7, 7)
    assert not Lookup([5]).found


def test_a_guess_that_failed_is_believed_less_and_one_that_came_more() -> None:
    keys = [1, 2, 3, 4, 5, 1, 2]
    lookup = Lookup(keys)
    before = lookup.chances()
    assert before == sorted(before, reverse=True)
    keys += [3]
    lookup.follow()
    keys += [8, 1, 2]
    lookup.follow()
    assert lookup.found
    assert lookup.chances()[0] > before[0]
    assert lookup.chances()[1] / lookup.chances()[0] < before[1] / before[0]


def measured(*steps: tuple[int, int, float]) -> Costs:
    costs = Costs()
    for answers, rows, seconds in steps:
        for _ in range(3):
            costs.add(answers, rows, seconds)
    return costs


SURE = [0.9**at for at in range(1, 16)]


def test_as_many_are_guessed_as_pay() -> None:
    assert Costs().rows(1, SURE) == 0  # nothing is known yet
    card = measured((1, 1, 3.6), (1, 2, 3.7), (1, 4, 4.1), (1, 8, 5.0), (1, 16, 12.0))
    assert card.rows(1, SURE) == 7
    assert card.rows(1, [0.3**at for at in range(1, 16)]) == 1
    assert card.rows(1, [0.01]) == 0
    assert card.rows(1, SURE[:3]) == 3
    slow = measured((1, 1, 1.0), (1, 2, 2.2))
    assert slow.rows(1, SURE) == 0


def test_a_crowd_that_has_no_time_to_spare_guesses_nothing() -> None:
    crowd = measured((8, 8, 5.0), (8, 16, 9.9))
    assert crowd.rows(8, SURE) == 0
    assert measured((8, 8, 5.0), (8, 16, 5.5)).rows(8, SURE[:8]) == 8


def test_longer_steps_are_tried_one_after_the_other_and_measured_again_later() -> None:
    costs = measured((1, 1, 1.0))
    assert costs.rows(1, SURE) == 1
    for _ in range(3):
        costs.add(1, 2, 1.1)
    assert costs.rows(1, SURE) == 3
    costs.add(1, 4, 50.0)  # the first of a size may have captured a graph
    assert costs.rows(1, SURE) == 3
    costs.add(1, 4, 50.0)
    assert costs.rows(1, SURE) == 1
    for _ in range(600):
        costs.add(1, 1, 1.0)
    assert costs.rows(1, SURE) == 1
    for _ in range(2):
        costs.add(1, 2, 1.1)
    assert costs.rows(1, SURE) == 3


def test_the_likeliest_of_all_answers_are_guessed_first() -> None:
    good, bad, none = Lookup([1, 2, 3, 4, 1, 2]), Lookup([1, 2, 3, 4, 1, 2]), Lookup([1, 2])
    good._chances, bad._chances = [0.9] * 4, [0.2] * 4
    costs = measured((3, 3, 1.0), (3, 4, 1.1), (3, 8, 1.3))
    counts = drafts([bad, good, none], costs, [LONGEST, LONGEST, LONGEST])
    assert counts[1] > counts[0]
    assert counts[2] == 0
    assert drafts([bad, good, none], costs, [LONGEST, 2, LONGEST])[1] == 2
    assert drafts([none], costs, [9]) == [0]


@pytest.fixture(scope="module")
def recipe(hf15: Path) -> Recipe:
    return language_recipe(from_folder(hf15), CPU)


@pytest.fixture(params=["native", "transformers"])
def pair(request: pytest.FixtureRequest, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    """The same engine with and without guessing; all that is found is guessed, whatever it costs."""
    monkeypatch.setattr(Costs, "rows", lambda self, answers, chances: len(chances))
    with (
        closing(load_engine(replace(recipe, engine=request.param))) as on,
        closing(load_engine(replace(recipe, engine=request.param, options={"speculate": False}))) as off,
    ):
        yield [on, off]


ASKED = [
    Sampling(max_tokens=60, ignore_end=True),
    Sampling(max_tokens=60, ignore_end=True, temperature=0.2, seed=5, top_logprobs=3),
    Sampling(max_tokens=40, temperature=1, top_k=4, top_p=0.9, seed=6),
    Sampling(max_tokens=40, temperature=0.05, seed=7, repetition_penalty=1.01, ignore_end=True),
    Sampling(max_tokens=60, schema=SCHEMA),
    Sampling(max_tokens=60, schema=SCHEMA, temperature=0.5, seed=1),
]


def prompts(engine: Engine) -> list[Prompt]:
    words = ("one two three one two", "left right left right left", "abc abc abc abc")
    return [Prompt([TokenSpan(tuple(engine.tokenizer.encode(each, start=True)))]) for each in words]


def same(one: Sequence[Token], other: Sequence[Token]) -> None:
    assert [token.id for token in one] == [token.id for token in other]
    for ours, theirs in zip(one, other, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert dict(ours.top) == pytest.approx(dict(theirs.top), abs=1e-4)


def test_answers_are_the_same_with_and_without(pair: list[Engine]) -> None:
    on, off = pair
    for prompt in prompts(on):
        for sampling in ASKED:
            same(list(on.stream(prompt, sampling)), list(off.stream(prompt, sampling)))
    assert on.state().drafted > on.state().accepted > 0
    assert off.state().drafted == 0
    assert on.able.speculates
    assert not off.able.speculates


def test_stop_strings_end_both_at_the_same_place(pair: list[Engine]) -> None:
    def told(engine: Engine, prompt: Prompt, stop: tuple[str, ...]) -> str:
        sampling = Sampling(max_tokens=60, ignore_end=True, stop=stop)
        ids = (token.id for token in engine.stream(prompt, sampling))
        return "".join(piece.text for piece in stream_text(ids, engine.tokenizer, sampling))

    on, off = pair
    for prompt in prompts(on):
        whole = told(off, prompt, ())
        stop = whole[len(whole) // 2 :][:3]
        assert told(on, prompt, (stop,)) == told(off, prompt, (stop,)) == whole[: whole.index(stop)]


def test_several_rows_guess_in_one_step_and_one_that_leaves_disturbs_nobody(pair: list[Engine]) -> None:
    on, off = pair
    alone = [list(off.stream(prompt, ASKED[0])) for prompt in prompts(off)]
    left = on.stream(prompts(on)[0], ASKED[0])
    next(left)
    streams = [on.stream(prompt, ASKED[0]) for prompt in prompts(on)]
    begun = [next(stream) for stream in streams]
    left.close()
    for first, stream, own in zip(begun, streams, alone, strict=True):
        same([first, *stream], own)
    assert on.state().accepted > 0
