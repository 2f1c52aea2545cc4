"""The rows of pictures that were seen before, and one pass for what several requests ask to be seen at once."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trifocal.embedded import Embedded
from trifocal.errors import BadImage, UsageError
from trifocal.images import Image
from trifocal.prompt import Scope
from trifocal.timing import Timings
from trifocal.vision.base import Look, Vision, check_rows

if TYPE_CHECKING:
    import torch

__all__ = ["AT_ONCE", "Gallery"]

AT_ONCE = 8  # pictures of one pass, so that nobody waits for all the pictures of somebody else
Key = tuple[Hashable, ...]


@dataclass(slots=True, eq=False)
class _Wanted:
    """A look that somebody waits for. It is done when it has rows or an error."""

    key: Key
    look: Look
    rows: torch.Tensor | None = None
    error: Exception | None = None
    timings: Timings = field(default_factory=Timings)

    @property
    def done(self) -> bool:
        return self.rows is not None or self.error is not None


class Gallery:
    """Stands in front of a vision, and is what everybody asks for rows. Threads share it.

    At most ``limit`` bytes of rows are kept, those that were asked for last. Rows are known by the picture's file or
    pixels (`Image.known_by`), by how it was seen and by the vision's identity. One pass of the vision runs at a time;
    what is asked for meanwhile, by however many requests, goes through the next one together, in turn `AT_ONCE`
    pictures at most. Who asks for known pictures never waits. Pictures that came as embeddings are seen already;
    ``takes_rows`` says that this vision's rows stand in a prompt by themselves, so that rows from elsewhere can stand
    in their place.
    """

    def __init__(self, vision: Vision, limit: int = 256 << 20, *, takes_rows: bool = False) -> None:
        self.vision, self.takes_rows = vision, takes_rows
        self._limit, self._held = limit, 0
        self._known: OrderedDict[Key, torch.Tensor] = OrderedDict()
        self._wanted: dict[Key, _Wanted] = {}
        self._requests: deque[list[_Wanted]] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def looks(self, images: Sequence[Image]) -> list[Look]:
        """How each of a prompt's pictures will be seen; see `Vision.looks`.

        Raises:
            BadImage: one that can't be seen at all, or embeddings that are not of this vision.
        """
        seen = [image for image in images if not isinstance(image, Embedded)]
        looks = iter(self.vision.looks(seen) if seen else [])
        return [self._look(image) if isinstance(image, Embedded) else next(looks) for image in images]

    def rows(self, looks: Sequence[Look], timings: Timings | None = None, *, scope: Scope = "") -> list[torch.Tensor]:
        """The rows of each look in order, ``[look.rows, hidden]``; those not known are seen, each once.

        ``timings`` takes the seconds of the passes that were waited for. What is known in one ``scope`` is not known
        in another; None is no scope: what is seen in it is not kept.

        Raises:
            UsageError: the vision made other rows than its looks promised.
            TrifocalError: what the vision raises of one of these looks; other requests don't meet it.
        """
        found = self._ask([look for look in looks if not isinstance(look.image, Embedded)], scope)
        waited = list(dict.fromkeys(each for each in found if isinstance(each, _Wanted)))
        while batch := self._turn(waited):
            self._pass(batch)
        if timings is not None:
            for passed in {id(each.timings): each.timings for each in waited}.values():
                for name, seconds in passed.items():
                    timings.add(name, seconds)
        rows = iter([_rows(each) if isinstance(each, _Wanted) else each for each in found])
        return [look.image.rows if isinstance(look.image, Embedded) else next(rows) for look in looks]

    def knows(self, look: Look, *, scope: Scope = "") -> bool:
        """Whether a look's rows are there already."""
        key = self._key(look, scope)
        with self._changed:
            return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._held

    def _look(self, image: Embedded) -> Look:
        """How a picture that came as embeddings stands in a prompt: as its rows."""
        hidden, width = self.vision.hidden, image.rows.shape[1]
        if not self.takes_rows:
            detail = "this model puts tokens of its own around and between a picture's rows: send the picture"
            raise BadImage("bad_embeds", detail, image.name)
        if width != hidden:
            raise BadImage("bad_embeds", f"embeddings of this model have a width of {hidden}, not {width}", image.name)
        if image.identity not in (None, self.vision.identity):
            raise BadImage("bad_embeds", "these embeddings are another vision's, not this model's", image.name)
        return Look(image, (image.rows.shape[0],), "embedded")

    def _key(self, look: Look, scope: Scope) -> Key:
        return scope, self.vision.identity, look.image.known_by, look.layout, look.way

    def _ask(self, looks: Sequence[Look], scope: Scope) -> list[torch.Tensor | _Wanted]:
        """What is known of each look, or what to wait for; what nobody waits for yet is put at the end of the queue."""
        found: list[torch.Tensor | _Wanted] = []
        new: list[_Wanted] = []
        keys = [self._key(look, scope) for look in looks]  # before anybody has to wait: it may take all pixels
        with self._changed:
            for key, look in zip(keys, looks, strict=True):
                if key in self._known:
                    self._known.move_to_end(key)
                    found.append(self._known[key])
                    continue
                if key not in self._wanted:
                    self._wanted[key] = _Wanted(key, look)
                    new.append(self._wanted[key])
                found.append(self._wanted[key])
            if new:
                self._requests.append(new)
        return found

    def _turn(self, waited: Sequence[_Wanted]) -> list[list[_Wanted]]:
        """The next pass, request by request, when nobody else's runs; nothing once all that is waited for is done.

        Whoever takes the turn sees what others wait for, too, and hands it on when its own pictures are done.
        """
        with self._changed:
            while not all(each.done for each in waited):
                if not self._busy:
                    batch = self._next()
                    self._busy = True  # only now: if making the batch fails, the next one's turn comes all the same
                    return batch
                self._changed.wait()
        return []

    def _next(self) -> list[list[_Wanted]]:
        """A picture of each request in turn, until the pass is full or nothing is left."""
        left, parts = deque(enumerate(self._requests)), dict[int, list[_Wanted]]()
        for _ in range(AT_ONCE):
            if left:
                number, request = left.popleft()
                parts.setdefault(number, []).append(request.pop(0))
                if request:
                    left.append((number, request))
        self._requests = deque(request for _, request in left)
        return list(parts.values())

    def _pass(self, batch: Sequence[list[_Wanted]]) -> None:
        """Sees a pass. Where it fails, each request's part is tried alone: the fault is that of the one who has it."""
        try:
            if len(batch) == 1 or not self._seen([each for part in batch for each in part]):
                for part in batch:
                    self._seen(part, last=True)
        finally:
            with self._changed:
                # of a pass that was broken off from outside: somebody else sees them
                self._requests.extendleft(left for part in batch if (left := [each for each in part if not each.done]))
                self._busy = False
                self._changed.notify_all()

    def _seen(self, wanted: Sequence[_Wanted], *, last: bool = False) -> bool:
        """Whether these were seen; where it is the last attempt, an error is theirs."""
        timings = Timings()
        try:
            with timings.collected():
                rows = self._promised([each.look for each in wanted])
        except Exception as error:
            if last:
                self._settle(wanted, [None] * len(wanted), timings, error)
            return False
        self._settle(wanted, rows, timings)
        return True

    def _promised(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        rows = self.vision.see(looks)
        if len(rows) != len(looks):
            raise UsageError(f"the vision made rows of {len(rows)} pictures where {len(looks)} were asked for")
        for look, each in zip(looks, rows, strict=True):
            check_rows(look, each, self.vision.hidden)
        return rows

    def _settle(
        self,
        wanted: Sequence[_Wanted],
        rows: Sequence[torch.Tensor | None],
        timings: Timings,
        error: Exception | None = None,
    ) -> None:
        with self._changed:
            for each, found in zip(wanted, rows, strict=True):
                each.rows, each.error, each.timings = found, error, timings
                del self._wanted[each.key]
                if found is not None and each.key[0] is not None:
                    self._keep(each.key, found)
            self._changed.notify_all()

    def _keep(self, key: Key, rows: torch.Tensor) -> None:
        self._known[key] = rows
        self._held += rows.nbytes
        while self._held > self._limit:
            _, gone = self._known.popitem(last=False)
            self._held -= gone.nbytes


def _rows(wanted: _Wanted) -> torch.Tensor:
    if wanted.error is not None:
        raise wanted.error
    assert wanted.rows is not None
    return wanted.rows
