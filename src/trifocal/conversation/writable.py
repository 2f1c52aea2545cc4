"""A conversation as its template can write it: turns that a family does not have are put otherwise, and told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trifocal.conversation.templates import IMAGE_MARK, ChatTemplate
from trifocal.images import Image
from trifocal.messages import Message, Part, Tool

__all__ = ["Writable", "writable"]


@dataclass(frozen=True, slots=True)
class Writable:
    """Messages and tools that a template has a place for. ``notes`` says in words what was put otherwise."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    notes: tuple[str, ...] = ()


def writable(messages: Sequence[Message], template: ChatTemplate, tools: Sequence[Tool] = ()) -> Writable:
    """The same conversation in turns that the template has.

    A system text inside it joins the user's turn that follows, else the one before, else it becomes one. Where
    there are no tools, calls and results become words of the assistant and the user; a picture in a result always
    moves to a user's turn. Where turns must alternate, neighbours of one role become one turn.
    """
    turns, notes = list(messages), []
    if tools and not template.has_tools:
        notes.append("tools were not offered to the model: its template has no place for them")
    if not template.has_tools and any(turn.role == "tool" or turn.calls for turn in turns):
        turns = [_in_words(turn) for turn in turns]
        notes.append("tool calls and their results were written as words: the template has no place for them")
    turns = [one for turn in turns for one in _pictures_apart(turn)]
    if not template.system_inside or all(turn.role == "system" for turn in turns):
        moved = _system_joined(turns)
        if moved != turns:
            notes.append("a system message inside the conversation was joined to a turn of the user")
        turns = moved
    if template.alternates:
        joined = _alternating(turns)
        if joined != turns:
            notes.append("neighbouring turns of one role were joined: the template has them alternate")
        turns = joined
    return Writable(tuple(turns), tuple(tools) if template.has_tools else (), tuple(notes))


def _in_words(turn: Message) -> Message:
    """A call as the JSON that it is, a result as something the user says."""
    if turn.role == "tool":
        return Message("user", (f"Result of {turn.name or 'the tool'}:\n", *turn.parts))
    if turn.calls:
        calls = (f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in turn.calls)
        return Message(turn.role, "\n".join(filter(None, (turn.text, *calls))))
    return turn


def _pictures_apart(turn: Message) -> Iterable[Message]:
    """A tool's turn without its pictures, and these in a turn of the user."""
    if turn.role != "tool" or not turn.images:
        return (turn,)
    return turn.with_parts(turn.text), Message("user", turn.images)


def _system_joined(turns: Sequence[Message]) -> list[Message]:
    start = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns) - 1)
    done, waiting = list(turns[:start]), list[str]()
    for turn in turns[start:]:
        if turn.role == "system":
            waiting.append(turn.text)
            continue
        if waiting and turn.role == "user":
            turn = _joined(_said(waiting), turn)
        elif waiting:
            _add_to_last(done, _said(waiting))
        waiting.clear()
        done.append(turn)
    if waiting:
        _add_to_last(done, _said(waiting))
    return done


def _said(texts: Sequence[str]) -> Message:
    """System texts as a turn of the user, in which nothing says where a picture goes."""
    return Message("user", "\n\n".join(texts).replace(IMAGE_MARK, "<image >"))


def _add_to_last(done: list[Message], turn: Message) -> None:
    if done and done[-1].role == "user":
        done[-1] = _joined(done[-1], turn)
    else:
        done.append(turn)


def _joined(first: Message, second: Message) -> Message:
    """Two turns of one role as one."""
    between: tuple[Part, ...] = ("\n\n",) if _has_content(first) and _has_content(second) else ()
    return Message(
        first.role, (*first.parts, *between, *second.parts), calls=(*first.calls, *second.calls), name=first.name
    )


def _has_content(turn: Message) -> bool:
    return any(isinstance(part, Image) or part for part in turn.parts)


def _alternating(turns: Sequence[Message]) -> list[Message]:
    done: list[Message] = []
    for turn in turns:
        before = done[-1].role if done else "system"
        if turn.role == before and turn.role in ("user", "assistant"):
            done[-1] = _joined(done[-1], turn)
            continue
        if turn.role == "assistant" and before == "system":
            done.append(Message("user", ""))
        done.append(turn)
    return done
