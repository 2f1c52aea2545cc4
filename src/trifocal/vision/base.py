"""What seeing is: from pictures to rows of the language model's embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from trifocal.conversation.templates import Control
from trifocal.images import Image
from trifocal.timing import Timings

if TYPE_CHECKING:
    import torch

__all__ = ["Framing", "Vision"]


class Vision(Protocol):
    """Sees pictures: from `Image` to rows of the language model's embedding space."""

    @property
    def hidden(self) -> int:
        """The width of the rows."""
        ...

    @property
    def identity(self) -> str:
        """A digest of everything but the picture that the rows depend on."""
        ...

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each of a prompt's pictures, ``[positions, hidden]``, in order. All of them are given."""
        ...

    def positions(self, image: Image, among: int = 1) -> int:
        """How many rows a picture will have in a prompt with ``among`` of them; it is not looked at."""
        ...

    def cached(self, image: Image, among: int = 1) -> bool:
        """Whether a picture's rows are known already."""
        ...


@runtime_checkable
class Framing(Protocol):
    """What a vision has besides when tokens of its own stand around a picture's rows or between them."""

    def layout(self, image: Image, among: int = 1) -> Sequence[str | Control | int]:
        """Text, control tokens and numbers of rows, in prompt order; the numbers add up to `Vision.positions`."""
        ...
