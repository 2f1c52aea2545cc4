"""Guessing what an answer says next from what stands before it, and how far ahead guessing pays. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["Costs", "Lookup", "drafts"]

SIZES = (2, 4, 8, 16, 24, 32)  # rows of a step that are tried; those for which cards have graphs
LONGEST = 15  # ids guessed of one answer
CROWD = 16  # answers in one step from which on nobody guesses
SURE = 3  # hits in a row from which on they are counted together
RATE = 1 / 8  # of what a hit or a miss changes the chance of the next
SAMPLES, STALE = 4, 512  # measurements kept, and steps after which they say nothing any more
ASSUMED = 0.05  # of a step of one row, what a further row costs where nothing was measured


class Lookup:
    """Where the last two ids of an answer stood before, in its prompt or itself, and how often what followed came.

    ``keys`` has one key a position and grows behind our back; only those that are ints can be guessed.
    """

    def __init__(self, keys: Sequence[Hashable]) -> None:
        self._keys, self._seen = keys, len(keys)
        # where that stands which followed two keys the last time
        self._after = {pair: at + 2 for at, pair in enumerate(pairwise(keys[:-1]))}
        self._chances = [0.5] * (SURE + 1)
        self._at: int | None = None
        self._hits = 0
        self._find()

    @property
    def found(self) -> bool:
        """Whether there is anything to guess."""
        return self._at is not None

    def follow(self) -> None:
        """Looks at the keys that came since, and finds where to read on."""
        for at in range(self._seen, len(self._keys)):
            if at > 1:
                self._after[self._keys[at - 2], self._keys[at - 1]] = at
            if self._at is not None:
                self._learn(hit=self._keys[self._at] == self._keys[at])
            self._seen = at + 1
            if self._at is None:
                self._find()

    def _find(self) -> None:
        """Begins where the last two keys stood before."""
        end = self._seen
        self._at = self._after.get((self._keys[end - 2], self._keys[end - 1])) if end > 1 else None
        self._hits = 0
        if self._at is not None and not isinstance(self._keys[self._at], int):
            self._at = None

    def chances(self) -> list[float]:
        """For each id that could be guessed, the chance that it and all before it come."""
        told, product = [], 1.0
        for hits in range(self._hits, self._hits + LONGEST):
            product *= self._chances[min(hits, SURE)]
            told.append(product)
        return told

    def guess(self, most: int, without: Container[int]) -> tuple[int, ...]:
        """At most so many ids; what follows the last of the answer is a repetition of itself. None of ``without``."""
        if self._at is None:
            return ()
        ids: list[int] = []
        for at in range(self._at, self._at + most):
            key = self._key(at, ids)
            if not isinstance(key, int) or key in without:
                break
            ids.append(key)
        return tuple(ids)

    def _key(self, at: int, ids: Sequence[int]) -> Hashable:
        own = len(self._keys)
        return self._keys[at] if at < own else (ids[at - own] if at - own < len(ids) else None)

    def _learn(self, *, hit: bool) -> None:
        assert self._at is not None, "asked before"
        level = min(self._hits, SURE)
        self._chances[level] += (hit - self._chances[level]) * RATE
        self._at, self._hits = (self._at + 1, self._hits + 1) if hit else (None, 0)


@dataclass(slots=True)
class _Measured:
    """Seconds of the latest steps of one size, and the number of the last of them."""

    step: int
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    met: bool = False  # the first of a size captures and compiles: it says nothing


class Costs:
    """What steps of so many answers and so many rows took, from this machine's own steps."""

    def __init__(self) -> None:
        self._measured: dict[tuple[int, int], _Measured] = {}
        self._steps = 0

    def add(self, answers: int, rows: int, seconds: float) -> None:
        """Notes a step in which so many answers went on with so many rows together."""
        self._steps += 1
        size = rows if rows == answers else next((size for size in SIZES if size >= rows), rows)
        entry = self._measured.setdefault((answers, size), _Measured(self._steps))
        if entry.met:
            entry.seconds.append(seconds)
        entry.step, entry.met = self._steps, True

    def rows(self, answers: int, chances: Sequence[float]) -> int:
        """How many ids to guess of ``answers`` together, whose chances are sorted, the best first: those that pay.

        The sizes are climbed from the smallest on: what was not measured is as much dearer as the step before it was.
        """
        base = self._least(answers, answers)
        if base is None:
            return 0
        best, chosen, expected, taken = answers / base, 0, float(answers), 0
        dearer = ASSUMED * base
        for size in SIZES:
            few = min(size - answers, len(chances))
            if few <= taken:
                continue
            expected, taken = expected + sum(chances[taken:few]), few
            known = self._least(answers, size)
            seconds = known if known is not None else base + dearer * taken
            if expected / seconds > best:
                best, chosen = expected / seconds, taken
            if known is None:
                break
            dearer = max(0.0, known - base) / taken
        return chosen

    def _least(self, answers: int, rows: int) -> float | None:
        entry = self._measured.get((answers, rows))
        if entry is None or not entry.seconds or self._steps - entry.step > STALE:
            return None
        return min(entry.seconds)


def drafts(lookups: Sequence[Lookup | None], costs: Costs, most: Sequence[int]) -> list[int]:
    """How many ids to guess of each answer, at most ``most``; the likeliest of all of them first, as far as it pays."""
    told = [
        (chance, at)
        for at, (lookup, limit) in enumerate(zip(lookups, most, strict=True))
        if lookup is not None and lookup.found
        for chance in lookup.chances()[:limit]
    ]
    counts = [0] * len(lookups)
    if not told:
        return counts
    told.sort(key=lambda one: -one[0])
    for _, at in told[: costs.rows(len(lookups), [chance for chance, _ in told])]:
        counts[at] += 1
    return counts
