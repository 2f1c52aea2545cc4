"""What a language engine is: a tokenizer, a few facts and a stream of tokens."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from trifocal.errors import UsageError
from trifocal.messages import Sampling
from trifocal.prompt import Prompt

if TYPE_CHECKING:
    import torch

__all__ = [
    "STEP_LIMIT",
    "Abilities",
    "Attention",
    "Engine",
    "Named",
    "State",
    "Token",
    "Tokenizer",
]

Attention = Literal["causal", "images", "prompt"]
STEP_LIMIT = 300.0  # seconds: a step of a large model's prompt on a small CPU takes two minutes


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back, as the language model's own tokenizer does it."""

    def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
        """Ids of plain text. Nothing in ``text`` ever becomes a control token.

        ``start`` says that this is the beginning of a prompt: the tokenizer's own beginning token,
        if it has one, goes in front. ``after`` and ``before`` name the control tokens right beside the text; without
        them it stands beside a picture or an end. Many tokenizers put a space or take one away by that, and some even
        where the text is empty.
        """
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``, without control tokens and without cleaning up spaces."""
        ...

    def token(self, name: str) -> int | None:
        """The id of the control token called ``name`` (``</s>``, ``<im_start>``), or None."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """One id of an answer.

    ``logprob`` is its log-probability before penalties and filters, ``top`` are the likeliest ids and theirs, the
    likeliest first: both only where ``Sampling.top_logprobs`` asked for them. ``guessed`` says that it was computed
    together with the one before it, since that was guessed.
    """

    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    guessed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can, as data.

    ``logprobs``: its tokens have log-probabilities. ``grammar``: it holds an answer to ``Sampling.schema``.
    ``explains``: its `Engine.attention` can be asked. ``sees`` are the ways of attending that it has, of those that
    `trifocal.engines.recipe.Recipe` names. ``speculates``: it guesses what comes next where that pays, which changes
    no answer.
    """

    logprobs: bool = False
    grammar: bool = False
    explains: bool = False
    sees: tuple[Attention, ...] = ("causal",)
    speculates: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """How an engine is now.

    ``phase`` is ``failed`` where the next request will most likely fail too; ``reason`` then says why. ``running`` and
    ``waiting`` are requests. ``positions`` is how many its memory holds, ``free`` how many of them a new request can
    have; both are None where it does not count. ``several`` says that it works on many requests together though it does
    not count: who neither counts nor says so is asked for one answer at a time. ``drafted`` ids were guessed so far,
    ``accepted`` of them came. ``steps`` grows while it works, where it counts them.
    """

    phase: Literal["starting", "ready", "failed"] = "ready"
    running: int = 0
    waiting: int = 0
    positions: int | None = None
    free: int | None = None
    reason: str = ""
    several: bool = False
    drafted: int = 0
    accepted: int = 0
    steps: int = 0


@runtime_checkable
class Engine(Protocol):
    """A language model that continues a prompt of spans. Many threads may call it at once."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The language model's tokenizer."""
        ...

    @property
    def hidden(self) -> int:
        """The width of its embedding rows."""
        ...

    @property
    def context(self) -> int:
        """How many positions prompt and answer may take together."""
        ...

    @property
    def able(self) -> Abilities:
        """What it can."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """Yields the answer's tokens one by one, never the end token, at most ``max_tokens``.

        Closing the generator cancels the work within one token. Stop strings are not the engine's
        affair (`trifocal.model.decoding` watches the text).

        Raises:
            PromptTooLong: the prompt and one token don't fit.
            BadSampling: it is asked for what it is not able to.
            EngineError: the engine failed; `OutOfMemory` where it had no room.
        """
        ...

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """How much of its attention went to each position of the prompt while it chose each id of an answer.

        ``[ids, positions]`` in float32 on the CPU: the mean over the heads of the upper half of the layers (the lower
        ones gather, they don't choose), at the position from which the id was told. A row sums to at most 1; the rest
        went to the answer before it.

        Raises:
            UsageError: it can't tell (``able.explains``).
            PromptTooLong: prompt and answer don't fit.
            EngineError: the engine failed; `OutOfMemory` where it had no room.
        """
        raise UsageError("this engine can't tell where it looks")

    def state(self) -> State:
        """How it is now; asked often, so it neither waits nor works."""
        ...

    def close(self) -> None:
        """Frees what it holds. A closed engine raises `EngineError` when asked again."""
        ...


@runtime_checkable
class Named(Protocol):
    """An engine that stands for another one, and has its name."""

    @property
    def name(self) -> str:
        """The name of `trifocal.engines.engine_names` that does the work."""
        ...
