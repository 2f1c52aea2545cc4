"""Where the positions of a context go: text, each picture, what was left out and what would be next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trifocal.conversation.history import Trimmed, oldest
from trifocal.conversation.templates import IMAGE_MARK
from trifocal.images import Image
from trifocal.messages import Message
from trifocal.model.composer import Outlines
from trifocal.model.outline import Outline

__all__ = ["Budget", "TurnCost", "budget_of"]


@dataclass(frozen=True, slots=True)
class TurnCost:
    """What one message takes, in positions: its own text, and each of its pictures in order.

    ``left_out`` says that the whole message does not stay, ``pictures_left_out`` which of its pictures do not.
    """

    text: int
    pictures: tuple[int, ...]
    left_out: bool
    pictures_left_out: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """Where the positions of a context go.

    ``answer`` is what is kept free for the answer, ``text`` what all text takes that stays (the template's own
    included), ``pictures`` what the pictures take that stay. ``left_out`` tells in words what does not stay, ``next``
    what would go next, or None where nothing more can.
    """

    context: int
    answer: int
    text: int
    pictures: int
    turns: tuple[TurnCost, ...]
    left_out: tuple[str, ...]
    next: str | None

    @property
    def total(self) -> int:
        """Positions of the prompt."""
        return self.text + self.pictures

    @property
    def fits(self) -> bool:
        """Whether it would be answered: an answer takes what is left, a single token if need be."""
        return self.total < self.context


def budget_of(messages: Sequence[Message], trimmed: Trimmed, outlines: Outlines, context: int, answer: int) -> Budget:
    """The budget of a conversation of which ``trimmed`` is left, in a context of so many positions."""
    outline = outlines.of(trimmed.messages)
    total = len(outline)
    return Budget(
        context=context,
        answer=answer,
        text=outline.text_positions,
        pictures=outline.image_positions,
        turns=tuple(_turns(messages, trimmed, outline, outlines)),
        left_out=trimmed.notes,
        next=_next(trimmed.messages, outlines, total, context - answer - total),
    )


def _turns(messages: Sequence[Message], trimmed: Trimmed, outline: Outline, outlines: Outlines) -> list[TurnCost]:
    """What each message takes."""
    start = _start(messages)
    rows = _rows([image for message in messages for image in message.images], outline, outlines)
    costs, chosen = [], trimmed.pictures
    for at, message in enumerate(messages):
        gone = start <= at < start + trimmed.turns
        sizes = tuple(next(rows) for _ in message.images)
        out = tuple(gone or number < chosen for number in range(len(sizes)))
        chosen = max(0, chosen - len(sizes))
        text = message.text.replace(IMAGE_MARK, "") if sizes else message.text
        costs.append(TurnCost(outlines.text(text), sizes, gone, out))
    return costs


def _rows(images: Sequence[Image], outline: Outline, outlines: Outlines) -> Iterator[int]:
    """What each picture takes; the oldest, which don't stay, what they would if all of the conversation's stayed."""
    gone = len(images) - len(outline.looks)
    yield from (look.rows for look in (outlines.looks(images)[:gone] if gone else ()))
    yield from (look.rows for look in outline.looks)


def _next(messages: Sequence[Message], outlines: Outlines, total: int, free: int) -> str | None:
    """What goes next when the context fills, and how far that is."""
    start = _start(messages)
    later = [at for at in range(start + 1, len(messages)) if messages[at].role == "user"]
    if not later:
        return None
    freed = total - len(outlines.of([*messages[:start], *messages[later[0] :]]))
    count, pictures = later[0] - start, sum(len(message.images) for message in messages[start : later[0]])
    return f"{oldest(count, pictures)} ({freed} positions), when more than {max(free, 0)} positions are added"


def _start(messages: Sequence[Message]) -> int:
    """Where the turns begin, after the system text."""
    return next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
