"""LLaVA's eyes: a tower and a projector, each where it was placed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trifocal.checkpoints import Preprocessing
from trifocal.images import Image
from trifocal.timing import Timings
from trifocal.vision.cache import FeatureCache
from trifocal.vision.placing import on_part, room
from trifocal.vision.preprocessing import pixels
from trifocal.vision.towers import ClipTower

__all__ = ["BATCH", "ClipVision"]

BATCH = 8


class ClipVision:
    """A CLIP tower and a projector, each on its own placement, with a cache behind them."""

    def __init__(
        self,
        tower: ClipTower,
        projector: nn.Module,
        preprocessing: Preprocessing,
        *,
        hidden: int,
        identity: str,
        cache: FeatureCache,
    ) -> None:
        self.tower, self.projector, self.preprocessing = tower, projector, preprocessing
        self.hidden, self.identity, self.cache = hidden, identity, cache

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each picture, ``[positions, hidden]``, in order.

        Raises:
            OutOfMemory: the tower's or the projector's device has no room.
        """
        timings = Timings() if timings is None else timings
        return self.cache.fill(images, lambda new: self._see(new, timings))

    def positions(self, image: Image) -> int:
        """Every picture takes as many: the tower's patches."""
        return self.tower.config.patches

    def cached(self, image: Image) -> bool:
        """Whether a picture's rows are known already."""
        return image in self.cache

    @torch.inference_mode()
    def _see(self, images: list[Image], timings: Timings) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            with timings.step("preprocess"):
                values = torch.stack([pixels(image, self.preprocessing) for image in batch])
            with timings.step("tower"), room("vision tower"):
                features = self.tower(on_part(values, self.tower))  # [images, patches, width]
            with timings.step("projector"), room("projector"):
                rows = self.projector(on_part(features, self.projector))  # [images, positions, hidden]
            seen += rows.unbind()
        return [rows.clone() for rows in seen]
