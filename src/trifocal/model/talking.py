"""The upper doors of whatever answers conversations, written once: whole answers, and answers as they grow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Generic, Protocol, Self, TypeVar

from trifocal.conversation.history import Keep
from trifocal.conversation.templates import ChatTemplate
from trifocal.images import Image
from trifocal.messages import Chunk, Message, Reply, Sampling, Tool
from trifocal.model.decoding import collect
from trifocal.prompt import Scope

__all__ = ["Ready", "Talking"]


class Ready(Protocol):
    """What was prepared for an answer."""

    def positions(self, answers: int = 1) -> int:
        """How many positions prompt and so many answers take at most; 0 where nobody here can count."""
        ...

    def again(self, seed: int | None) -> Self:
        """The same for another answer, drawn from this seed."""
        ...


Wrote = TypeVar("Wrote")
Prepared = TypeVar("Prepared", bound=Ready)


class Talking(ABC, Generic[Wrote, Prepared]):
    """What answers conversations in three steps: a conversation is written down, prepared, and told an answer to."""

    template: ChatTemplate

    @abstractmethod
    def write(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
        room: int | None = None,
    ) -> Wrote:
        """A conversation as it will be asked; no picture is looked at."""

    @abstractmethod
    def prepare(self, written: Wrote, sampling: Sampling = Sampling(), *, scope: Scope = "") -> Prepared:
        """What was written, ready to be answered."""

    @abstractmethod
    def tell(self, asked: Prepared) -> Generator[Chunk, None, None]:
        """An answer to what was prepared, piece by piece."""

    @abstractmethod
    def close(self) -> None:
        """Frees what it holds."""

    def question(self, text: str, images: Sequence[Image] = ()) -> Message:
        """A user's turn from a text and pictures beside it; see `Template.question`."""
        return self.template.question(text, images)

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
        room: int | None = None,
        scope: Scope = "",
    ) -> Generator[Chunk, None, None]:
        """The answer to a conversation, piece by piece; the last chunk carries `End`.

        ``images`` says which past pictures stay (``all``, ``last`` or a number), ``template`` writes the
        conversation down in another way than the checkpoint's own. ``tools`` are offered where the template has a
        place for them; turns that it does not have are put otherwise (`trifocal.conversation.writable`), and
        `End.notes` tells. Whole oldest exchanges are left out when the context, or ``room``, is full, never the
        system text, never the last question; `End.left_out` tells. Everything that can be refused is refused here,
        before the generator is returned; closing the generator cancels the work. For ``scope`` see `answer`.

        Raises:
            BadMessages: the conversation can't be rendered.
            PromptTooLong: even the last question alone does not fit.
        """
        written = self.write(messages, sampling.max_tokens, images=images, template=template, tools=tools, room=room)
        return self.answer(written, sampling, scope=scope)

    def complete(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),
        *,
        images: Keep | None = None,
        template: ChatTemplate | None = None,
        tools: Sequence[Tool] = (),
    ) -> Reply:
        """`stream`, collected."""
        return collect(self.stream(messages, sampling, images=images, template=template, tools=tools))

    def answer(
        self, written: Wrote, sampling: Sampling = Sampling(), *, scope: Scope = ""
    ) -> Generator[Chunk, None, None]:
        """The answer to what was written, which may be asked again for another one; see `stream`.

        What is seen and computed for it is found again in the same ``scope``; None keeps nothing of it.

        Raises:
            PromptTooLong: the prompt and one token don't fit.
            BadSampling: log-probabilities of an engine that can't tell them.
        """
        return self.tell(self.prepare(written, sampling, scope=scope))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
