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

    def fill(self, images: Sequence[Image], see: Callable[[list[Image]], list[torch.Tensor]]) -> list[torch.Tensor]:
        """The rows of the pictures in order; those not known are seen, each once, and remembered.

        One lock around look-up and seeing: two requests with one picture see it once.
        """
        with self._lock:
            known = {image.digest: self._rows[image.digest] for image in images if image.digest in self._rows}
            new = list({image.digest: image for image in images if image.digest not in known}.values())
            seen = dict(zip((image.digest for image in new), see(new), strict=True)) if new else {}
            for digest in (image.digest for image in images):
                self._keep(digest, known.get(digest, seen.get(digest)))
            return [known[image.digest] if image.digest in known else seen[image.digest] for image in images]

    def __contains__(self, image: Image) -> bool:
        with self._lock:
            return image.digest in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._held

    def _keep(self, digest: str, rows: torch.Tensor | None) -> None:
        assert rows is not None
        if digest not in self._rows:
            self._rows[digest] = rows
            self._held += rows.nbytes
        self._rows.move_to_end(digest)
        while self._held > self._limit:
            _, gone = self._rows.popitem(last=False)
            self._held -= gone.nbytes
