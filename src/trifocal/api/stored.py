"""Responses that are kept for their callers: in memory, a bounded number for each, bounded together in bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from trifocal.api.items import Said
from trifocal.api.wire import dump

__all__ = ["Stored", "StoredResponses"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A response as it was told, the items that it answers, and those that it is."""

    response: dict[str, Any]
    items: tuple[Said, ...]
    answer: tuple[Said, ...]

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return sum(said.size for said in (*self.items, *self.answer)) + len(dump(self.response)) + 2048


class StoredResponses:
    """What was stored last, by whom it may be asked for again. The oldest goes first."""

    def __init__(self, each: int, bytes: int) -> None:
        self._each, self._bytes = each, bytes
        self._kept: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self._sizes: dict[tuple[str, str], int] = {}
        self._items: dict[tuple[str, str], dict[str, Any]] = {}
        self._held = 0

    def put(self, caller: str, id: str, stored: Stored) -> None:
        """Keeps a response as long as there is room."""
        self._kept[caller, id] = stored
        self._sizes[caller, id] = stored.size
        self._held += self._sizes[caller, id]
        self._items |= {(caller, item["id"]): item for item in stored.response["output"]}
        mine = [key for key in self._kept if key[0] == caller]
        for key in mine[: max(0, len(mine) - self._each)]:
            self._drop(key)
        while self._held > self._bytes and self._kept:
            self._drop(next(iter(self._kept)))

    def get(self, caller: str, id: str) -> Stored | None:
        """A response of this caller's, if it is still kept."""
        return self._kept.get((caller, id))

    def item(self, caller: str, id: str) -> dict[str, Any] | None:
        """An item of an answer of this caller's, if it is still kept."""
        return self._items.get((caller, id))

    def delete(self, caller: str, id: str) -> bool:
        """Forgets a response; whether there was one."""
        return self._drop((caller, id))

    def _drop(self, key: tuple[str, str]) -> bool:
        stored = self._kept.pop(key, None)
        self._held -= self._sizes.pop(key, 0)
        for item in stored.response["output"] if stored else ():
            self._items.pop((key[0], item["id"]), None)
        return stored is not None
