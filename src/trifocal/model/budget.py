"""Where the positions of a context go: text, each picture, what was left out and what would be next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trifocal.conversation.history import Kept
from trifocal.conversation.templates import IMAGE_MARK, ChatTemplate
from trifocal.messages import Message
from trifocal.model.composer import Composer

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
        """Whether prompt and answer fit."""
        return self.total + self.answer <= self.context


def budget_of(
    messages: Sequence[Message], stay: Kept, composer: Composer, template: ChatTemplate, context: int, answer: int
) -> Budget:
    """The budget of a conversation of which ``stay`` stays, in a context of so many positions."""
    images = [image for message in stay.messages for image in message.images]
    pictures = sum(composer.vision.positions(image, len(images)) for image in images)
    total = composer.count(template.render(stay.messages))
    return Budget(
        context=context,
        answer=answer,
        text=total - pictures,
        pictures=pictures,
        turns=tuple(_turns(messages, stay, composer, max(len(images), 1))),
        left_out=stay.notes,
        next=_next(stay.messages, composer, template, total, context - answer - total),
    )


def _turns(messages: Sequence[Message], stay: Kept, composer: Composer, among: int) -> list[TurnCost]:
    """What each message takes; ``among`` is how many pictures the prompt has."""
    nothing = composer.count(("",))
    start = _start(messages)
    costs, chosen = [], stay.pictures
    for at, message in enumerate(messages):
        gone = start <= at < start + stay.turns
        sizes = tuple(composer.vision.positions(image, among) for image in message.images)
        out = tuple(gone or number < chosen for number in range(len(sizes)))
        chosen = max(0, chosen - len(sizes))
        text = message.text.replace(IMAGE_MARK, "") if sizes else message.text
        costs.append(TurnCost(composer.count((text,)) - nothing, sizes, gone, out))
    return costs


def _next(messages: Sequence[Message], composer: Composer, template: ChatTemplate, total: int, free: int) -> str | None:
    """What goes next when the context fills, and how far that is."""
    start = _start(messages)
    later = [at for at in range(start + 1, len(messages)) if messages[at].role == "user"]
    if not later:
        return None
    rest = [*messages[:start], *messages[later[0] :]]
    freed = total - composer.count(template.render(rest))
    count, pictures = later[0] - start, sum(len(message.images) for message in messages[start : later[0]])
    what = f"the {count} oldest messages" if count > 1 else "the oldest message"
    if pictures:
        what += f" with {pictures} picture{'s' * (pictures > 1)}"
    return f"{what} ({freed} positions), when more than {max(free, 0)} positions are added"


def _start(messages: Sequence[Message]) -> int:
    """Where the turns begin, after the system text."""
    return next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
