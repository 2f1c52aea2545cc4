"""What the faces know of a loaded model: this and no more, so that any object that has it can be served."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from trifocal.checkpoints import Checkpoint
from trifocal.conversation.history import Keep
from trifocal.conversation.templates import ChatTemplate, Piece
from trifocal.engines.base import State, Tokenizer
from trifocal.images import Image
from trifocal.messages import Chunk, Message, Sampling, Tool
from trifocal.model.budget import Budget
from trifocal.model.explaining import Explanation
from trifocal.model.llava import Asked, Preview, Written
from trifocal.model.outline import Outline
from trifocal.placement import Part

__all__ = ["Model"]


class Model(Protocol):
    """A model that is served; `trifocal.Llava` is one, and says what each of these promises."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What it is, as data."""
        ...

    @property
    def context(self) -> int:
        """Positions of prompt and answer."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        ...

    @property
    def engine_name(self) -> str:
        """What its language engine is called."""
        ...

    @property
    def template(self) -> ChatTemplate:
        """How it writes conversations down where nobody asks for another way."""
        ...

    @property
    def images(self) -> Keep:
        """Which past pictures stay where nobody says it."""
        ...

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of, and where that is."""
        ...

    @property
    def explains_not(self) -> str | None:
        """Why `explain` can't be asked; None where it can."""
        ...

    def state(self) -> State:
        """How its language engine is now."""
        ...

    def outline(self, parts: Sequence[Piece]) -> Outline:
        """What parts in prompt order will take."""
        ...

    def write(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
        room: int | None = None,
    ) -> Written:
        """A conversation as it will be asked."""
        ...

    def prepare(self, written: Written, sampling: Sampling = ..., *, scope: str = "") -> Asked:
        """What was written with its pictures seen, ready for the engine."""
        ...

    def tell(self, asked: Asked) -> Generator[Chunk, None, None]:
        """An answer to what was prepared, piece by piece."""
        ...

    def count(
        self,
        messages: Sequence[Message],
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
    ) -> int:
        """How many positions a whole conversation takes."""
        ...

    def budget(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
    ) -> Budget:
        """Where the context's positions go."""
        ...

    def explain(
        self,
        messages: Sequence[Message],
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        max_tokens: int | None = None,
        scope: str = "",
    ) -> Explanation:
        """Where it looked for each word of an answer."""
        ...

    def preview(self, image: Image) -> Preview | None:
        """What of a picture it is shown; None where its vision can't tell."""
        ...
