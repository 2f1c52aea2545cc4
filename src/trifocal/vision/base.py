"""What seeing is: how each picture of a prompt will be seen, and then its rows of the embedding space."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trifocal.conversation.templates import Control
from trifocal.errors import UsageError
from trifocal.images import Image

if TYPE_CHECKING:
    import torch

__all__ = ["Layout", "Look", "Vision", "check_rows"]

Layout = tuple[str | Control | int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """How one picture of a prompt will be seen, decided by its size before anybody looks at it.

    ``layout`` is what it takes in the prompt, in order: numbers of rows, and the text and the control tokens that
    stand around and between them. ``way`` is the vision's own: whatever it needs to know to see it so, in plain values
    (its ``repr`` goes into the name of the rows). Two looks that are equal have the same rows.
    """

    image: Image
    layout: Layout
    way: Hashable = None

    @property
    def rows(self) -> int:
        """How many rows it will have."""
        return sum(item for item in self.layout if isinstance(item, int))

    @property
    def digest(self) -> str:
        """A name of the picture, as caches know it, and of the way in which it is seen."""
        return f"{self.image.known_by}:{self.layout!r}:{self.way!r}"


class Vision(Protocol):
    """Sees pictures. It keeps nothing and locks nothing: a `trifocal.vision.Gallery` stands in front of it."""

    @property
    def hidden(self) -> int:
        """The width of the rows."""
        ...

    @property
    def identity(self) -> str:
        """A digest of everything but the picture and the look that the rows depend on."""
        ...

    def looks(self, images: Sequence[Image]) -> list[Look]:
        """How each of these pictures will be seen in a prompt that has all of them and no others; by size alone.

        Raises:
            BadImage: one that can't be seen at all, such as a video where only pictures are.
        """
        ...

    def see(self, looks: Sequence[Look]) -> list[torch.Tensor]:
        """The rows of each look, ``[look.rows, hidden]``, in order. The looks may be of several prompts."""
        ...


def check_rows(look: Look, rows: torch.Tensor, hidden: int) -> None:
    """Holds the rows that came against those that the look promised: a prompt's length is told before it is made.

    Raises:
        UsageError: other rows came.
    """
    promised = [look.rows, hidden]
    if list(rows.shape) != promised:
        raise UsageError(
            f"{look.image.name}: the vision made rows of {list(rows.shape)}, {promised} were promised by its looks"
        )
