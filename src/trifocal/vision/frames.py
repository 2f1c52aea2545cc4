"""A video seen frame by frame: squares whose grids are made smaller."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trifocal.checkpoints import Frames, Preprocessing, Tower
from trifocal.images import Image
from trifocal.vision.preprocessing import square, square_box
from trifocal.vision.showing import Box, PatchGrid, upper_left

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

__all__ = ["InFrames", "frame_rows", "frame_side", "frames_rows", "pack_frames", "shrunk"]


@dataclass(frozen=True, slots=True)
class InFrames:
    """A video of ``count`` frames of ``size``; see `trifocal.vision.ways.Way`."""

    count: int
    size: tuple[int, int]
    preprocessing: Preprocessing = field(repr=False, compare=False)
    tower: Tower = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        return frames_rows(self.count, self.tower.side, self._video)

    def squares(self, image: Image) -> list[Picture]:
        return [square(frame, self.preprocessing, self._video.fit) for frame in image.frames]

    def boxes(self) -> list[tuple[str, Box]]:
        box = square_box(self.size, self.preprocessing, self._video.fit)
        return [(f"frame {number}", box) for number in range(1, self.count + 1)]

    def grids(self) -> list[PatchGrid]:
        video, side = self._video, self.tower.side
        small, step = frame_side(side, video), frame_rows(side, video)
        seen = self.tower.looked_at
        if video.pool != "bilinear":  # pooling leaves away what is no whole stride
            seen *= small * video.stride / side
        across = small + (video.newline == "grid")
        return [
            PatchGrid(at * step, small, small, across, upper_left(box, seen))
            for at, (_, box) in enumerate(self.boxes())
        ]

    @property
    def early(self) -> bool:
        """Whether the tower's features are made smaller (`shrunk`), not the projector's rows."""
        return self._video.early

    def shrunk(self, features: torch.Tensor) -> torch.Tensor:
        return shrunk(features, self._video)

    def block(self, features: torch.Tensor, newline: torch.Tensor | None) -> torch.Tensor:
        return pack_frames(features, self._video, None if self._video.newline == "no_token" else newline)

    @property
    def _video(self) -> Frames:
        video = self.preprocessing.video
        assert video is not None
        return video


def frame_side(patches: int, video: Frames) -> int:
    """Rows along each side of a video's frame that has ``patches`` as a picture."""
    return math.ceil(patches / video.stride) if video.pool == "bilinear" else patches // video.stride


def frame_rows(patches: int, video: Frames) -> int:
    """Rows from the beginning of one frame to that of the next, the learned vectors between them included."""
    side = frame_side(patches, video)
    return side**2 + {"grid": side, "frame": 1}.get(video.newline, 0)


def frames_rows(frames: int, patches: int, video: Frames) -> int:
    """How many rows `pack_frames` makes of a video."""
    return frames * frame_rows(patches, video) + (video.newline == "one_token")


def pack_frames(rows: torch.Tensor, video: Frames, newline: torch.Tensor | None) -> torch.Tensor:
    """The rows of a video's frames ``[frames, patches, hidden]`` as one block ``[positions, hidden]``.

    Each frame's grid is made smaller where it was not before, and ``newline`` ``[hidden]`` stands where `Frames` says.
    """
    import torch

    small = rows if video.early else shrunk(rows, video)
    if newline is None:
        return small.flatten(0, 1)
    newline, side = newline.to(small), math.isqrt(small.shape[1])
    frames, block = len(small), small.view(len(small), side, side, -1)  # [frames, rows, columns, hidden]
    if video.newline == "grid":
        block = torch.cat([block, newline.expand(frames, side, 1, -1)], dim=2)
    by_frame = block.flatten(1, 2)
    if video.newline == "frame":
        by_frame = torch.cat([by_frame, newline.expand(frames, 1, -1)], dim=1)
    ends = [newline[None]] if video.newline == "one_token" else []
    return torch.cat([by_frame.flatten(0, 1), *ends])


def shrunk(features: torch.Tensor, video: Frames) -> torch.Tensor:
    """Frames ``[frames, patches, width]`` with smaller grids."""
    from torch.nn import functional

    frames, count, width = features.shape
    patches = math.isqrt(count)
    channels = features.view(frames, patches, patches, width).permute(0, 3, 1, 2)
    side = frame_side(patches, video)
    if video.stride == 1:
        small = channels
    elif video.pool == "bilinear":
        small = functional.interpolate(channels, size=(side, side), mode="bilinear")
    else:
        pool = functional.avg_pool2d if video.pool == "average" else functional.max_pool2d
        small = pool(channels, video.stride)
    return small.permute(0, 2, 3, 1).flatten(1, 2)
