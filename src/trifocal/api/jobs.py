"""What a dialect asks for, and the steps of the answers to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace

from trifocal.api.errors import refuse
from trifocal.api.tools import Offer, Reader, numbered
from trifocal.api.wire import Draft
from trifocal.conversation.history import Keep
from trifocal.conversation.templates import ChatTemplate
from trifocal.errors import BadSampling
from trifocal.messages import Call, Chunk, End, Sampling, TokenLogprob

__all__ = ["Answers", "Job", "Step", "steps_of"]


@dataclass(frozen=True, slots=True)
class Job:
    """What a dialect asks for: a conversation, or raw prompts (``raw``), one a draft.

    ``answers`` to each prompt are drawn together, the second with the next seed and so on. ``room``
    bounds prompt and answer together below the model's context. ``images`` says which past
    pictures stay, ``template`` how the conversation is written down. ``offer`` are the functions that may be called,
    ``notes`` what is to be told of the request, ``held`` the parameter that holds the answer to a schema.
    """

    drafts: Sequence[Draft]
    sampling: Sampling
    raw: bool = False
    answers: int = 1
    images: Keep | None = None
    template: ChatTemplate | None = None
    offer: Offer = field(default_factory=Offer)
    notes: tuple[str, ...] = ()
    held: str = "response_format"
    room: int | None = None
    stoppable: bool = False

    @property
    def total(self) -> int:
        """How many answers there are in all."""
        return self.answers * (len(self.drafts) if self.raw else 1)


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of answer number ``index``; its last one carries ``end``, and ``calls`` of functions."""

    index: int
    text: str
    end: End | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[Call, ...] = ()
    prompt_tokens: int = 0


@dataclass(slots=True, eq=False)
class Answers:
    """The steps of a request under way, ``each`` answers a prompt. Use `aclose`, or read to the end."""

    steps: AsyncGenerator[Step, None]
    first: Step
    each: int = 1

    async def all(self) -> AsyncGenerator[Step, None]:
        """Every step, the first one included."""
        async with aclosing(self.steps):
            yield self.first
            async for step in self.steps:
                yield step


def steps_of(index: int, chunks: Generator[Chunk, None, None], job: Job) -> Generator[Step, None, None]:
    """One answer's chunks with the calls in it apart; log-probabilities go with the text."""
    reader, waiting = Reader(job.offer), list[TokenLogprob]()
    try:
        with closing(chunks):
            for chunk in chunks:
                waiting += chunk.logprobs
                text, end, calls = reader.push(chunk.text), chunk.end, tuple[Call, ...]()
                if end:
                    rest, calls = reader.finish()
                    calls = (*calls, *chunk.calls)[: 1 if job.offer.single else None]
                    calls = numbered(calls, lambda: f"call_{secrets.token_hex(12)}")
                    text, end = text + rest, replace(end, notes=(*job.notes, *job.offer.notes, *end.notes))
                if text or end or not reader.holds:
                    yield Step(index, text, end, () if calls else tuple(waiting), calls, chunk.prompt_tokens)
                    waiting.clear()
    except BadSampling as error:
        if error.option != "schema":
            raise
        raise refuse("invalid_value", error.detail, job.held) from error
