"""Visions of other packages, by entry point: what they are given, and a base that does the common part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from trifocal.checkpoints import Checkpoint
from trifocal.errors import MissingExtra, UnknownName, UsageError
from trifocal.images import Image
from trifocal.placement import Placement
from trifocal.timing import Timings
from trifocal.vision.base import Vision
from trifocal.vision.cache import FeatureCache

if TYPE_CHECKING:
    import torch

__all__ = ["GROUP", "PluggedVision", "open_plugged", "plugged_names"]

GROUP = "trifocal.visions"
Loader = Callable[[Checkpoint, Placement], Vision]


class PluggedVision:
    """A base for visions of other packages: say `rows` and `positions`, the cache is done here.

    ``hidden`` is the width of the language model's rows; ``identity`` names all that the rows depend on beside the
    picture (weights, precision, preprocessing), for the caches. A vision with tokens of its own around or between its
    rows has a method ``layout``, see `trifocal.vision.Framing`.
    """

    def __init__(self, *, hidden: int, identity: str, cache_bytes: int = 256 << 20) -> None:
        self.hidden, self.identity = hidden, identity
        self.cache = FeatureCache(cache_bytes)

    def rows(self, image: Image) -> torch.Tensor:
        """The rows of a picture, ``[positions, hidden]``, in any dtype and on any device."""
        raise NotImplementedError

    def positions(self, image: Image, among: int = 1) -> int:
        """How many rows a picture will have; it must not be looked at, its size may."""
        raise NotImplementedError

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each picture, in order; those not seen before are asked for one by one.

        Raises:
            UsageError: rows of another shape than was told.
        """
        timings = Timings() if timings is None else timings
        return self.cache.fill(images, lambda new: [self._checked(image, len(images), timings) for image in new])

    def cached(self, image: Image, among: int = 1) -> bool:
        """Whether a picture's rows are known already."""
        return self.cache.has(image)

    def _checked(self, image: Image, among: int, timings: Timings) -> torch.Tensor:
        with timings.step("tower"):
            rows = self.rows(image)
        wanted = (self.positions(image, among), self.hidden)
        if tuple(rows.shape) != wanted:
            raise UsageError(
                f"{type(self).__name__} made rows of {list(rows.shape)}, {list(wanted)} were reckoned with"
            )
        return rows


def plugged_names() -> list[str]:
    """The names under which installed packages offer visions."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def open_plugged(checkpoint: Checkpoint, placement: Placement) -> Vision:
    """The vision that a package offers under the checkpoint's ``sees``.

    Raises:
        UnknownName: no installed package offers it.
        MissingExtra: what that package needs is not installed.
        UsageError: what it gives is no vision.
    """
    found = list(entry_points(group=GROUP, name=checkpoint.sees))
    if not found:
        raise UnknownName("vision", checkpoint.sees, plugged_names())
    try:
        load: Loader = found[0].load()
        vision = load(checkpoint, placement)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the vision {checkpoint.sees} ({error.name})", checkpoint.sees) from error
    absent = [name for name in ("hidden", "identity", "encode", "positions", "cached") if not hasattr(vision, name)]
    if absent:
        raise UsageError(f"the vision {checkpoint.sees} has no {', '.join(absent)}; see trifocal.vision.Vision")
    return vision
