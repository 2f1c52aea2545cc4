"""The page's samples are answered truly, and what it shows of an answer is what the library says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from live import HIDDEN, Live, Watching, data_uri, error_of, make_llava, running, user

import trifocal
from trifocal.images import from_bytes, from_data_uri
from trifocal.messages import Message
from trifocal.web import routes
from trifocal.web.pages import SAMPLES

EXPLAIN = "/page/api/explain"
LISTED = json.loads((SAMPLES / "samples.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def thimble() -> Iterator[Live]:
    with trifocal.load() as llava, running(llava, routes()) as live:
        yield live


def asked(text: str, uri: str) -> dict[str, Any]:
    return user({"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": uri}})


@pytest.mark.parametrize("sample", LISTED, ids=lambda sample: sample["title"])
def test_the_samples_are_small_and_answered_truly(thimble: Live, sample: dict[str, str]) -> None:
    with thimble.client() as client:
        shown = {each["title"]: each for each in client.get("/page/api/info").json()["samples"]}[sample["title"]]
        assert shown["question"] == sample["question"]
        picture = client.get(shown["picture"])
    assert picture.headers["content-type"] == "image/png"
    assert len(picture.content) < 30_000
    llava = thimble.llava
    turn = llava.question(sample["question"], [from_bytes(picture.content)])
    assert llava.complete([turn]).text.strip() == sample["answer"]


def test_there_are_enough_samples_for_a_first_visit() -> None:
    assert 5 <= len(LISTED) <= 6
    assert {sample["picture"] for sample in LISTED} == {path.name for path in SAMPLES.glob("*.png")}


def test_it_is_what_the_library_says(thimble: Live) -> None:
    uri, question = data_uri("red"), "What colour is the picture?"
    turn = thimble.llava.question(question, [from_data_uri(uri)])
    answer = thimble.llava.complete([turn]).text
    expected = thimble.llava.explain([turn, Message("assistant", answer)])
    body = {"messages": [asked(question, uri), {"role": "assistant", "content": answer}]}
    with thimble.client() as client:
        told = client.post(EXPLAIN, json=body).json()
    assert [(word["text"], word["start"], word["end"]) for word in told["words"]] == [
        (word.text, word.start, word.end) for word in expected.words
    ]
    assert all(answer[word["start"] : word["end"]] == word["text"] for word in told["words"])
    for word, own in zip(told["words"], expected.words, strict=True):
        (look,) = word["images"]
        assert look["index"] == 0
        assert look["grid"] == [list(row) for row in own.heatmaps[0].grid]
    (picture,) = told["images"]
    assert (picture["index"], picture["rows"], picture["columns"], picture["box"]) == (0, 16, 16, [0, 0, 1, 1])
    assert picture["words"][0]["weight"] == 1
    assert {told["words"][each["word"]]["text"] for each in picture["words"]} <= {word.text for word in expected.words}


def test_pictures_are_numbered_as_they_stay(thimble: Live) -> None:
    messages = [
        asked("What is it?", data_uri("red")),
        {"role": "assistant", "content": "Red."},
        asked("And this?", data_uri("blue")),
        {"role": "assistant", "content": "It is blue."},
    ]
    with thimble.client() as client:
        both = client.post(EXPLAIN, json={"messages": messages}).json()
        last = client.post(EXPLAIN, json={"messages": messages, "images": "last"}).json()
        none = client.post(EXPLAIN, json={"messages": messages, "images": 0}).json()
    assert [picture["index"] for picture in both["images"]] == [0, 1]
    assert [[look["index"] for look in word["images"]] for word in both["words"]] == [[0, 1]] * 3
    assert len(last["images"]) == 1
    assert none["images"] == []


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([user("Hi"), user("Ho")], "invalid_value"),
        ([user("Hi"), {"role": "assistant", "content": " "}], "invalid_value"),
        ([user("Hi"), {"role": "assistant", "content": "word " * 1500}], "invalid_value"),
        ([user("Hi")], "invalid_value"),
    ],
)
def test_what_is_no_answer_is_not_explained(thimble: Live, messages: list[dict[str, Any]], code: str) -> None:
    with thimble.client() as client:
        assert error_of(client.post(EXPLAIN, json={"messages": messages}))["code"] == code


def test_an_engine_that_cannot_tell_is_answered_for_with_a_sentence() -> None:
    with running(page=routes()) as live, live.client() as client:
        body = {"messages": [user("Hi"), {"role": "assistant", "content": "Ho."}]}
        error = error_of(client.post(EXPLAIN, json=body), 501)
    assert error["code"] == "not_supported"
    assert error["message"] == "The engine echo can't tell where it looks; the engines native and transformers can."


def test_another_engine_that_can_is_asked() -> None:
    """Any engine with `attention` will do: here one that looks at each position in turn, the last one first."""
    messages = [asked("What is it?", data_uri()), {"role": "assistant", "content": "A cat."}]
    with running(make_llava(Watching(hidden=HIDDEN)), routes()) as live, live.client() as client:
        told = client.post(EXPLAIN, json={"messages": messages}).json()
    assert [word["text"] for word in told["words"]] == ["A", "cat"]
    assert [(picture["rows"], picture["columns"]) for picture in told["images"]] == [(2, 2)]
