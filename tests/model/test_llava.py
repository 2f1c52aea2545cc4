"""The one use case on the echo engine: what goes in comes out, shortened by whole turns and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trifocal
from checkpoint_maker import V0
from seeing import prompt_of
from trifocal.conversation.templates import Control
from trifocal.engines.echo import Bytes
from trifocal.errors import BadMessages, CheckpointError, PromptTooLong, UnknownName, UsageError
from trifocal.images import Image
from trifocal.messages import Message, Sampling
from trifocal.model.composer import Composer
from trifocal.model.llava import Llava

Drawn = Callable[..., Image]
PICTURE = 16 + 2  # rows and their two marks


@pytest.fixture(scope="module")
def llava(v0: V0) -> Iterator[Llava]:
    with echoing(v0) as made:
        yield made


def echoing(v0: V0, context: int = 4096, **settings: object) -> Llava:
    return trifocal.load(
        checkpoint=str(v0.language),
        tower_from=str(v0.tower),
        projector_from=str(v0.projector),
        engine="echo",
        engine_options={"context": context},
        **{"template": "llava_v0", **settings},
    )


def test_a_conversation_comes_back_as_the_template_has_it(llava: Llava, drawn: Drawn) -> None:
    reply = llava.complete([llava.question("What is it?", [drawn(1)])], Sampling(max_tokens=1000))
    start, rest = reply.text.split("Human: ", 1) if "Human: " in reply.text else (reply.text, "")
    assert start.endswith("questions.") or rest
    assert reply.end.images == 1
    assert reply.end.image_tokens == 16
    assert reply.end.prompt_tokens == llava.count([llava.question("What is it?", [drawn(1)])])


def test_the_answer_stops_at_the_templates_stop(llava: Llava) -> None:
    reply = llava.complete([Message("user", "hello")])
    assert "###" not in reply.text
    assert reply.end.finish == "stop"


def test_every_step_is_timed(llava: Llava, drawn: Drawn) -> None:
    reply = llava.complete([llava.question("x", [drawn(77)])])
    assert {"decode", "preprocess", "tower", "projector", "prefill", "generate"} <= set(reply.end.timings)
    assert all(seconds >= 0 for seconds in reply.end.timings.values())


def test_a_picture_is_seen_once(llava: Llava, drawn: Drawn) -> None:
    question = llava.question("x", [drawn(78)])
    assert llava.complete([question]).end.cached_images == 0
    again = llava.complete([question])
    assert again.end.cached_images == 1
    assert "tower" not in again.end.timings


@pytest.mark.parametrize(("keep", "count"), [("all", 3), (2, 2), ("last", 1), (0, 0)])
def test_pictures_that_are_not_kept_cost_no_position(llava: Llava, drawn: Drawn, keep: str | int, count: int) -> None:
    turns = [
        llava.question("one", [drawn(1), drawn(2)]),
        Message("assistant", "yes"),
        llava.question("two", [drawn(3)]),
    ]
    end = llava.complete(turns, images=keep).end
    assert (end.images, end.image_tokens) == (count, 16 * count)
    assert bool(end.left_out) == (count < 3)
    if count < 3:
        assert end.left_out[0].startswith(f"{3 - count} earlier picture")


def test_whole_oldest_exchanges_go_when_the_context_is_full_and_it_is_told(v0: V0, drawn: Drawn) -> None:
    llava = echoing(v0, context=700)
    turns = [Message("system", "Be brief.")]
    for number in range(12):
        turns += [llava.question(f"question {number}", [drawn(number)]), Message("assistant", "answer " * 3)]
    turns.append(llava.question("the last question", [drawn(99)]))
    end = llava.complete(turns, Sampling(max_tokens=50)).end
    assert end.prompt_tokens + 50 <= 700
    assert 1 <= end.images < 13
    assert "oldest messages" in end.left_out[0]
    kept = llava.template.render([turns[0], *turns[-2 * (end.images - 1) - 1 :]])
    assert len(llava.composer.outline(kept)) == end.prompt_tokens
    assert end.prompt_tokens + 50 + PICTURE > 700 - 60


def test_a_last_question_that_can_not_fit_is_refused_before_a_picture_is_seen(v0: V0, drawn: Drawn) -> None:
    llava = echoing(v0, context=200)
    with pytest.raises(PromptTooLong, match="context is 200"):
        llava.stream([llava.question("x" * 300, [drawn(5)])])
    assert not llava.gallery.knows(*llava.gallery.looks([drawn(5)]))


def test_refusals_come_before_the_stream(llava: Llava, drawn: Drawn) -> None:
    with pytest.raises(BadMessages):
        llava.stream([Message("user", ("<image> <image>", drawn(1)))])
    with pytest.raises(BadMessages):
        llava.stream([])


def test_closing_the_stream_closes_the_engines(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    spoken = llava.engine.stream

    def watched(prompt: object, sampling: object) -> Iterator[int]:
        try:
            yield from spoken(prompt, sampling)
        finally:
            closed.append(True)

    monkeypatch.setattr(llava.engine, "stream", watched)
    stream = llava.stream([Message("user", "hello")])
    next(stream)
    stream.close()
    assert closed == [True]


def test_parts_are_continued_without_a_template(llava: Llava, drawn: Drawn) -> None:
    chunks = list(llava.generate(["look: ", drawn(1), " and?"], Sampling(max_tokens=500)))
    assert "".join(chunk.text for chunk in chunks).startswith("look:[picture: 16 positions, mean ")
    assert chunks[-1].end is not None


def test_the_frame_and_the_order_of_a_prompt(llava: Llava, drawn: Drawn) -> None:
    tokens = Bytes()
    prompt = prompt_of(llava.composer, ["a \n", drawn(1), "\n b", Control("</s>"), drawn(2)])
    patch, start, end = (tokens.token(name) for name in ("<im_patch>", "<im_start>", "<im_end>"))
    bos, eos = tokens.token("<s>"), tokens.token("</s>")
    picture = [start, *[patch] * 16, end]
    text = [tokens.encode(word, start=False) for word in ("a", "b")]  # v0 strips beside pictures
    assert prompt.ids(patch) == [bos, *text[0], *picture, *text[1], eos, *picture]
    assert len(llava.composer.outline(["a \n", drawn(1), "\n b", Control("</s>"), drawn(2)])) == len(prompt)


def test_a_prompt_that_begins_with_a_picture_begins_with_the_start_token(llava: Llava, drawn: Drawn) -> None:
    assert prompt_of(llava.composer, [drawn(1)]).ids(0)[0] == Bytes().token("<s>")
    assert prompt_of(llava.composer, []).ids(0) == [Bytes().token("<s>")]


def test_a_control_token_that_is_not_there_is_refused(llava: Llava) -> None:
    with pytest.raises(UsageError, match="no token <nonsense>"):
        prompt_of(llava.composer, [Control("<nonsense>")])
    with pytest.raises(UsageError, match="no token <start>"):
        Composer(Bytes(), llava.gallery, image_start="<start>")


def test_what_can_not_be_loaded_is_refused_by_name(v0: V0, hf15: Path) -> None:
    with pytest.raises(UnknownName, match="unknown template"):
        trifocal.load(checkpoint=str(hf15), template="warp")
    with pytest.raises(UnknownName, match="unknown setting"):
        trifocal.load(chekpoint=str(hf15))
    with pytest.raises(UsageError, match="no file or folder here and no hub id"):
        trifocal.load(checkpoint="nowhere")
    with pytest.raises(CheckpointError, match="rows of 64, the language model takes rows of 32"):
        trifocal.load(checkpoint=str(hf15), engine="echo", engine_options={"hidden": 32})
