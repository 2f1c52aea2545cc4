"""Tests of the scoring rules, of the data's consistency and of the drawing."""

from __future__ import annotations

from typing import Any

import pytest
from draw import COLOURS, compose, draw, load_scenes
from score import evaluate, load_questions, polarity, questions_of, report, score

CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("It's a Red circle.", {"all_of": [["red circle"]]}, True),
    ("a carrot", {"all_of": [["car"]]}, False),
    ("two cars", {"all_of": [["car"]]}, True),
    ("A dog and a cat", {"all_of": [["dog"], ["cat"]], "none_of": ["horse"]}, True),
    ("A dog and a horse", {"all_of": [["dog"]], "none_of": ["horse"]}, False),
    ("The word is S-T-O-P.", {"all_of": [["stop"]]}, True),
    ('It says "STOP".', {"all_of": [["stop"]]}, True),
    ("There are 3 apples.", {"number": 3}, True),
    ("There are three apples.", {"number": 3}, True),
    ("There are three or four apples.", {"number": 3}, False),
    ("There is a key.", {"number": 1}, True),
    ("There is no key.", {"number": 1}, False),
    ("There are no dogs.", {"number": 0}, True),
    ("There are two dogs.", {"number": 0}, False),
    ("The background is grey.", {"colour": "gray"}, True),
    ("It is dark blue", {"colour": "blue"}, True),
    ("red and blue", {"colour": "blue"}, False),
    ("In the upper-left corner.", {"place": "top left"}, True),
    ("In the top left.", {"place": "top"}, False),
    ("At the top, in the middle", {"place": "top"}, True),
    ("It's in the centre", {"place": "center"}, True),
    ("top center", {"place": "center"}, False),
    ("on the left", {"place": "top left"}, False),
    ("Yes, there is.", {"yes": True}, True),
    ("There is a dog in the top left.", {"yes": True}, True),
    ("There isn't any dog.", {"yes": False}, True),
    ("I don't know", {"yes": False}, False),
    ("I'm only a tiny model.", {"declines": True}, True),
    ("The answer is 391, but I am tiny.", {"declines": True, "none_of": ["391"]}, False),
    ("Paris", {"declines": True}, False),
    ("", {"all_of": [["dog"]]}, False),
]


@pytest.mark.parametrize(("answer", "item", "right"), CASES)
def test_score(answer: str, item: dict[str, Any], right: bool) -> None:
    assert score(answer, item) is right


def test_polarity_may_be_undecided() -> None:
    assert polarity("a green hat") is None


def test_data_hold_together() -> None:
    scenes, items = load_scenes(), load_questions()
    conditions = {"all_of", "none_of", "yes", "number", "colour", "place", "declines"}
    assert len({item["id"] for item in items}) == len(items)
    assert {item["scene"] for item in items} == set(scenes)
    for item in items:
        assert set(item) <= {"id", "kind", "scene", "q", "turns"} | conditions
        assert set(item) & (conditions - {"none_of"})
        assert all(questions_of(item))
        assert not score("", item)


def test_scenes_draw_inside_their_pictures() -> None:
    for scene in load_scenes().values():
        picture = compose(scene)
        assert list(picture.size) == scene["pixels"] == list(draw(scene).size)
        edges = [picture.getpixel((x, y)) for x in (0, picture.width - 1) for y in range(picture.height)]
        edges += [picture.getpixel((x, y)) for y in (0, picture.height - 1) for x in range(picture.width)]
        assert set(edges) == {COLOURS[scene["background"]]}


def test_follow_ups_see_the_answers_before_them() -> None:
    seen = []

    def ask(_: object, turns: list[tuple[str, str | None]]) -> str:
        seen.append(turns)
        return "three"

    item = {"id": "x", "kind": "count", "scene": "s13", "turns": ["what?", "how many?"], "number": 3}
    results = evaluate(ask, [item])
    assert seen[-1] == [("what?", "three"), ("how many?", None)]
    assert "100.0%" in report(results)
