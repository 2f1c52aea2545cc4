"""The pool of blocks: held, found again, and which goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trifocal.engines.blocks import Blocks, chained, names_of


def taken(blocks: Blocks, count: int) -> list[int]:
    found = [blocks.take() for _ in range(count)]
    assert None not in found
    return [block for block in found if block is not None]


def test_blocks_are_taken_once_and_come_back() -> None:
    blocks = Blocks(3, 4)
    own = taken(blocks, 3)
    assert own == [0, 1, 2]
    assert blocks.take() is None
    assert blocks.free == 0
    blocks.release(own)
    assert blocks.free == 3


def test_what_was_named_is_found_until_the_room_is_needed_the_end_of_a_row_first() -> None:
    blocks = Blocks(3, 4)
    own = taken(blocks, 3)
    names = [b"a", b"ab", b"abc"]
    for block, name in zip(own, names, strict=True):
        blocks.name(block, name)
    blocks.release(own)
    assert blocks.find(names) == own
    assert blocks.free == 3
    taken(blocks, 1)
    assert blocks.find(names) == own[:2]
    assert blocks.find([b"other", b"a"]) == []


def test_a_block_that_was_begun_is_found_by_the_longest_part_and_resumed_once() -> None:
    blocks = Blocks(4, 4)
    one, two, full = taken(blocks, 3)
    blocks.name(one, chained(b"x", [1]))
    blocks.name(two, chained(b"x", [1, 2, 3]))
    blocks.name(full, chained(b"x", [1, 2, 3, 4]))
    assert blocks.begun(b"x", [1, 2, 3]) is None, "they are held"
    blocks.release([one, two, full])
    assert blocks.begun(b"x", [1, 2, 3, 4]) == (two, 3)
    assert blocks.begun(b"x", [1, 2, 5]) == (one, 1)
    assert blocks.begun(b"x", []) is None
    assert blocks.begun(b"y", [1, 2, 3]) is None
    blocks.resume(two)
    assert blocks.begun(b"x", [1, 2, 3]) == (one, 1)
    assert blocks.free == 3
    blocks.release([two])
    assert blocks.begun(b"x", [1, 2, 3]) == (one, 1), "what was resumed is not what it was"
    taken(blocks, 4)
    assert blocks.begun(b"x", [1, 2, 3]) is None


def test_the_least_recently_used_goes_first_and_the_nameless_before_it() -> None:
    blocks = Blocks(3, 4)
    one, two, nameless = taken(blocks, 3)
    blocks.name(one, b"1")
    blocks.name(two, b"2")
    for block in (one, two, nameless):
        blocks.release([block])
    blocks.hold(blocks.find([b"1"]))
    blocks.release([one])
    assert taken(blocks, 3) == [nameless, two, one]


def test_a_shared_block_stays_until_the_last_one_gives_it_up() -> None:
    blocks = Blocks(1, 4)
    own = taken(blocks, 1)
    blocks.name(own[0], b"1")
    blocks.hold(blocks.find([b"1"]))
    blocks.release(own)
    assert blocks.take() is None
    assert blocks.idle(own) == 0
    blocks.release(own)
    assert blocks.idle(own) == 1
    assert blocks.take() == own[0]


def test_forgetting_leaves_what_is_held() -> None:
    blocks = Blocks(2, 4)
    one, two = taken(blocks, 2)
    blocks.name(one, b"1")
    blocks.name(two, b"2")
    blocks.release([one])
    blocks.clear()
    assert blocks.find([b"1"]) == blocks.find([b"2"]) == []
    assert blocks.free == 1
    blocks.release([two])
    assert blocks.free == 2


@given(st.lists(st.integers(0, 300) | st.tuples(st.text(max_size=3), st.integers(0, 3)), max_size=6))
def test_names_tell_ids_pictures_and_what_stood_before_apart(keys: list[object]) -> None:
    others = [[*keys, 1], [("a", 0), *keys], keys[1:]]
    for other in others:
        if other != keys:
            assert chained(b"", other) != chained(b"", keys)  # type: ignore[arg-type]
    assert chained(b"x", keys) != chained(b"", keys)  # type: ignore[arg-type]
    assert chained(b"", list(keys)) == chained(b"", keys)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_names_of_two_scopes_are_never_equal(keys: list[int], one: str, other: str) -> None:
    names, others = (names_of(keys, 4, scope=scope) for scope in (one, other))
    assert len(names) == len(keys) // 4
    assert names == others if one == other else not set(names) & set(others)
