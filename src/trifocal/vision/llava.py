"""LLaVA's eyes: a tower and a projector, each where it was placed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import nn

from trifocal.checkpoints import Preprocessing
from trifocal.images import Image
from trifocal.placement import Part
from trifocal.timing import Timings
from trifocal.vision.cache import FeatureCache
from trifocal.vision.placing import on_part, room
from trifocal.vision.preprocessing import count, is_tiled, pixels
from trifocal.vision.showing import PatchGrid, View, patch_grids, shown_views
from trifocal.vision.tiles import grid_of, pack, pack_frames
from trifocal.vision.towers import VisionTransformer

__all__ = ["BATCH", "LlavaVision"]

BATCH = 8


class LlavaVision:
    """A vision tower and a projector, each on its own placement, with a cache behind them.

    ``newline`` is the learned row ``[hidden]`` that ends rows of patches, pictures or frames, as `Preprocessing` says.
    """

    def __init__(
        self,
        tower: VisionTransformer,
        projector: nn.Module,
        preprocessing: Preprocessing,
        *,
        hidden: int,
        identity: str,
        cache: FeatureCache,
        newline: torch.Tensor | None = None,
    ) -> None:
        self.tower, self.projector, self.preprocessing = tower, projector, preprocessing
        self.hidden, self.identity, self.cache, self.newline = hidden, identity, cache, newline

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each of a prompt's pictures, ``[positions, hidden]``, in order.

        Raises:
            BadImage: a video for a model that was not made for them.
            OutOfMemory: the tower's or the projector's device has no room.
        """
        timings = Timings() if timings is None else timings
        among = len(images)
        return self.cache.fill(images, lambda new: self._see(new, among, timings), self._mode(among))

    def positions(self, image: Image, among: int = 1) -> int:
        """How many rows a picture will have in a prompt with ``among`` of them; it is not looked at."""
        return count(image, self.tower.config, self.preprocessing, among)

    def cached(self, image: Image, among: int = 1) -> bool:
        """Whether a picture's rows are known already."""
        return self.cache.has(image, self._mode(among))

    def views(self, image: Image, among: int = 1) -> list[View]:
        """All squares that the tower sees of a picture in a prompt with ``among`` of them."""
        return shown_views(image, self.preprocessing, among)

    def grids(self, image: Image, among: int = 1) -> list[PatchGrid]:
        """Which row of a picture looks where."""
        return patch_grids(image, self.tower.config, self.preprocessing, among)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Tower and projector, as they are loaded."""
        tower = self.tower.config
        what = f"{tower.kind} {tower.image_size}/{tower.patch_size}, width {tower.hidden}, {tower.blocks} blocks"
        linears = sum(isinstance(module, nn.Linear) for module in self.projector.modules())
        reads = f"{linears} linear layer{'s' * (linears != 1)} to width {self.hidden}"
        return (_part("tower", what, self.tower), _part("projector", reads, self.projector))

    def _mode(self, among: int) -> str:
        return "tiles" if is_tiled(self.preprocessing, among) else ""

    @torch.inference_mode()
    def _see(self, images: list[Image], among: int, timings: Timings) -> list[torch.Tensor]:
        """Rows of pictures; the tower sees `BATCH` views at once, whichever pictures they belong to."""
        counts: list[int] = []
        seen: list[torch.Tensor] = []
        views = self._views(images, among, counts, timings)
        while batch := list(islice(views, BATCH)):
            with timings.step("tower"), room("vision tower"):
                features = self.tower(on_part(torch.stack(batch), self.tower))  # [views, patches, width]
            with timings.step("projector"), room("projector"):
                seen.append(self.projector(on_part(features, self.projector)))  # [views, patches, hidden]
        with timings.step("projector"), room("projector"):
            each = torch.cat(seen).split_with_sizes(counts)
            return [self._packed(image, rows, among) for image, rows in zip(images, each, strict=True)]

    def _views(self, images: list[Image], among: int, counts: list[int], timings: Timings) -> Iterator[torch.Tensor]:
        """The pixel values of all views of all pictures, one after the other; how many each has goes to ``counts``."""
        for image in images:
            with timings.step("preprocess"):
                values = pixels(image, self.preprocessing, among)
            counts.append(len(values))
            yield from values

    def _packed(self, image: Image, rows: torch.Tensor, among: int) -> torch.Tensor:
        """The rows of a picture's views ``[views, patches, hidden]`` as its block ``[positions, hidden]``."""
        shown, newline = self.preprocessing, self.newline
        if image.frames and shown.video is not None:
            return pack_frames(rows, shown.video, None if shown.video.newline == "no_token" else newline)
        if shown.tiles is None or not is_tiled(shown, among):
            ends = [newline.to(rows)[None]] if shown.newline and newline is not None else []
            return torch.cat([rows[0], *ends])
        config = self.tower.config
        grid = grid_of((image.width, image.height), config.image_size, config.side, shown.tiles)
        return pack(rows, grid, shown.tiles, newline if shown.tiles.newline else None)


def _part(name: str, what: str, module: nn.Module) -> Part:
    first = next(module.parameters())
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    return Part(name, what, str(first.device), str(first.dtype).removeprefix("torch."), size)
