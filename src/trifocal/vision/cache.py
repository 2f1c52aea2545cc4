"""Rows of pictures that were seen before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trifocal.images import Image

if TYPE_CHECKING:
    import torch

__all__ = ["FeatureCache"]


class FeatureCache:
    """Rows of the pictures that were seen last, at most ``limit`` bytes of them. Threads share it."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._rows: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.RLock()

    def fill(
        self, images: Sequence[Image], see: Callable[[list[Image]], list[torch.Tensor]], mode: str = ""
    ) -> list[torch.Tensor]:
        """The rows of the pictures in order; those not known are seen, each once, and remembered.

        ``mode`` keeps apart what one picture looks like when it is seen in different ways. One lock
        around look-up and seeing: two requests with one picture see it once.
        """
        keys = [_key(image, mode) for image in images]
        with self._lock:
            known = {key: self._rows[key] for key in keys if key in self._rows}
            new = {key: image for key, image in zip(keys, images, strict=True) if key not in known}
            seen = dict(zip(new, see(list(new.values())), strict=True)) if new else {}
            rows = [known[key] if key in known else seen[key] for key in keys]
            for key, each in zip(keys, rows, strict=True):
                self._keep(key, each)
            return rows

    def has(self, image: Image, mode: str = "") -> bool:
        """Whether a picture's rows are known, seen that way."""
        with self._lock:
            return _key(image, mode) in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._held

    def _keep(self, key: str, rows: torch.Tensor) -> None:
        if key not in self._rows:
            self._rows[key] = rows
            self._held += rows.nbytes
        self._rows.move_to_end(key)
        while self._held > self._limit:
            _, gone = self._rows.popitem(last=False)
            self._held -= gone.nbytes


def _key(image: Image, mode: str) -> str:
    return f"{image.digest}:{mode}" if mode else image.digest
