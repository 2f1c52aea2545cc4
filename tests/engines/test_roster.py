"""Who is asked of several places, who is woken, and how they are together: with places that are names alone."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trifocal.cancelling import Scope
from trifocal.engines.base import State
from trifocal.engines.roster import Roster, Seat, Wanted, ranked
from trifocal.errors import EngineError, EngineLost
from trifocal.prompt import ImageSpan, Prompt, TokenSpan
from waiting import PATIENCE, until

NAMES = [f"language-{number}" for number in range(4)]


@dataclass(frozen=True)
class Place:
    name: str


def text(*ids: int, scope: str | None = "") -> Prompt:
    return Prompt([TokenSpan(ids)], scope)


def picture(digest: str, *after: int) -> Prompt:
    return Prompt([TokenSpan((1, 2)), ImageSpan(torch.zeros(40, 8), digest), TokenSpan((3, *after))])


def roster_of(count: int, always: int | None = None, **options: Any) -> Roster[Place]:
    roster = Roster([Place(name) for name in NAMES[:count]], always, **options)
    for name, seat in roster.seats.items():
        if seat.sleeps is None:
            roster.there(name, State("ready", positions=1000, free=1000))
    return roster


def asked(roster: Roster[Place], prompt: Prompt) -> str:
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
    monkeypatch.setattr("trifocal.engines.roster.REMEMBERED", 2)
    seat = Seat(Place("one"))
    seat.learn([b"1", b"2", b"3"])
    assert list(seat.known) == [b"2", b"3"]


def test_one_more_is_woken_where_all_have_too_much_before_them() -> None:
    woken: list[str] = []
    roster = roster_of(3, always=1, sleeps=100.0, overload=50, wakes=woken.append)
    first, _ = roster.enter(Wanted.of(text(*range(60))))
    assert woken == []
    roster.enter(Wanted.of(text(*range(1, 60))))
    roster.enter(Wanted.of(text(*range(2, 60))))
    assert woken == [NAMES[1]]  # one at a time
    roster.woke(NAMES[1], State("ready"))
    assert asked(roster, text(*range(3, 60))) == NAMES[1]
    assert first.place.name == NAMES[0]


def test_who_had_nothing_to_do_for_long_is_woken_before_he_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now, woken = [1000.0], list[str]()
    monkeypatch.setattr("trifocal.engines.roster.time", SimpleNamespace(monotonic=lambda: now[0]))
    roster = roster_of(2, always=1, sleeps=100.0, overload=50, wakes=woken.append)
    roster.woke(NAMES[1], State("ready"))
    now[0] += 60
    roster.seats[NAMES[0]].waiting = 500
    assert asked(roster, text(1)) == NAMES[0]
    assert woken == [NAMES[1]]


def test_where_nobody_else_asks_beginnings_are_spread_over_who_is_idle_and_go_on_there() -> None:
    roster = roster_of(4, overload=0)
    homes = {each: asked(roster, text(each, *range(100))) for each in range(24)}
    assert set(homes.values()) == set(NAMES)
    assert {each: asked(roster, text(each, *range(100), 7, 8)) for each in homes} == homes
    for _ in NAMES:  # no guess is worth to wait for
        roster.enter(Wanted.of(text(*range(500, 600))))
    assert [seat.unbegun for seat in roster.seats.values()] == [1, 1, 1, 1]


def test_who_takes_nobody_now_is_passed_over() -> None:
    roster = roster_of(2)
    roster.there(NAMES[0], State("ready"), taking=False)
    assert {asked(roster, text(each)) for each in range(8)} == {NAMES[1]}
    assert roster.state().phase == "ready"
    assert roster.state().reason == ""


def test_how_they_are_together() -> None:
    roster = roster_of(3)
    seat, cost = roster.enter(Wanted.of(text(*range(20))))
    other, _ = roster.enter(Wanted.of(text(*range(30))))
    roster.began(seat, cost)
    assert (seat.waiting, seat.unbegun, seat.streams) == (0, 0, 1) or seat is other
    roster.there(NAMES[1], State("ready", positions=1000, free=400, steps=5, drafted=4, accepted=3))
    roster.there(NAMES[2], State("ready", positions=1000, free=1000, steps=2, drafted=1, accepted=1))
    roster.gone(NAMES[0], "ended")
    state = roster.state()
    assert (state.phase, state.reason) == ("ready", "language-0: ended; it starts again")
    assert (state.running, state.waiting, state.several) == (1, 1, True)
    assert (state.positions, state.free) == (3000, 1400)
    assert (state.steps, state.drafted, state.accepted) == (7, 5, 4)


def test_where_all_failed_nobody_is_waited_for() -> None:
    roster = roster_of(2)
    roster.lost(NAMES[0], State("failed", reason="it broke"))
    assert asked(roster, text(1)) == NAMES[1]
    roster.lost(NAMES[1], State("failed", reason="it broke"))
    assert roster.state().phase == "failed"
    with pytest.raises(EngineLost, match=r"^it broke$"):
        roster.enter(Wanted.of(text(1)))


def test_who_waits_for_a_place_and_is_not_wanted_any_more_is_let_go() -> None:
    roster, scope = roster_of(1), Scope()
    roster.gone(NAMES[0], "ended")

    def enter() -> None:
        with scope.work():
            roster.enter(Wanted.of(text(1)), patience=None)

    with ThreadPoolExecutor() as pool:
        waits = pool.submit(enter)
        until(lambda: roster.state().waiting == 1, "the request")
        scope.cancel()
        with pytest.raises(EngineError, match="nobody waits"):
            waits.result(PATIENCE)
    assert roster.state().waiting == 0
