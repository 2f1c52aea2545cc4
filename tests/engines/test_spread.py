"""One engine in many places, and what becomes of a death: with engines that echo, and no cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from trifocal.engines.base import State, Token
from trifocal.engines.echo import Echo
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.answering import facts_of
from trifocal.engines.remote.wire import prompt_from, sampling_from, tensor_to
from trifocal.engines.roster import Roster, Wanted
from trifocal.engines.spread import Gone, Spread
from trifocal.errors import BadSampling, EngineError, EngineLost, PromptTooLong, UsageError
from trifocal.messages import Sampling
from trifocal.prompt import Prompt, TokenSpan

NAMES = [f"language-{number}" for number in range(4)]
NOTHING = Recipe(source="", config={}, engine="echo")
ENGINE = Echo(hidden=8)


@dataclass(eq=False)
class Echoing:
    """A place with an engine that echoes; it dies after ``dies`` tokens of its next answers."""

    name: str
    dies: list[int] = field(default_factory=list)
    closed: int = 0

    def answer(self, head: Mapping[str, Any], body: bytes) -> _Answer:
        return _Answer(self, head, body)

    def attention(self, head: Mapping[str, Any], body: bytes) -> tuple[Sequence[Any], bytes]:
        if self.dies and self.dies.pop(0) == 0:
            raise Gone("ended")
        told, rows = tensor_to(torch.ones(len(head["ids"]), 3))
        return told, bytes(rows)


@dataclass(eq=False)
class _Answer:
    place: Echoing
    head: Mapping[str, Any]
    body: bytes

    def __iter__(self) -> Iterator[list[Token]]:
        prompt, _ = prompt_from(self.head, memoryview(bytearray(self.body)))
        left = self.place.dies.pop(0) if self.place.dies else -1
        for number, token in enumerate(ENGINE.stream(prompt, sampling_from(self.head["sampling"]))):
            if number == left:
                raise Gone("ended")
            yield [token]

    def close(self) -> None:
        self.place.closed += 1


def text(*ids: int) -> Prompt:
    return Prompt([TokenSpan(ids)])


def roster_of(count: int) -> Roster[Echoing]:
    roster = Roster([Echoing(name) for name in NAMES[:count]])
    for name in roster.seats:
        roster.there(name, State("ready", positions=1000, free=1000))
    return roster


def spread_over(roster: Roster[Echoing]) -> Spread:
    return Spread(NOTHING, facts_of(ENGINE), roster)


def asked(roster: Roster[Echoing], prompt: Prompt) -> str:
    """Where a prompt goes that is answered at once."""
    seat, cost = roster.enter(Wanted.of(prompt))
    roster.leave(seat, cost, begun=False)
    return seat.place.name


def test_answers_are_those_of_the_engine() -> None:
    spread = spread_over(roster_of(2))
    prompt, sampling = text(104, 105), Sampling(max_tokens=5)
    assert list(spread.stream(prompt, sampling)) == list(ENGINE.stream(prompt, sampling))
    assert all(seat.weight == 0 for seat in spread.roster.seats.values())
    assert spread.state().phase == "ready"
    assert spread.state().positions == 2000


def test_a_death_before_the_first_token_is_seen_by_nobody() -> None:
    roster = roster_of(2)
    for seat in roster.seats.values():
        seat.place.dies = [0] if seat.place.name == NAMES[0] else []
    spread = spread_over(roster)
    prompt, sampling = text(104, 105), Sampling(max_tokens=5)
    for _ in range(4):
        assert list(spread.stream(prompt, sampling)) == list(ENGINE.stream(prompt, sampling))
    assert spread.state().phase == "ready"


def test_a_death_in_the_middle_ends_the_answer_and_no_other() -> None:
    roster = roster_of(2)
    spread = spread_over(roster)
    prompt = text(104, 105)
    home = roster.seats[asked(roster, prompt)].place
    home.dies = [1]
    stream = spread.stream(prompt, Sampling(max_tokens=5))
    assert next(stream).id == ENGINE.stream(prompt, Sampling()).__next__().id
    with pytest.raises(EngineLost, match=f"{home.name} ended while it answered"):
        next(stream)
    assert home.name in spread.state().reason
    assert spread.state().phase == "ready"
    assert list(spread.stream(prompt, Sampling(max_tokens=2)))  # the other one
    roster.there(home.name, State("ready"))
    assert spread.state().reason == ""


def test_who_kills_three_places_is_refused() -> None:
    roster = roster_of(4)
    for seat in roster.seats.values():
        seat.place.dies = [0]
    with pytest.raises(EngineError, match="3 replicas"):
        list(spread_over(roster).stream(text(104), Sampling()))
    assert sum(seat.phase == "ready" for seat in roster.seats.values()) == 1


def test_where_none_is_there_a_request_waits_and_is_told() -> None:
    roster = roster_of(1)
    roster.gone(NAMES[0], "ended")
    assert spread_over(roster).state().phase == "starting"
    with pytest.raises(EngineLost, match="language-0: ended; it starts again"):
        roster.enter(Wanted.of(text(1)), patience=0)
    roster.there(NAMES[0], State("ready"))
    assert asked(roster, text(1)) == NAMES[0]


def test_it_refuses_what_the_engine_would() -> None:
    spread = spread_over(roster_of(1))
    with pytest.raises(PromptTooLong):
        spread.stream(text(*range(spread.context)), Sampling())
    with pytest.raises(BadSampling):
        spread.stream(text(1), Sampling(top_logprobs=1))
    with pytest.raises(UsageError):
        spread.attention(text(1), [2])
    with pytest.raises(EngineError, match="empty"):
        spread.stream(text(), Sampling())
    spread.close()
    with pytest.raises(EngineError, match="closed"):
        spread.stream(text(1), Sampling())
    assert spread.state().phase == "failed"


def test_where_it_looked_is_asked_of_another_after_a_death() -> None:
    roster = roster_of(2)
    for seat in roster.seats.values():
        seat.place.dies = [0]
    roster.seats[asked(roster, text(1))].place.dies = [0]
    facts = {**facts_of(ENGINE), "able": {**facts_of(ENGINE)["able"], "explains": True}}
    spread = Spread(NOTHING, facts, roster)
    for seat in list(roster.seats.values())[1:]:
        seat.place.dies = []
    roster.seats[NAMES[0]].place.dies = [0]
    assert spread.attention(text(1), [5, 6]).shape == (2, 3)
