"""What the faces know of a loaded model: this and no more, so that any object that has it can be served."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

from trifocal.checkpoints import Checkpoint
from trifocal.conversation.history import Keep
from trifocal.conversation.templates import ChatTemplate, Piece
from trifocal.engines.base import State, Tokenizer
from trifocal.images import Image
from trifocal.messages import Chunk, Message, Sampling, Tool
from trifocal.model.budget import Budget
from trifocal.model.explaining import Explanation
from trifocal.model.llava import Preview
from trifocal.model.outline import Outline
from trifocal.model.talking import Ready
from trifocal.placement import Part

__all__ = ["Model"]


class Model(Protocol):
    """A model that is served; `trifocal.Llava` is one, and says what each of these promises.

    `trifocal.model.relay.Relay` is another: it passes conversations on to a server that has the model. What only
    those know who have it (``checkpoint``, ``context``, ``tokenizer``, ``outline``, ``count``, ``budget``, ``explain``,
    ``preview``) is None there, or raises `NotSupported`, which says why.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def family(self) -> str:
        """The family of models that it is of."""
        ...

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What it is, as data; None where another server has it."""
        ...

    @property
    def context(self) -> int | None:
        """Positions of prompt and answer; None where nobody told."""
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
    ) -> Any:
        """A conversation as it will be asked: whatever `prepare` of the same model takes."""
        ...

    def raw(self, parts: Sequence[Piece], *, room: int | None = None) -> Any:
        """Parts in prompt order, without a template, as they will be asked."""
        ...

    def prepare(self, written: Any, sampling: Sampling = ..., *, scope: str = "") -> Ready:
        """What was written, ready for the engine: whatever `tell` of the same model takes."""
        ...

    def tell(self, asked: Any) -> Generator[Chunk, None, None]:
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
