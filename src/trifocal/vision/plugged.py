"""Visions of other packages, by entry point: what they are given, and a base for the simple ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from trifocal.checkpoints import Checkpoint
from trifocal.checkpoints.finding import VISIONS, plugged_names
from trifocal.errors import MissingExtra, UnknownName, UsageError
from trifocal.images import Image
from trifocal.placement import Placement
from trifocal.timing import step
from trifocal.vision.base import Look, Vision

if TYPE_CHECKING:
    import torch

__all__ = ["PluggedVision", "open_plugged", "plugged_names"]

Loader = Callable[[Checkpoint, Placement], Vision]


class PluggedVision:
    """A base for visions of other packages that see pictures one by one: say `positions` and `rows`.

    ``hidden`` is the width of the language model's rows; ``identity`` names all that the rows depend on beside the
    picture (weights, precision, preprocessing): what was seen is known again by it. A vision whose rows stand between
    tokens of its own, or depend on the prompt's other pictures, is a `trifocal.vision.Vision` without this base.
    """

    def __init__(self, *, hidden: int, identity: str) -> None:
        self.hidden, self.identity = hidden, identity

    def positions(self, image: Image) -> int:
        """How many rows a picture will have; it must not be looked at, its size may."""
        raise NotImplementedError

    def rows(self, image: Image) -> torch.Tensor:
        """The rows of a picture, ``[positions, hidden]``, in any dtype and on any device."""
        raise NotImplementedError

    def looks(self, images: Sequence[Image]) -> list[Look]:
        """Each picture as so many rows."""
        return [Look(image, (self.positions(image),)) for image in images]

    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        """Rows of each picture, in order, asked for one by one."""
        with step("tower"):
            return [self.rows(look.image) for look in looks]


def open_plugged(checkpoint: Checkpoint, placement: Placement) -> Vision:
    """The vision that a package offers under the checkpoint's vision.

    Raises:
        UnknownName: no installed package offers it.
        MissingExtra: what that package needs is not installed.
        UsageError: what it gives is no vision.
    """
    found = list(entry_points(group=VISIONS, name=checkpoint.vision.name))
    if not found:
        raise UnknownName("vision", checkpoint.vision.name, plugged_names())
    try:
        load: Loader = found[0].load()
        vision = load(checkpoint, placement)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the vision {checkpoint.vision.name} ({error.name})", checkpoint.vision.name) from error
    absent = [name for name in ("hidden", "identity", "looks", "see") if not hasattr(vision, name)]
    if absent:
        raise UsageError(f"the vision {checkpoint.vision.name} has no {', '.join(absent)}; see trifocal.vision.Vision")
    return vision
