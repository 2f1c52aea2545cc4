"""The gallery: what is known is given at once, what several ask for is seen together, what is wrong is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from PIL import Image as Pictures

from trifocal import images
from trifocal.errors import BadImage, UsageError
from trifocal.images import Image, from_bytes
from trifocal.timing import Timings, step
from trifocal.vision import Gallery, Look
from trifocal.vision.gallery import AT_ONCE
from waiting import PATIENCE, until

Drawn = Callable[..., Image]
Answer = Future[list[torch.Tensor]]
HIDDEN, ROWS = 8, 2
BYTES = ROWS * HIDDEN * 4


class Slow:
    """A vision whose passes can be held, and which notes what it was asked to see."""

    hidden, identity = HIDDEN, "slow"

    def __init__(self) -> None:
        self.passes: list[list[Image]] = []
        self.spoilt: set[Image] = set()
        self.free, self.entered = threading.Event(), threading.Semaphore(0)
        self.free.set()

    def looks(self, images: Sequence[Image]) -> list[Look]:
        return [Look(image, (ROWS,), "alone" if len(images) == 1 else "together") for image in images]

    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        with step("tower"):
            self.passes.append([look.image for look in looks])
            self.entered.release()
            assert self.free.wait(PATIENCE)
            for look in looks:
                if look.image in self.spoilt:
                    raise BadImage("damaged", "spoilt", look.image.name)
            return [torch.full((ROWS, HIDDEN), float(look.image.width)) for look in looks]


@pytest.fixture
def slow() -> Slow:
    return Slow()


def looks(gallery: Gallery, *prompts: list[Image]) -> list[list[Look]]:
    return [gallery.looks(images) for images in prompts]


def test_only_pictures_that_are_not_known_are_seen_each_once(slow: Slow, drawn: Drawn) -> None:
    gallery = Gallery(slow)
    one, two, three = drawn(1), drawn(2), drawn(3)
    timings = Timings()
    first = gallery.rows(gallery.looks([one, two, one]), timings)
    assert slow.passes == [[one, two]]
    assert first[0] is first[2]
    assert set(timings) == {"tower"}
    again = Timings()
    second = gallery.rows(gallery.looks([two, one, three]), again)
    assert slow.passes[1:] == [[three]]
    assert second[0] is first[1]
    known = Timings()
    gallery.rows(gallery.looks([three, two]), known)
    assert known == {}
    assert gallery.rows([]) == gallery.looks([]) == []


def test_it_is_known_by_picture_look_and_identity(slow: Slow, drawn: Drawn) -> None:
    gallery, other = Gallery(slow), Slow()
    (alone,), (together, _) = looks(gallery, [drawn(1)], [drawn(1), drawn(2)])
    gallery.rows([alone])
    assert gallery.knows(alone)
    assert not gallery.knows(together)
    assert not gallery.knows(replace(alone, layout=(1, 1)))
    gallery.rows([together])
    assert len(slow.passes) == 2
    gallery.vision = other
    other.identity = "another"  # type: ignore[misc]
    assert not gallery.knows(alone)
    gallery.vision = slow
    assert not gallery.knows(alone, scope="of somebody else")


def test_a_file_is_found_again_and_nobody_reads_its_pixels_for_that(
    slow: Slow, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, made, digest = Gallery(slow), list[object](), images._digest
    monkeypatch.setattr(images, "_digest", lambda pixels: made.append(pixels) or digest(pixels))
    first, second = (BytesIO() for _ in range(2))
    for file, level in ((first, 1), (second, 9)):
        drawn(1).pixels.save(file, "PNG", compress_level=level)
    (rows,) = gallery.rows(gallery.looks([from_bytes(first.getvalue())]))
    (again,) = gallery.rows(gallery.looks([from_bytes(first.getvalue(), name="sent again")]))
    assert again is rows
    gallery.rows(gallery.looks([from_bytes(second.getvalue())]))  # the same pixels from another file: seen anew
    assert [len(seen) for seen in slow.passes] == [1, 1]
    assert made == []
    one, other = (seen[0] for seen in slow.passes)
    assert one == other
    assert len(made) == 2


def test_nobody_waits_while_the_digest_of_anothers_picture_is_made(
    slow: Slow, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery(slow)
    (known, new), digest = gallery.looks([drawn(1), drawn(2)]), images._digest
    gallery.rows([known])

    def made(pixels: Pictures.Image) -> str:
        other = threading.Thread(target=gallery.knows, args=(known,), daemon=True)
        other.start()
        other.join(PATIENCE)
        assert not other.is_alive()
        return digest(pixels)

    monkeypatch.setattr(images, "_digest", made)
    assert not gallery.knows(new)
    gallery.rows(gallery.looks([drawn(3)]))


def test_what_is_seen_in_no_scope_is_not_kept(slow: Slow, drawn: Drawn) -> None:
    gallery = Gallery(slow)
    (one,) = gallery.looks([drawn(1)])
    first, second = gallery.rows([one, one], scope=None)
    assert torch.equal(first, second)
    assert not gallery.knows(one, scope=None)
    assert len(gallery) == gallery.nbytes == 0


def test_the_rows_seen_longest_ago_go_first(slow: Slow, drawn: Drawn) -> None:
    gallery = Gallery(slow, 2 * BYTES)
    (one,), (two,), (three,) = looks(gallery, [drawn(1)], [drawn(2)], [drawn(3)])
    gallery.rows([one])
    gallery.rows([two])
    gallery.rows([one])
    gallery.rows([three])
    assert [gallery.knows(look) for look in (one, two, three)] == [True, False, True]
    assert (len(gallery), gallery.nbytes) == (2, 2 * BYTES)


@pytest.mark.parametrize("limit", [0, 1, BYTES - 1])
def test_with_no_room_it_still_answers(slow: Slow, drawn: Drawn, limit: int) -> None:
    gallery = Gallery(slow, limit)
    rows = gallery.rows(gallery.looks([drawn(1, 10), drawn(2, 20), drawn(1, 10)]))
    assert [float(each[0, 0]) for each in rows] == [10, 20, 10]
    assert (len(gallery), gallery.nbytes) == (0, 0)


def test_a_known_picture_is_never_behind_a_strangers(slow: Slow, drawn: Drawn) -> None:
    """The stranger's pass is held for as long as it takes to be answered."""
    gallery = Gallery(slow)
    (known,), (stranger,) = looks(gallery, [drawn(1)], [drawn(2)])
    gallery.rows([known])
    slow.entered.acquire()
    slow.free.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(gallery.rows, [stranger])
        slow.entered.acquire()
        assert len(pool.submit(gallery.rows, [known]).result(PATIENCE)) == 1
        assert gallery.knows(known)
        assert not gallery.knows(stranger)
        assert not waiting.done()
        slow.free.set()
        assert len(waiting.result(PATIENCE)) == 1


def held(gallery: Gallery, slow: Slow, pool: ThreadPoolExecutor, first: Look) -> Answer:
    """A pass over ``first`` that goes on until `Slow.free` is set."""
    slow.free.clear()
    running = pool.submit(gallery.rows, [first])
    slow.entered.acquire()
    return running


def asked(gallery: Gallery, pool: ThreadPoolExecutor, prompts: Sequence[list[Look]]) -> list[Answer]:
    """Requests whose pictures stand in the queue, in this order."""
    futures = []
    for prompt in prompts:
        waiting = len(gallery._requests)
        futures.append(pool.submit(gallery.rows, prompt))
        until(lambda: len(gallery._requests) > waiting, "a request in the queue")  # noqa: B023
    return futures


def test_what_several_requests_ask_at_once_goes_through_together(slow: Slow, drawn: Drawn) -> None:
    gallery = Gallery(slow)
    images = [drawn(seed, 10 + seed) for seed in range(5)]
    first, *rest = looks(gallery, *([image] for image in images))
    with ThreadPoolExecutor(8) as pool:
        running = held(gallery, slow, pool, first[0])
        others = asked(gallery, pool, rest)
        both = pool.submit(gallery.rows, [*rest[0], *first])  # another asks for the same ones
        slow.free.set()
        assert [float(each.result(PATIENCE)[0][0, 0]) for each in others] == [11, 12, 13, 14]
        assert [float(each[0, 0]) for each in both.result(PATIENCE)] == [11, 10]
        running.result(PATIENCE)
    assert slow.passes == [[images[0]], images[1:]]


def test_a_request_with_many_pictures_does_not_keep_one_with_few_waiting(slow: Slow, drawn: Drawn) -> None:
    gallery = Gallery(slow)
    many = [drawn(seed) for seed in range(3 * AT_ONCE)]
    (first,), crowd, (late,) = looks(gallery, [drawn(90)], many, [drawn(91)])
    with ThreadPoolExecutor(8) as pool:
        held(gallery, slow, pool, first)
        futures = asked(gallery, pool, [crowd, [late]])
        slow.free.set()
        for future in futures:
            future.result(PATIENCE)
    assert late.image in slow.passes[1]
    assert max(map(len, slow.passes)) == AT_ONCE
    assert sum(map(len, slow.passes)) == 3 * AT_ONCE + 2


def test_an_error_is_that_of_the_one_who_has_it(slow: Slow, drawn: Drawn) -> None:
    gallery = Gallery(slow)
    first, good, bad, other = (gallery.looks([drawn(seed)]) for seed in range(4))
    slow.spoilt = {bad[0].image}
    with ThreadPoolExecutor(8) as pool:
        held(gallery, slow, pool, first[0])
        futures = asked(gallery, pool, [good, bad, other])
        slow.free.set()
        assert len(futures[0].result(PATIENCE)) == len(futures[2].result(60)) == 1
        with pytest.raises(BadImage, match="spoilt"):
            futures[1].result(PATIENCE)
    slow.spoilt = set()
    assert not gallery.knows(bad[0])
    assert len(gallery.rows(bad)) == 1


def test_a_pass_that_is_broken_off_leaves_nobody_waiting(slow: Slow, drawn: Drawn) -> None:
    gallery = Gallery(slow)
    see, (look,) = slow.see, gallery.looks([drawn(1)])

    def interrupted(_: Sequence[Look]) -> list[torch.Tensor]:
        raise KeyboardInterrupt

    slow.see = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        gallery.rows([look])
    slow.see = see  # type: ignore[method-assign]
    assert len(gallery.rows([look])) == 1


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([torch.zeros(10, HIDDEN)], r"rows of \[10, 8\], \[2, 8\] were promised"),
        ([torch.zeros(ROWS, HIDDEN + 1)], r"rows of \[2, 9\], \[2, 8\] were promised"),
        ([torch.zeros(1, ROWS, HIDDEN)], r"rows of \[1, 2, 8\], \[2, 8\] were promised"),
        ([], "rows of 0 pictures where 1 were asked for"),
    ],
)
def test_rows_that_were_not_promised_are_refused_and_not_kept(
    slow: Slow, drawn: Drawn, made: list[torch.Tensor], said: str
) -> None:
    gallery = Gallery(slow)
    slow.see = lambda _: made  # type: ignore[method-assign]
    (look,) = gallery.looks([drawn(1)])
    for _ in range(2):
        with pytest.raises(UsageError, match=said):
            gallery.rows([look])
    assert (len(gallery), gallery.nbytes) == (0, 0)
