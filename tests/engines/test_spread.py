"""Who is asked of many places, what becomes of a death, and who is woken: with engines that echo, and no cluster."""

from __future__ import annotations

from collections import Counter
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
from trifocal.engines.spread import Gone, Roster, Seat, Spread, Wanted, ranked
from trifocal.errors import BadSampling, EngineError, EngineLost, PromptTooLong, UsageError
from trifocal.messages import Sampling
from trifocal.prompt import ImageSpan, Prompt, TokenSpan

NAMES = [f"language-{number}" for number in range(4)]
NOTHING = Recipe(source="", config={}, engine="echo")
ENGINE = Echo(hidden=8)


@dataclass(eq=False)
class Echoing:
    """A place with an engine that echoes; it dies after ``dies`` tokens of its next answers."""

    name: str
    dies: list[int] = field(default_factory=list)
    woken: int = 0
    closed: int = 0

    def answer(self, head: Mapping[str, Any], body: bytes) -> _Answer:
        return _Answer(self, head, body)

    def attention(self, head: Mapping[str, Any], body: bytes) -> tuple[Sequence[Any], bytes]:
        if self.dies and self.dies.pop(0) == 0:
            raise Gone("ended")
        told, rows = tensor_to(torch.ones(len(head["ids"]), 3))
        return told, bytes(rows)

    def wake(self) -> None:
        self.woken += 1


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


def text(*ids: int, scope: str | None = "") -> Prompt:
    return Prompt([TokenSpan(ids)], scope)


def picture(digest: str, *after: int) -> Prompt:
    return Prompt([TokenSpan((1, 2)), ImageSpan(torch.zeros(40, 8), digest), TokenSpan((3, *after))])


def roster_of(count: int, always: int | None = None, **options: Any) -> Roster:
    roster = Roster([Echoing(name) for name in NAMES[:count]], count if always is None else always, **options)
    for name, seat in roster.seats.items():
        if seat.sleeps is None:
            roster.there(name, State("ready", positions=1000, free=1000))
    return roster


def spread_over(roster: Roster) -> Spread:
    return Spread(NOTHING, facts_of(ENGINE), roster)


def asked(roster: Roster, prompt: Prompt) -> str:
    """Where a prompt goes that is answered at once."""
    seat, cost = roster.enter(Wanted.of(prompt))
    roster.leave(seat, cost, begun=False)
    return seat.place.name


def test_a_name_draws_the_same_order_for_everybody_and_loses_only_what_left() -> None:
    keys = [f"conversation {number}".encode() for number in range(400)]
    first = {key: ranked(key, NAMES)[0] for key in keys}
    assert min(Counter(first.values()).values()) > 60
    assert {key: ranked(key, NAMES[::-1])[0] for key in keys} == first
    less = {key: ranked(key, NAMES[:3])[0] for key in keys}
    assert all(less[key] == name for key, name in first.items() if name != NAMES[3])


@pytest.mark.parametrize("made", [lambda *more: text(*range(70), *more), lambda *more: picture("one", *more)])
def test_a_conversation_goes_on_where_it_began_at_any_front(made: Any) -> None:
    one, another = roster_of(4), roster_of(4)
    where = asked(one, made())
    assert {asked(one, made(*range(turn * 30))) for turn in range(1, 4)} == {where}
    assert asked(another, made(*range(60))) == where


def test_where_all_texts_begin_with_the_same_words_each_goes_on_where_it_was_put() -> None:
    roster = roster_of(2)
    words = range(200)
    first = roster.seats[asked(roster, text(*words, *[1] * 40))]
    first.waiting = 500
    other = asked(roster, text(*words, *[2] * 40))
    first.waiting = 0
    assert other != first.place.name
    assert asked(roster, text(*words, *[2] * 60)) == other
    assert asked(roster, text(*words, *[1] * 60)) == first.place.name


def test_other_pictures_go_elsewhere_and_all_are_used_though_all_begin_with_the_same_words() -> None:
    roster = roster_of(4)
    words = TokenSpan(tuple(range(80)))
    prompts = [Prompt([words, ImageSpan(torch.zeros(40, 8), f"picture {each}")]) for each in range(40)]
    assert {asked(roster, prompt) for prompt in prompts} == set(NAMES)


def test_who_has_too_much_before_him_is_passed_over() -> None:
    roster = roster_of(2, overload=100)
    prompt = picture("one")
    home = roster.seats[asked(roster, prompt)]
    home.waiting = 20  # fewer than a beginning is worth
    assert asked(roster, prompt) == home.place.name
    home.waiting = 500
    assert asked(roster, prompt) != home.place.name
    home.waiting = 0
    assert asked(roster, prompt) == home.place.name


def test_who_is_never_found_again_goes_where_the_least_is_to_do() -> None:
    roster = roster_of(3)
    roster.seats[NAMES[0]].streams = roster.seats[NAMES[2]].streams = 1
    assert asked(roster, text(1, 2, scope=None)) == NAMES[1]


def test_another_scope_finds_nothing() -> None:
    roster = roster_of(1)
    asked(roster, text(*range(64), scope="a"))
    _, cost = roster.enter(Wanted.of(text(*range(64), scope="b")))
    assert cost == 64
    _, cost = roster.enter(Wanted.of(text(*range(64), 5, scope="a")))
    assert cost == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trifocal.engines.spread.REMEMBERED", 2)
    seat = Seat(Echoing("one"))
    seat.learn([b"1", b"2", b"3"])
    assert list(seat.known) == [b"2", b"3"]


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


def test_one_more_is_woken_where_all_have_too_much_before_them() -> None:
    roster = roster_of(3, always=1, sleeps=100.0, overload=50)
    places = [seat.place for seat in roster.seats.values()]
    first, _ = roster.enter(Wanted.of(text(*range(60))))
    assert [place.woken for place in places] == [0, 0, 0]
    roster.enter(Wanted.of(text(*range(1, 60))))
    roster.enter(Wanted.of(text(*range(2, 60))))
    assert [place.woken for place in places] == [0, 1, 0]  # one at a time
    roster.woke(NAMES[1], State("ready"))
    assert asked(roster, text(*range(3, 60))) == NAMES[1]
    assert first.place.name == NAMES[0]


def test_who_had_nothing_to_do_for_long_is_woken_before_he_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("trifocal.engines.spread.time.monotonic", lambda: now[0])
    roster = roster_of(2, always=1, sleeps=100.0, overload=50)
    roster.woke(NAMES[1], State("ready"))
    now[0] += 60
    roster.seats[NAMES[0]].waiting = 500
    assert asked(roster, text(1)) == NAMES[0]
    assert roster.seats[NAMES[1]].place.woken == 1


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
