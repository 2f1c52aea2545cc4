"""What a language engine is: a tokenizer, two facts and a stream of token ids."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from trifocal.messages import Sampling
from trifocal.prompt import Prompt

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer as Backend

__all__ = [
    "Attending",
    "Engine",
    "Language",
    "Scoring",
    "Step",
    "Tokenizer",
]


@dataclass(frozen=True, slots=True)
class Language:
    """The language half of a checkpoint, as an engine's loader takes it.

    ``folder`` holds the tokenizer's files (and the weights, for engines that read them by
    themselves), ``config`` is the language model's own configuration with its ``model_type``, and
    ``weights`` maps canonical names (``model.embed_tokens.weight``, ``lm_head.weight``) to tensors
    that are read from disk when they are asked for. ``tokenizer`` is there where the weights' own
    file holds it (GGUF): then ``folder`` is that file. ``attention`` is ``images`` where the positions
    of a picture see each other in both directions (Gemma 3), and ``prompt`` where all of a prompt's do
    (PaliGemma, a prefix language model, whose templates say themselves where the beginning token stands);
    an engine that can't do that refuses it.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    tokenizer: Backend | None = None
    attention: Literal["causal", "images", "prompt"] = "causal"


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back, as the language model's own tokenizer does it."""

    def encode(self, text: str, *, start: bool) -> list[int]:
        """Ids of plain text. Nothing in ``text`` ever becomes a control token.

        ``start`` says that this is the beginning of a prompt: the tokenizer's own beginning token,
        if it has one, goes in front.
        """
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``, without control tokens and without cleaning up spaces."""
        ...

    def token(self, name: str) -> int | None:
        """The id of the control token called ``name`` (``</s>``, ``<im_start>``), or None."""
        ...


class Step(Protocol):
    """One id of an answer with its log-probability, and those of the likeliest ids instead of it."""

    @property
    def id(self) -> int:
        """The id."""
        ...

    @property
    def logprob(self) -> float:
        """Its log-probability, before penalties and filters."""
        ...

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The likeliest ids and their log-probabilities, the likeliest first."""
        ...


@runtime_checkable
class Scoring(Protocol):
    """What an engine has besides when it can tell log-probabilities."""

    def steps(self, prompt: Prompt, sampling: Sampling) -> Generator[Step, None, None]:
        """As `Engine.stream`, with ``sampling.top_logprobs`` likeliest ids a step."""
        ...


@runtime_checkable
class Attending(Protocol):
    """What an engine has besides when it can tell where it looked."""

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """How much of its attention went to each position of the prompt while it chose each id of an answer.

        ``[ids, positions]`` in float32 on the CPU: the mean over the heads of the upper half of the layers (the lower
        ones gather, they don't choose), at the position from which the id was told. A row sums to at most 1; the rest
        went to the answer before it.

        Raises:
            PromptTooLong: prompt and answer don't fit.
            EngineError: the model can't tell, or failed; `OutOfMemory` where it had no room.
        """
        ...


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

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[int, None, None]:
        """Yields the answer's ids one by one, never the end token, at most ``max_tokens``.

        Closing the generator cancels the work within one token. Stop strings are not the engine's
        affair (`trifocal.model.decoding` watches the text).

        Raises:
            PromptTooLong: the prompt and one token don't fit.
            EngineError: the engine failed; `OutOfMemory` where it had no room.
        """
        ...

    def close(self) -> None:
        """Frees what it holds. A closed engine raises `EngineError` when asked again."""
        ...
