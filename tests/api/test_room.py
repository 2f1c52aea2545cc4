"""Who waits for room for decoded pictures, and who is told to come back (T-03)."""

from __future__ import annotations

import threading

import pytest

from trifocal.api.errors import Refusal
from trifocal.api.room import Room
from twins import is_found
from waiting import PATIENCE


def test_who_holds_nothing_waits_and_who_holds_some_comes_back() -> None:
    room, taken = Room(100, PATIENCE), threading.Event()

    def other() -> None:
        with room.lease() as lease:
            lease.take(80)
            taken.set()

    with room.lease() as first:
        first.take(60)
        thread = threading.Thread(target=other)
        thread.start()
        assert not taken.wait(0.05)
        with room.lease() as third:
            third.take(30)
            with pytest.raises(Refusal) as caught:
                third.take(30)
        assert (caught.value.status, caught.value.code) == (503, "decoder_overloaded")
    assert taken.wait(PATIENCE)
    thread.join(PATIENCE)
    assert room.used == 0


def test_alone_a_request_may_hold_what_its_own_limits_allow() -> None:
    room = Room(100, 0)
    with room.lease() as lease:
        lease.take(90)
        lease.take(90)
        with room.lease() as other, pytest.raises(Refusal):
            other.take(1)
    assert room.used == 0


def test_its_twin_that_counts_nothing_is_found() -> None:
    is_found(test_who_holds_nothing_waits_and_who_holds_some_comes_back, Room, "_take", lambda room, lease, size: None)
    is_found(test_alone_a_request_may_hold_what_its_own_limits_allow, Room, "_take", lambda room, lease, size: None)
