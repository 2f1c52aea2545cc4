"""Which of a conversation stays: pictures by choice, turns by room."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from trifocal.conversation.templates import IMAGE_MARK
from trifocal.errors import UsageError
from trifocal.images import Image
from trifocal.messages import Message, Part

__all__ = ["Keep", "Trimmed", "keep_images", "oldest", "parse_keep", "shortened", "trim"]

Keep = Literal["all", "last"] | int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A conversation without what was chosen away or has no room.

    ``pictures`` is how many of its first pictures were left out by choice, ``turns`` how many messages after the
    system text were left out for want of room. ``notes`` tells both in words.
    """

    messages: tuple[Message, ...]
    pictures: int
    turns: int
    notes: tuple[str, ...]


def parse_keep(text: str | int) -> Keep:
    """``all``, ``last`` or how many of the newest pictures stay.

    Raises:
        UsageError: none of these.
    """
    if text == "all":
        return "all"
    if text == "last":
        return "last"
    if isinstance(text, bool) or not str(text).isdecimal():
        raise UsageError(f"images: {text!r} is not 'all', 'last' or a number of pictures to keep")
    return int(text)


def trim(messages: Sequence[Message], keep: Keep, fits: Callable[[Sequence[Message]], bool]) -> Trimmed:
    """What stays of a conversation: first pictures are chosen, then whole oldest exchanges go until the rest fits."""
    chosen, dropped = keep_images(messages, keep)
    notes = [f"{dropped} earlier picture{'s' * (dropped > 1)} (images={keep})"] if dropped else []
    shorter = shortened(chosen, fits)
    turns = len(chosen) - len(shorter)
    if turns:
        pictures = sum(len(m.images) for m in chosen) - sum(len(m.images) for m in shorter)
        notes.append(f"{oldest(turns, pictures)} (context is full)")
    return Trimmed(tuple(shorter), dropped, turns, tuple(notes))


def oldest(turns: int, pictures: int) -> str:
    """The oldest messages of a conversation in words, with what goes with them."""
    what = f"the {turns} oldest messages" if turns > 1 else "the oldest message"
    return what + (f" with {pictures} picture{'s' * (pictures > 1)}" if pictures else "")


def keep_images(messages: Sequence[Message], keep: Keep) -> tuple[list[Message], int]:
    """The conversation with only the newest pictures, and how many were left out.

    A picture that is left out takes its ``<image>`` mark with it and costs no position; pictures
    are chosen before any is looked at. ``last`` keeps the newest one, as the seed does by default.
    """
    total = sum(len(message.images) for message in messages)
    drop = 0 if keep == "all" else max(0, total - (1 if keep == "last" else keep))
    kept, left = [], drop
    for message in messages:
        mine = min(left, len(message.images))
        kept.append(_without_images(message, mine) if mine else message)
        left -= mine
    return kept, drop


def shortened(messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> list[Message]:
    """The conversation without as many of its oldest exchanges as it takes to fit.

    An exchange is a user's turn and what answered it. The system text and the last question always
    stay, even where they don't fit. ``fits`` is asked once where all fits and otherwise about as
    often as the number of turns has binary digits: a thousand turns are not counted a thousand times.
    """
    start = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    users = [at for at in range(start, len(messages)) if messages[at].role == "user"]
    cuts = [start, *(at for at in users if at > start)]

    def without(cut: int) -> list[Message]:
        return [*messages[:start], *messages[cut:]]

    if len(cuts) == 1 or fits(messages):
        return list(messages)
    first = bisect_left(cuts, True, lo=1, hi=len(cuts) - 1, key=lambda cut: fits(without(cut)))
    return without(cuts[first])


def _without_images(message: Message, count: int) -> Message:
    """The message without its first ``count`` pictures (marks take pictures in order)."""
    marks, images = 0, 0
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, Image):
            images += 1
            if images > count:
                parts.append(part)
            continue
        head, *rest = part.split(IMAGE_MARK)
        for text in rest:
            marks += 1
            head += (IMAGE_MARK if marks > count else "") + text
        parts.append(head)
    return message.with_parts(parts)
