"""The pool of key-value blocks: who holds which, what a full one holds, and which goes first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

__all__ = ["Blocks", "beginning", "chained", "names_of"]


class Blocks:
    """``count`` blocks of ``size`` positions each, known by their numbers.

    A block that is held by nobody is idle. One that was named is found again by its name until the pool needs it for
    something else: what was never named goes first, then the least recently used. A name stands for all positions
    from the start of a prompt to the end of its block, see `chained`. A block that was begun and not filled may have a
    name, too: whoever finds it goes on in it, and nobody else any more.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._holders = [0] * count
        self._names: list[bytes | None] = [None] * count
        self._named: dict[bytes, int] = {}
        self._empty = list(range(count - 1, -1, -1))  # the lowest numbers are taken first: memory grows with use
        self._idle: OrderedDict[int, None] = OrderedDict()  # named blocks that nobody holds, the next to go first

    @property
    def free(self) -> int:
        """How many blocks can be taken."""
        return len(self._empty) + len(self._idle)

    @property
    def empty(self) -> int:
        """How many blocks hold nothing that could be found again."""
        return len(self._empty)

    def needed(self, positions: int) -> int:
        """How many blocks so many positions fill or begin."""
        return -(-positions // self.size)

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning of ``names`` that is known. They may go until they are held."""
        found: list[int] = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def begun(self, before: bytes, keys: Sequence[Hashable]) -> tuple[int, int] | None:
        """A block that nobody holds and that was begun with some of ``keys``, behind a block called ``before``.

        Its number, and how many positions it holds of them, at most all. It may go until it is `resume`d.
        """
        for count in range(min(len(keys), self.size - 1), 0, -1):
            block = self._named.get(chained(before, keys[:count]))
            if block is not None and block in self._idle:
                return block, count
        return None

    def resume(self, block: int) -> None:
        """Holds a block that was `begun`, to go on in it: it is not what its name says for long."""
        self.hold([block])
        self._forget(block)

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks count as free, since nobody holds them."""
        return sum(block in self._idle for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Holds blocks that were found; each is given up by `release`."""
        for block in blocks:
            self._holders[block] += 1
            self._idle.pop(block, None)

    def take(self) -> int | None:
        """A block of one's own, or None where all are held."""
        if self._empty:
            block = self._empty.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        else:
            return None
        self._holders[block] = 1
        return block

    def name(self, block: int, name: bytes) -> None:
        """Says what a block holds that nobody writes any more.

        Where another one holds the same already, that one goes on being found.
        """
        if name not in self._named and self._names[block] is None:
            self._names[block] = name
            self._named[name] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up a row of blocks, in the order in which they were filled; the last of them goes first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if self._names[block] is None:
                self._empty.append(block)
            else:
                self._idle[block] = None

    def clear(self) -> None:
        """Forgets what blocks hold; those that are held stay held."""
        for block in list(self._named.values()):
            self._forget(block)
        self._empty += sorted(self._idle, reverse=True)
        self._idle.clear()

    def _forget(self, block: int) -> None:
        name = self._names[block]
        assert name is not None, "only named blocks are idle"
        del self._named[name]
        self._names[block] = None


def beginning(scope: str) -> bytes:
    """What stands before the first block, so that equal keys have other names in another ``scope``."""
    return hashlib.blake2b(scope.encode(), digest_size=16).digest() if scope else b""


def chained(before: bytes, keys: Sequence[Hashable]) -> bytes:
    """The name of a block whose positions are ``keys``, behind a block called ``before`` (empty at the start).

    Equal names mean equal positions from the start of the prompt: a digest, since people who share an engine must not
    be able to make two that collide.
    """
    return hashlib.blake2b(before + repr(_short(keys)).encode(), digest_size=16).digest()


def _short(keys: Sequence[Hashable]) -> list[Hashable]:
    """Keys as few words: a picture's digest once, and its rows below zero, where no id is."""
    told: list[Hashable] = []
    picture = None
    for key in keys:
        if not isinstance(key, tuple):
            told.append(key)
            continue
        digest, row = key
        if digest != picture:
            picture = digest
            told.append(digest)
        told.append(-1 - row)
    return told


def names_of(keys: Sequence[Hashable], size: int, names: list[bytes] | None = None, *, scope: str = "") -> list[bytes]:
    """The names of the full blocks of ``size`` positions among ``keys``; ``names`` grows by them.

    Equal keys have other names in another ``scope``: who has one never finds the blocks of another.
    """
    found = [] if names is None else names
    first = beginning(scope)
    for at in range(len(found) * size, len(keys) // size * size, size):
        found.append(chained(found[-1] if found else first, keys[at : at + size]))
    return found
