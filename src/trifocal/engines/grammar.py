"""Answers that are held to a JSON schema: which ids may come next, worked out by llguidance."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import torch

from trifocal.engines.closing import held
from trifocal.engines.schemas import checked, compiled, told
from trifocal.errors import BadSampling, EngineError, MissingExtra

__all__ = ["Constraint", "Grammars", "constraints"]


class Constraint:
    """The schema's state in one answer: what may come next, given what came.

    What goes wrong is told by `accept`, which is asked for each answer by itself, not by `allowed`, in whose step there
    are others.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher, self._failed = matcher, ""

    def allowed(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores ``[vocabulary]`` with every id that the schema excludes at minus infinity."""
        try:
            allowed = self._matcher.compute_bitmask()
        except Exception as error:
            self._failed = str(error) or type(error).__name__
            return scores
        self._failed = self._matcher.get_error()  # it then allows the end, which is none
        bits = torch.frombuffer(bytearray(allowed), dtype=torch.uint8)
        mask = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten()[: len(scores)]
        return scores.masked_fill(~mask.to(scores.device), -math.inf)

    def accept(self, token: int) -> None:
        """Notes the id that was drawn.

        Raises:
            BadSampling: what may come is more than can be worked out; of some schemas that shows only here.
            EngineError: it is none of the ids that were allowed.
        """
        if not self._failed and self._matcher.consume_token(token):
            return
        reason = self._failed or self._matcher.get_error()
        if _STRANGER in reason:
            raise EngineError("the answer left the schema that it was held to")
        raise BadSampling("schema", f"the JSON schema can't be held any further: {told(reason)}")


_STRANGER = "doesn't satisfy the grammar"  # the library's words of an id that it had not allowed


class Grammars:
    """Makes constraints for one vocabulary; ``definition`` is the text of its ``tokenizer.json``."""

    def __init__(self, definition: str, vocabulary: int, end_ids: frozenset[int]) -> None:
        try:
            from llguidance import LLTokenizer
        except ModuleNotFoundError as error:
            raise MissingExtra("holding an answer to a JSON schema", "serve") from error
        self._tokenizer = LLTokenizer(definition, n_vocab=vocabulary, eos_token=sorted(end_ids))

    def constraint(self, schema: str, scope: str | None = "") -> Constraint:
        """The beginning of an answer that is held to a JSON schema; ``scope`` is its prompt's.

        Raises:
            BadSampling: it is no JSON schema, or one with parts that can't be held.
        """
        schema = held(schema)
        reason, matcher = checked.__wrapped__(schema) if scope is None else checked(schema, scope), None
        if not reason:
            matcher, reason = compiled(self._tokenizer, schema)
        if reason:
            raise BadSampling("schema", f"the JSON schema can't be held: {reason}")
        return Constraint(matcher)


def constraints(make: Callable[[], Grammars]) -> Callable[[str, str | None], Constraint]:
    """`Grammars.constraint` of what is made once, when the first schema comes: a vocabulary takes its time."""
    grammars, preparing = functools.cache(make), threading.Lock()

    def constraint(schema: str, scope: str | None) -> Constraint:
        with preparing:
            made = grammars()
        return made.constraint(schema, scope)

    return constraint
