"""LLaVA's vision: a tower and a projector, each where it was placed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import nn

from trifocal.checkpoints import Preprocessing
from trifocal.images import Image
from trifocal.placement import Part
from trifocal.timing import step
from trifocal.vision.base import Look
from trifocal.vision.beside import Beside
from trifocal.vision.frames import InFrames
from trifocal.vision.graphed import Graphed
from trifocal.vision.kernels import at_its_best
from trifocal.vision.placing import room
from trifocal.vision.preprocessing import pixels, pixels_on
from trifocal.vision.showing import PatchGrid, View
from trifocal.vision.towers import VisionTransformer
from trifocal.vision.ways import Way, way_of
from trifocal.vision.whole import OneSquare

__all__ = ["BATCH", "LlavaVision"]

BATCH = 8  # squares that the tower sees at once


class LlavaVision:
    """A vision tower and a projector, each on its own placement.

    ``newline`` is the learned row ``[hidden]`` that ends the rows of a tiled picture's grid.
    """

    def __init__(
        self,
        tower: VisionTransformer,
        projector: nn.Module,
        preprocessing: Preprocessing,
        *,
        hidden: int,
        identity: str,
        newline: torch.Tensor | None = None,
    ) -> None:
        self.tower, self.projector, self.preprocessing = tower, projector, preprocessing
        self.hidden, self.identity, self.newline = hidden, identity, newline
        self._tower, self._projector = Graphed(at_its_best(tower)), Graphed(projector)
        self._beside = Beside(tower, projector)

    def looks(self, images: Sequence[Image]) -> list[Look]:
        """How each picture of a prompt will be seen: as one square, in tiles or in frames.

        Raises:
            BadImage: a video for a model that was not made for them.
        """
        alone = sum(not image.frames for image in images) == 1  # videos are not counted, as in transformers
        ways = [way_of(image, self.preprocessing, self.tower.config, alone=alone) for image in images]
        return [Look(image, (way.rows,), way) for image, way in zip(images, ways, strict=True)]

    @torch.inference_mode()
    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        """The rows of each look; the tower sees `BATCH` squares at once, whichever pictures they belong to.

        Raises:
            OutOfMemory: the tower's or the projector's device has no room.
        """
        rows: dict[int, torch.Tensor] = {}
        with self._beside():
            for early in (False, True):  # what is pooled before the projector is seen by itself
                places = [at for at, look in enumerate(looks) if _early(look) == early]
                rows |= zip(places, self._seen([looks[at] for at in places]), strict=True)
        self._beside.given([*rows.values()])
        return [rows[at] for at in range(len(looks))]

    def _seen(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        """The rows of looks that are all pooled before the projector, or none of them."""
        counts: list[int] = []
        seen: list[torch.Tensor] = []
        squares = self._squares(looks, counts)
        while batch := list(islice(squares, BATCH)):
            with step("tower"), room("vision tower"):
                features = self._tower(torch.stack(batch))  # [squares, patches, width]
            with step("projector"), room("projector"):
                seen.append(self._projector(_pooled(looks[0], features)))  # [squares, patches, hidden]
        if not seen:
            return []
        with step("projector"), room("projector"):
            each = torch.cat(seen).split_with_sizes(counts)
            return [_way(look).block(rows, self.newline) for look, rows in zip(looks, each, strict=True)]

    def pixels(self, look: Look) -> torch.Tensor:
        """What the tower is given of a picture: ``[squares, 3, side, side]`` in float32."""
        way = _way(look)
        return pixels(way.squares(look.image), way.preprocessing)

    def views(self, look: Look) -> list[View]:
        """All squares that the tower sees of a picture."""
        way = _way(look)
        named = zip(way.squares(look.image), way.boxes(), strict=True)
        return [View(square, title, box) for square, (title, box) in named]

    def grids(self, look: Look) -> list[PatchGrid]:
        """Which row of a picture looks where."""
        return _way(look).grids()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Tower and projector, as they are loaded."""
        tower = self.tower.config
        what = f"{tower.kind} {tower.image_size}/{tower.patch_size}, width {tower.hidden}, {tower.blocks} blocks"
        linears = sum(isinstance(module, nn.Linear) for module in self.projector.modules())
        reads = f"{linears} linear layer{'s' * (linears != 1)} to width {self.hidden}"
        return (_part("tower", what, self.tower), _part("projector", reads, self.projector))

    def _given(self, look: Look) -> torch.Tensor:
        """`pixels`, on the tower's device where that is a card: what a picture is most often given as."""
        device = next(self.tower.parameters()).device
        if device.type == "cuda" and isinstance(look.way, OneSquare):
            with room("vision tower"):
                values = pixels_on(device, look.image, self.preprocessing)
            if values is not None:
                return values
        return self.pixels(look)

    def _squares(self, looks: Sequence[Look], counts: list[int]) -> Iterator[torch.Tensor]:
        """The pixel values of all squares, one after the other; how many each picture has goes to ``counts``."""
        for look in looks:
            with step("preprocess"):
                values = self._given(look)
            counts.append(len(values))
            yield from values


def _way(look: Look) -> Way:
    """A look of this vision has one of the three ways in it."""
    assert isinstance(look.way, Way)
    return look.way


def _early(look: Look) -> bool:
    return isinstance(look.way, InFrames) and look.way.early


def _pooled(look: Look, features: torch.Tensor) -> torch.Tensor:
    """What the projector takes: the tower's features, made smaller where they are before it."""
    return look.way.shrunk(features) if isinstance(look.way, InFrames) and look.way.early else features


def _part(name: str, what: str, module: nn.Module) -> Part:
    first = next(module.parameters())
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    return Part(name, what, str(first.device), str(first.dtype).removeprefix("torch."), size)
