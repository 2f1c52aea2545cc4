"""Outlines: what a request will take, decided once; its text tokenised once, its pictures not looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO

import pytest
import torch
from live import HIDDEN, POSITIONS, make_llava

from trifocal import images
from trifocal.conversation.templates import Control, Piece, get_template
from trifocal.engines.echo import Bytes, Echo
from trifocal.errors import UsageError
from trifocal.images import Image, from_bytes
from trifocal.messages import Message, Sampling
from trifocal.model.composer import Composer
from trifocal.model.llava import Llava
from trifocal.model.outline import Rows
from trifocal.prompt import TokenSpan
from trifocal.vision import Gallery, Look

Drawn = Callable[..., Image]


class Counting(Bytes):
    """A tokenizer that counts how often it meets each word."""

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()

    def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
        self.met.update(text.split())
        return super().encode(text, start=start)


class Placing:
    """A vision whose rows stand between tokens of its own."""

    hidden, identity = 2, "placing"
    layout = ("[", 2, Control("</s>"), 3, "]")

    def looks(self, images: Sequence[Image]) -> list[Look]:
        return [Look(image, self.layout) for image in images]

    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        return [torch.arange(10.0).view(5, 2) for _ in looks]


@pytest.fixture
def counting() -> Counting:
    return Counting()


def counted(counting: Counting, context: int = 1 << 16) -> Llava:
    engine = Echo(hidden=HIDDEN, context=context)
    engine.tokenizer = counting
    return make_llava(engine)


def talk(drawn: Drawn, turns: int) -> list[Message]:
    """Questions with a picture and answers, each with a word of its own."""
    said = [Message("system", "system-text")]
    for number in range(turns):
        said += [Message("user", (f"question-{number}?", drawn(number))), Message("assistant", f"answer-{number}.")]
    return said[:-1]


def words(counting: Counting) -> Counter[str]:
    """How often the words that are in a turn were tokenised."""
    return Counter({word: count for word, count in counting.met.items() if "-" in word})


def test_a_turn_is_tokenised_once(counting: Counting, drawn: Drawn) -> None:
    llava = counted(counting)
    llava.complete(talk(drawn, 4), Sampling(max_tokens=3))
    assert set(words(counting).values()) == {1}


def test_several_answers_are_tokenised_once(counting: Counting, drawn: Drawn) -> None:
    llava = counted(counting)
    written = llava.write(talk(drawn, 4), 3)
    texts = ["".join(chunk.text for chunk in llava.answer(written, Sampling(max_tokens=3))) for _ in range(4)]
    assert len(texts) == 4
    assert set(words(counting).values()) == {1}


@pytest.mark.parametrize("template", ["chatml_direct"])
def test_a_turn_is_tokenised_once_also_where_it_trims(counting: Counting, drawn: Drawn, template: str) -> None:
    """Where a control token stands between the system text and the turns, trimming makes no new text."""
    llava = counted(counting, context=260)
    end = llava.complete(talk(drawn, 8), Sampling(max_tokens=3), template=get_template(template)).end
    assert end.left_out
    assert set(words(counting).values()) == {1}


@pytest.mark.parametrize("template", ["llava_v1", "llava_llama_2"])
def test_trimming_tokenises_only_what_it_makes_new(counting: Counting, template: str) -> None:
    """The system text stands in one run with the first exchange that stays: that run is new for each cut that is tried.

    All others were tokenised before, the last question among them.
    """
    llava = counted(counting, context=700)
    turns = [Message(role, f"{role}-{number} {'x' * 30}") for number in range(16) for role in ("user", "assistant")]
    end = llava.complete(
        [Message("system", "system-text"), *turns[:-1]], Sampling(max_tokens=3), template=get_template(template)
    ).end
    assert end.left_out
    again = {word for word, count in words(counting).items() if count > 1}
    assert "system-text" in again
    assert "user-15" not in again
    assert len(again) <= 1 + 2 * 4  # system text, question and answer of each of the cuts between which it was decided


def test_a_budget_tokenises_a_turn_in_its_place_and_by_itself(counting: Counting, drawn: Drawn) -> None:
    llava = counted(counting)
    llava.budget(talk(drawn, 12), template=get_template("chatml_direct"))
    assert max(words(counting).values()) == 2


def test_a_beginning_of_several_tokens_stands_there_once() -> None:
    """GLM's templates write the two that its tokenizer puts in front."""

    class Two(Bytes):
        def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
            ids = super().encode(text, start=start)
            return [*ids[:1], Bytes().token("</s>") or 0, *ids[1:]] if start else ids

    outline = Composer(Two(), Gallery(Placing())).outline([Control("<s>"), Control("</s>"), "a", Control("</s>")])
    assert [span.ids for span in outline.spans if isinstance(span, TokenSpan)] == [
        tuple(Two().encode("a", start=True)),
        (Bytes().token("</s>"),),
    ]


def test_rows_between_tokens_keep_their_places(drawn: Drawn) -> None:
    composer = Composer(Bytes(), Gallery(Placing()))
    outline = composer.outline(["a", drawn(1), "b"])
    encode, end = Bytes().encode, Bytes().token("</s>")
    assert outline.spans == (
        TokenSpan(tuple(encode("a[", start=True))),
        Rows(0, 0, 2),
        TokenSpan((end,)),
        Rows(0, 2, 3),
        TokenSpan(tuple(encode("]b", start=False))),
    )
    assert (len(outline), outline.image_positions, outline.text_positions) == (11, 5, 6)
    prompt = composer.seen(outline)
    assert len(prompt) == len(outline)
    assert [span.features.tolist() for span in prompt.images] == [
        [[0.0, 1.0], [2.0, 3.0]],
        [[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]],
    ]
    assert len({span.digest for span in prompt.images}) == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([torch.zeros(10, HIDDEN)], r"rows of \[10, 8\], \[4, 8\] were promised"),
        ([torch.zeros(POSITIONS, 2)], r"rows of \[4, 2\], \[4, 8\] were promised"),
        ([], "0 pictures have rows, the outline has 1"),
        ([torch.zeros(POSITIONS, HIDDEN)] * 2, "2 pictures have rows, the outline has 1"),
    ],
)
def test_rows_that_were_not_promised_are_refused(drawn: Drawn, rows: list[torch.Tensor], said: str) -> None:
    composer = make_llava().composer
    parts: list[Piece] = ["What?", drawn(1)]
    with pytest.raises(UsageError, match=said):
        composer.prompt(composer.outline(parts), rows)


def test_an_answer_and_what_is_trimmed_for_it_read_no_picture_through(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoded(image: Image) -> Image:
        file = BytesIO()
        image.pixels.save(file, "PNG")
        return from_bytes(file.getvalue())

    turns = talk(lambda number: encoded(drawn(number)), 4)
    monkeypatch.setattr(images, "_digest", lambda pixels: pytest.fail("a digest of all its pixels was made"))
    llava = counted(Counting(), context=160)
    written = llava.write(turns)
    assert written.left_out
    assert list(llava.tell(llava.prepare(written, Sampling(max_tokens=2))))
    assert len(llava.gallery) == len(written.outline.looks) > 1
    llava.budget(turns)


def test_an_outline_looks_at_no_picture(drawn: Drawn) -> None:
    llava = make_llava()
    written = llava.write(talk(drawn, 3))
    assert not any(llava.gallery.knows(look) for look in written.outline.looks)
    assert llava.budget(talk(drawn, 3)).total == len(written.outline)
    assert len(llava.gallery) == 0
