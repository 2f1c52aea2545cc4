"""One language model in many places, asked as one engine: what becomes of a request where its place dies."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch

from trifocal.cancelling import woken_by
from trifocal.engines.base import Token, Tokenizer
from trifocal.engines.front import Front
from trifocal.engines.remote.wire import prompt_to, tensor_from
from trifocal.engines.roster import Named
from trifocal.errors import EngineError, EngineLost, UsageError
from trifocal.prompt import Prompt

__all__ = ["Gone", "Place", "Said", "Spread"]

DEATHS = 3  # of places that a request may meet before it is taken for their cause
_SUSPECT = f"{DEATHS} replicas of the language engine ended before they could begin to answer this"


class Gone(Exception):
    """The place is gone, or can't be reached; says how."""


class Said(Protocol):
    """What a place says of one request: tokens as they come. `close` ends it, from any thread."""

    def __iter__(self) -> Iterator[list[Token]]:
        """Tokens, some at a time.

        Raises:
            Gone: the place is gone.
            TrifocalError: the engine's own error.
        """
        ...

    def close(self) -> None:
        """Nobody waits for it any more. Returns at once."""
        ...


class Place(Named, Protocol):
    """Where one copy of the language model is, and how it is asked."""

    def answer(self, head: Mapping[str, Any], body: bytes) -> Said:
        """Has a prompt continued."""
        ...

    def attention(self, head: Mapping[str, Any], body: bytes) -> tuple[Sequence[Any], bytes]:
        """Where it looked: what `trifocal.engines.remote.wire.tensor_to` gives.

        Raises:
            Gone: the place is gone.
            TrifocalError: the engine's own error.
        """
        ...


class Spread(Front[Place]):
    """An `Engine` in many places.

    What dies with a place: answers that had begun end with `EngineLost`, the others are asked elsewhere.
    """

    def close(self) -> None:
        """Nobody is asked any more; the places are not ours to end."""
        self.roster.close()

    def _attention(self, prompt: Prompt, asked: Mapping[str, Any]) -> torch.Tensor:
        head, body = _written(prompt, asked)
        wanted = self.roster.wanted(prompt)
        for _ in range(DEATHS):
            seat, cost = self.roster.enter(wanted)
            try:
                told, rows = seat.place.attention(head, body)
                return tensor_from(told, memoryview(bytearray(rows)))[0]
            except Gone as gone:
                self.roster.gone(seat.place.name, str(gone))
            finally:
                self.roster.leave(seat, cost, begun=False)
        raise EngineError(_SUSPECT)

    def _answer(self, prompt: Prompt, asked: Mapping[str, Any]) -> Generator[Token, None, None]:
        head, body = _written(prompt, asked)
        wanted = self.roster.wanted(prompt)
        for _ in range(DEATHS):
            seat, cost = self.roster.enter(wanted)
            begun = False
            try:
                said = seat.place.answer(head, body)
                with closing(said), woken_by(said.close):
                    for tokens in said:
                        if not begun:
                            begun = True
                            self.roster.began(seat, cost)
                        yield from tokens
                return
            except Gone as gone:
                self.roster.gone(seat.place.name, str(gone))
                if begun:
                    words = f"the language engine's replica {seat.place.name} {gone} while it answered"
                    raise EngineLost(words) from gone
            finally:
                self.roster.leave(seat, cost, begun=begun)
        raise EngineError(_SUSPECT)

    def _asked(self) -> Tokenizer:
        raise UsageError(f"the engine {self.name} has a tokenizer of its own, and can't be spread over many places")


def _written(prompt: Prompt, asked: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    told, parts = prompt_to(prompt)
    return {**told, **asked}, b"".join(parts)
