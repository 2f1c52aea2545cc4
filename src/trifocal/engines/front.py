"""An engine that works elsewhere, as whoever asks it has it: what it is said to be, and what is refused unasked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Generic

import torch

from trifocal.engines.base import Abilities, State, Token, Tokenizer
from trifocal.engines.echo import Bytes
from trifocal.engines.language import open_language, tokenizer_of
from trifocal.engines.recipe import Recipe
from trifocal.engines.roster import P, Roster
from trifocal.errors import BadSampling, EngineError, PromptTooLong, UsageError
from trifocal.messages import Sampling
from trifocal.placement import Part
from trifocal.prompt import Prompt

__all__ = ["Front"]


class Front(ABC, Generic[P]):
    """An `Engine` whose work is done in the places of a roster.

    ``facts`` are what one of them told (`trifocal.engines.remote.answering.facts_of`), which all have in common.
    """

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any], roster: Roster[P]) -> None:
        self.roster = roster
        self._facts = facts
        self.name: str = facts["name"]
        self.hidden: int = facts["hidden"]
        self.able = Abilities(**{**facts["able"], "sees": tuple(facts["able"]["sees"])})
        self.tokenizer = self._tokenizer(recipe, facts["tokenizer"])

    @property
    def context(self) -> int:
        """How many positions prompt and answer may take together."""
        return int(self._facts["context"])

    @property
    def parts(self) -> tuple[Part, ...]:
        """The language model as it is loaded, with the bytes of all its places."""
        several = len(self.roster.seats)
        parts = (Part(**told) for told in self._facts["parts"])
        return tuple(replace(part, nbytes=part.nbytes * several) for part in parts)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        self._check(prompt, 1)
        if sampling.top_logprobs is not None and not self.able.logprobs:
            raise BadSampling("top_logprobs", f"the engine {self.name} can't tell log-probabilities")
        if sampling.schema is not None and not self.able.grammar:
            raise BadSampling("schema", f"the engine {self.name} can't hold an answer to a JSON schema")
        return self._answer(prompt, {"sampling": asdict(sampling)})

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """Where it looked; see `trifocal.engines.base.Engine.attention`."""
        if not self.able.explains:
            raise UsageError(f"the engine {self.name} can't tell where it looks")
        self._check(prompt, len(ids))
        return self._attention(prompt, {"ids": list(ids)})

    def state(self) -> State:
        """How it is now, all places together."""
        return State("failed", reason="the engine is closed") if self.roster.closed else self.roster.state()

    @abstractmethod
    def _answer(self, prompt: Prompt, asked: Mapping[str, Any]) -> Generator[Token, None, None]:
        """The tokens that a place says; asked when the first one is wanted."""

    @abstractmethod
    def _attention(self, prompt: Prompt, asked: Mapping[str, Any]) -> torch.Tensor:
        """What a place says of where it looked."""

    @abstractmethod
    def _asked(self) -> Tokenizer:
        """The tokenizer of an engine that is nobody's but its own.

        Raises:
            UsageError: it can't be asked here.
        """

    def _check(self, prompt: Prompt, wanted: int) -> None:
        """Refuses what the engine would refuse: nothing to continue, or no room for ``wanted`` positions behind it."""
        if self.roster.closed:
            raise EngineError("the engine is closed")
        if not len(prompt):
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) + wanted > self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, wanted, self.context)

    def _tokenizer(self, recipe: Recipe, told: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that the places have, made here of the same files."""
        if told["kind"] == "files":
            return tokenizer_of(open_language(recipe), told["rows"])
        return Bytes() if told["kind"] == "bytes" else self._asked()
